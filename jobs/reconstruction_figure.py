"""The figure of `evaluate reconstruction`: genes' means, real against decoded, and what is explained by group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .evaluate_figures import short
from .plotting import plt, save

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_MOST_GROUPS = 60


def draw_reconstruction(genes: pd.DataFrame, by_group: pd.DataFrame, explained: float, path: Path) -> None:
    """One point a gene, coloured by its correlation over cells; one bar a group, the largest groups first."""
    groups = by_group.sort_values("cells", ascending=False).head(_MOST_GROUPS)[::-1]
    height = max(4, 0.22 * len(groups) + 1.5)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, height), layout="constrained")
    order = genes.sort_values("correlation", na_position="first")
    points = left.scatter(order["mean"], order["decoded_mean"], c=order["correlation"], s=5, vmin=0, vmax=1)
    top = float(genes[["mean", "decoded_mean"]].max().max())
    left.plot([0, top], [0, top], color="0.7", linewidth=0.8, zorder=0)
    left.set(title=f"{len(genes):,} genes", xlabel="mean, log-normalized", ylabel="decoded mean")
    figure.colorbar(points, ax=left, label="correlation over cells", shrink=0.7)
    right.barh([short(str(name)) for name in groups.index], groups["explained"])
    right.axvline(explained, color="0.5", linewidth=0.8)
    right.set(title="explained of what the mean profile leaves", xlabel="share (line: all cells)")
    save(figure, path)
