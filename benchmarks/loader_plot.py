"""The plot of bench_loader: cells/s of each loader, one bar a batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    "limit": "limit: decoding in order",
    "ours": "ours, compact",
    "ours_wide": "ours, float32 + int32",
    "annbatch": "annbatch + zarrs",
    "scdataset": "scDataset",
    "annloader": "AnnLoader",
}


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw the loaders that were run, on a logarithmic axis: they are orders of magnitude apart."""
    found = {(row["loader"], row["batch"]): row["cells_per_second"] for row in rows}
    names = [name for name in NAMES if (name, 512) in found]
    if not names:
        return
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for shift, batch in ((0.2, 512), (-0.2, 4096)):
        speeds = [found[name, batch] for name in names]
        bars = axes.barh(np.arange(len(names))[::-1] + shift, speeds, 0.38, label=f"batches of {batch:,}")
        axes.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=3, fontsize=8)
    axes.set_yticks(np.arange(len(names))[::-1], [NAMES[name] for name in names])
    axes.set(xscale="log", xlabel="cells/s (2 cores, about 2,000 non-zeros a cell)")
    axes.margins(x=0.15)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(out, dpi=150)
    plt.close(figure)
