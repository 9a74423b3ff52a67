"""The plot of bench_train: cells/s beside the limit, memory over steps, held-out error over seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

SHOWN = {
    "limit 512": "limit",
    "train 512": "train, 512",
    "loop 512": "paper's loop, 512",
    "loop 128": "paper's loop, 128",
}


def plot(parts: dict[str, Any], out: Path) -> None:
    """Draw what was measured."""
    drawn = [(name, draw) for name, draw in DRAWN.items() if name in parts]
    if not drawn:
        return
    figure, axes = plt.subplots(1, len(drawn), figsize=(4 * len(drawn), 3), layout="constrained", squeeze=False)
    for (name, draw), each in zip(drawn, axes[0], strict=True):
        draw(parts[name], each)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _speed(part: dict[str, Any], axes: Axes) -> None:
    speeds = [part["programs"][name]["cells_per_second"] for name in SHOWN]
    bars = axes.barh(list(SHOWN.values())[::-1], speeds[::-1])
    axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds[::-1]], padding=3, fontsize=8)
    axes.margins(x=0.2)
    axes.set(xlabel="cells/s")


def _memory(part: dict[str, Any], axes: Axes) -> None:
    steps, sizes = zip(*part["samples"], strict=True)
    axes.plot(steps, [size / 2**30 for size in sizes])
    axes.set(xlabel="step", ylabel=f"GiB, {part['cells']:,} cells", ylim=(0, None))


def _error(part: dict[str, Any], axes: Axes) -> None:
    for name, label in (("train", "train"), ("loop", "paper's loop")):
        axes.plot(part[name]["seconds"], part[name]["errors"], marker=".", label=label)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="held-out squared error")
    axes.legend(fontsize=8)


DRAWN = {"speed": _speed, "memory": _memory, "error": _error}
