"""Figures of gene sets: how the top ones correlate, and which are active in which types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list

from .plotting import plt

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from unicoord_atlas.gene_sets.selection import Groups

_LONGEST = 60


def draw_correlations(groups: Groups, titles: list[str], path: Path) -> None:
    """Heat map of Pearson's r, sets in the order of their tree, lines between the groups."""
    order = leaves_list(groups.linkage) if len(titles) > 1 else np.zeros(1, int)
    size = 3 + 0.12 * len(titles)
    figure, axes = plt.subplots(figsize=(size + 3, size), layout="constrained")
    image = axes.imshow(groups.correlation_tt[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1)
    for at in np.flatnonzero(np.diff(groups.group_t[order])):
        axes.axhline(at + 0.5, color="black", linewidth=0.4)
        axes.axvline(at + 0.5, color="black", linewidth=0.4)
    axes.set(xticks=[], title="Correlation of the scores, and the groups")
    axes.set_yticks(range(len(titles)), [titles[i][:_LONGEST] for i in order], fontsize=6)
    figure.colorbar(image, ax=axes, shrink=0.5, label="Pearson's r")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_activities(table: pd.DataFrame, path: Path) -> None:
    """Dot plot: colour is a type's mean, from 0 at a set's lowest to 1 at its highest; size its share above the mean.

    Sets stand below the type in which they are most active.
    """
    mean, share = (table.pivot(index="set", columns="type", values=key) for key in ("mean", "share_above"))
    order = np.lexsort((-mean.to_numpy().max(axis=1), mean.to_numpy().argmax(axis=1)))
    mean, share = mean.iloc[order], share.iloc[order]
    low, high = mean.min(axis=1).to_numpy()[:, None], mean.max(axis=1).to_numpy()[:, None]
    colour = (mean - low) / np.maximum(high - low, 1e-12)
    rows, columns = np.indices(mean.shape)
    types = [str(name)[:_LONGEST] for name in mean.columns]
    room = 0.06 * max(map(len, types))  # for the names of the types, which stand aslant below
    size = (5 + 0.45 * len(types), 2 + 0.24 * len(mean) + room)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    sizes, shades = 10 + 110 * share.to_numpy().ravel(), colour.to_numpy().ravel()  # a row of three would be a colour
    dots = axes.scatter(columns.ravel(), rows.ravel(), s=sizes, c=shades, cmap="Reds", vmin=0, vmax=1)
    axes.set_xticks(range(len(types)), types, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(mean)), [str(name)[:_LONGEST] for name in mean.index], fontsize=7)
    axes.set(xlim=(-0.7, mean.shape[1] - 0.3), ylim=(len(mean) - 0.3, -0.7))
    figure.colorbar(dots, ax=axes, shrink=0.5, label="mean, scaled within the set")
    axes.set_title("Activity by type; size: share of cells above the mean", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
