"""Figures of an evaluation: confusion, calibration, and the flow from labels to predictions (the paper's figure 4f)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .console_text import one_line
from .plotting import plt

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.02
_LONGEST = 50
_MOST_PIXELS = 4_000
"""Of a side of a figure."""
_COLORS = plt.get_cmap("tab20")


def draw_confusion(confusion: pd.DataFrame, label: str, path: Path) -> None:
    """Shares of each true class by predicted class."""
    shares = confusion.div(confusion.sum(axis=1), axis=0).to_numpy()
    tables = (confusion.columns, confusion.index)
    predicted, truth = ([short(one_line(str(name))) for name in names] for names in tables)
    size = 2 + 0.35 * max(confusion.shape)
    room = [0.085 * max(map(len, names)) for names in (truth, predicted)]  # beside and below
    figure, axes = plt.subplots(figsize=(size + 1 + room[0], size + room[1]), layout="constrained")
    # As an image the matrix would be resampled to the figure's pixels: of a hundred classes, gigabytes.
    image = axes.pcolormesh(shares, vmin=0, vmax=1, cmap="Blues")
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xticks(np.arange(len(predicted)) + 0.5, predicted, rotation=90)
    axes.set_yticks(np.arange(len(truth)) + 0.5, truth)
    axes.set(title=f"{label}: share of each true class", xlabel="predicted", ylabel="truth")
    figure.colorbar(image, ax=axes, shrink=0.7)
    _save(figure, path)


def short(name: str) -> str:
    """The name of a class as figures have room for it."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def draw_calibration(bins: pd.DataFrame, error: float, path: Path) -> None:
    """Accuracy over confidence, bins of equal mass."""
    figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
    low = min(float(bins[["confidence", "accuracy"]].min().min()), 0.95)
    axes.plot([low, 1], [low, 1], color="0.7", linestyle="--")
    axes.plot(bins["confidence"], bins["accuracy"], marker="o")
    axes.set(title=f"ECE {error:.4f}", xlabel="confidence", ylabel="accuracy", aspect="equal")
    _save(figure, path)


def draw_flow(flow: pd.DataFrame, label: str, path: Path) -> None:
    """Bands from the query's labels (left) to predictions (right), as wide as there are cells."""
    flow = flow.loc[flow.sum(axis=1).sort_values(ascending=False).index]
    flow = flow[flow.sum(axis=0).sort_values(ascending=False).index]
    counts = flow.to_numpy(float) / flow.to_numpy().sum()
    figure, axes = plt.subplots(figsize=(8, 2.5 + 0.3 * max(flow.shape)), layout="constrained")
    left, right = _starts(counts.sum(axis=1)), _starts(counts.sum(axis=0))
    x = np.linspace(0, 1, 50)
    ease = 3 * x**2 - 2 * x**3
    used_left, used_right = left.copy(), right.copy()
    for i in range(counts.shape[0]):
        for j in range(counts.shape[1]):
            width = counts[i, j]
            if width:
                below = used_left[i] + (used_right[j] - used_left[i]) * ease
                axes.fill_between(x, below, below + width, color=_COLORS(i % 20), alpha=0.6, linewidth=0)
                used_left[i] += width
                used_right[j] += width
    _name(axes, left, counts.sum(axis=1), [one_line(str(name)) for name in flow.index], -0.02, "right")
    _name(axes, right, counts.sum(axis=0), [one_line(str(name)) for name in flow.columns], 1.02, "left")
    axes.set(title=f"{label}: labels of the query and predictions", xlim=(-0.45, 1.45))
    axes.invert_yaxis()
    axes.axis("off")
    _save(figure, path)


def _starts(widths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(widths + _GAP)[:-1]])


def _name(axes: Axes, starts: np.ndarray, widths: np.ndarray, names: list[str], x: float, side: str) -> None:
    for start, width, name in zip(starts, widths, names, strict=True):
        axes.text(x, start + width / 2, name, ha=side, va="center", fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    # A matrix of a hundred classes is a metre wide: in full, its pixels would take gigabytes to be made and read.
    figure.savefig(path, dpi=min(150, _MOST_PIXELS / max(figure.get_size_inches())))
    plt.close(figure)
