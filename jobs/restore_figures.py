"""Figures of a restoration: where restored cells lie, which level they are most alike, how well they do.

They answer the paper's figure 3g, 3h and 3k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .plotting import plt, save

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.restoration import LevelMeans, Restored

_METHODS = ("restored", "interpolation", "neighbour", "ceiling")


def draw_restored(
    out: Path,
    names: Sequence[str],
    results: Mapping[int, Restored],
    means: LevelMeans,
    clouds: Mapping[int, NDArray[np.float32]],
) -> None:
    """Write cells.png, levels.png and scores.png."""
    _draw_cells(out / "cells.png", names, means, clouds)
    _draw_levels(out / "levels.png", names, results)
    _draw_scores(out / "scores.png", names, results)


def _draw_cells(path: Path, names: Sequence[str], means: LevelMeans, clouds: Mapping[int, NDArray[np.float32]]) -> None:
    """Restored cells and the real levels' means, on the two directions in which the means differ most."""
    centre = means.mean_lg.mean(axis=0)
    _, _, directions = np.linalg.svd(means.mean_lg - centre, full_matrices=False)
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 1, len(names)))
    for level, cells in clouds.items():
        x, y = ((cells - centre) @ directions[:2].T).T
        axes.scatter(x, y, s=5, alpha=0.4, color=colours[level], linewidths=0)
    x, y = ((means.mean_lg - centre) @ directions[:2].T).T
    axes.plot(x, y, color="0.6", lw=1, zorder=2)
    axes.scatter(x, y, s=60, c=colours, edgecolors="black", zorder=3)
    for name, at in zip(names, zip(x, y, strict=True), strict=True):
        axes.annotate(name, at, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(title="Restored cells (dots) and real levels (rings)", xticks=[], yticks=[])
    save(figure, path)


def _draw_levels(path: Path, names: Sequence[str], results: Mapping[int, Restored]) -> None:
    """PCC of each restored mean with every level's mean; the best is framed."""
    from matplotlib.patches import Rectangle

    values = np.array([result.pcc_l for result in results.values()])
    figure, axes = plt.subplots(figsize=(1.6 + 0.6 * len(names), 1.4 + 0.45 * len(values)), layout="constrained")
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    for row, best in enumerate(values.argmax(axis=1)):
        axes.add_patch(Rectangle((best - 0.5, row - 0.5), 1, 1, fill=False, ec="red", lw=2))
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(values)), [names[level] for level in results], fontsize=8)
    axes.set(title="PCC of restored means", xlabel="real level", ylabel="restored")
    figure.colorbar(image)
    save(figure, path)


def _draw_scores(path: Path, names: Sequence[str], results: Mapping[int, Restored]) -> None:
    """PCC of mean and of difference beside baselines and ceiling, level by level."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    places = np.arange(len(results))
    for axes, kind in zip(both, ("mean", "difference"), strict=True):
        for number, method in enumerate(_METHODS):
            scores = [getattr(result, method) for result in results.values()]
            heights = [getattr(each, kind) if each else np.nan for each in scores]
            axes.plot(places + 0.15 * (number - 1.5), heights, "_" if method == "ceiling" else "o", ms=8, label=method)
        axes.set_xticks(places, [names[level] for level in results], rotation=60, ha="right", fontsize=8)
        axes.set(title=f"PCC of {'the mean' if kind == 'mean' else 'the difference from the other levels'}")
        axes.grid(axis="y", lw=0.3)
    both[0].legend(frameon=False, fontsize=8)
    save(figure, path)
