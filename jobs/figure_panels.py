"""The drawing of `figure`: real cells in the background, generated ones in front."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from unicoord_atlas.scene import nearest_cells, principal_components

from .plotting import plt, save

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from unicoord_atlas.scene import Scene

_GREY = "0.85"
_COMPONENTS = 50


def draw_nearest(scene: Scene, by: str, path: Path) -> None:
    """UMAP of the real cells; beside it each generated cell at its nearest real cell, both coloured as they began.

    The scene has every gene.
    """
    places, found = _umap(scene.real_nm), nearest_cells(scene.made_pnm[0], scene.real_nm)
    jitter = np.random.default_rng(0).normal(0, 0.005 * np.ptp(places, axis=0), places.shape).astype(np.float32)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    _coloured(left, places, scene.obs[by])
    right.scatter(places[:, 0], places[:, 1], s=4, color=_GREY, linewidths=0)
    _coloured(right, places[found] + jitter, scene.obs[by])
    left.set(title="Real cells")
    right.set(title="Generated from them, at their nearest real cell")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, markerscale=2)
    save(figure, path)


def draw_markers(scene: Scene, by: str, genes: list[str], path: Path) -> None:
    """Values of each gene before and after, group by group; the scene has these genes, in their order."""
    groups = _groups(scene.obs[by])
    names = list(dict.fromkeys(groups))
    figure, panels = plt.subplots(
        len(genes),
        1,
        figsize=(2 + 0.9 * len(names), 1.3 * len(genes)),
        layout="constrained",
        squeeze=False,
        sharex=True,
    )
    for column, (axes, gene) in enumerate(zip(panels[:, 0], genes, strict=True)):
        for values, shift, colour in ((scene.real_nm, -0.2, "tab:blue"), (scene.made_pnm[0], 0.2, "tab:orange")):
            each = [values[groups == name, column] for name in names]
            parts: Any = axes.violinplot(each, np.arange(len(names)) + shift, widths=0.35, showmeans=True)
            for body in parts["bodies"]:
                body.set_facecolor(colour)
        axes.set(ylabel=gene)
    panels[-1, 0].set_xticks(range(len(names)), names, rotation=45, ha="right")
    figure.suptitle("Real cells (blue) and those generated from them (orange)", fontsize=9)
    save(figure, path)


def draw_trajectory(scene: Scene, by: str, path: Path) -> None:
    """Generated cells coloured by the value they were set to, and the way of each group's mean.

    The scene has places on a plane.
    """
    real, made, values = scene.real_nm, scene.made_pnm, _numbers(scene)
    figure, axes = plt.subplots(figsize=(6.5, 5), layout="constrained")
    axes.scatter(real[:, 0], real[:, 1], s=4, color=_GREY, linewidths=0)
    colours = np.repeat(values, made.shape[1])
    shown = axes.scatter(
        made[..., 0].ravel(), made[..., 1].ravel(), s=3, c=colours, cmap="viridis", alpha=0.3, linewidths=0
    )
    groups = _groups(scene.obs[by])
    for name in dict.fromkeys(groups):
        way = made[:, groups == name].mean(axis=1)
        axes.plot(way[:, 0], way[:, 1], color="black", lw=0.8)
        axes.scatter(way[:, 0], way[:, 1], s=14, c=values, cmap="viridis", edgecolors="black", linewidths=0.4, zorder=3)
        axes.annotate(str(name), way[-1], fontsize=7, xytext=(4, 4), textcoords="offset points")
    figure.colorbar(shown, label="value set").solids.set_alpha(1)  # type: ignore[union-attr]
    axes.set(title="Real cells (grey) and generated ones along the sweep", xticks=[], yticks=[])
    save(figure, path)


def draw_film(scene: Scene, path: Path) -> None:
    """A GIF: the generated cells at each point of the sweep in turn; the scene has places on a plane."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    real, frames = scene.real_nm, scene.made_pnm
    figure, axes = plt.subplots(figsize=(5, 4.5), layout="constrained")
    axes.scatter(real[:, 0], real[:, 1], s=4, color=_GREY, linewidths=0)
    axes.set(xticks=[], yticks=[])
    colours = plt.get_cmap("viridis")(np.linspace(0, 1, len(frames)))
    dots = axes.scatter(frames[0][:, 0], frames[0][:, 1], s=5, linewidths=0)

    def show(number: int) -> list[Any]:
        dots.set_offsets(frames[number])
        dots.set_color([tuple(colours[number])])
        axes.set_title(str(scene.titles[number]))
        return [dots]

    FuncAnimation(figure, show, frames=len(frames)).save(path, PillowWriter(fps=6), dpi=90)
    plt.close(figure)


def _umap(real_ng: NDArray[np.float32]) -> NDArray[np.float32]:
    centre, directions = principal_components(real_ng, _COMPONENTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap speaks of Tensorflow and of its own parallel settings
        from umap import UMAP

        places: NDArray[np.float32] = UMAP(random_state=0).fit_transform((real_ng - centre) @ directions)
    return places


def _groups(column: pd.Series) -> NDArray[np.str_]:
    groups: NDArray[np.str_] = column.astype("string").fillna("unlabelled").to_numpy(str)
    return groups


def _numbers(scene: Scene) -> NDArray[np.float64]:
    """The values of the sweep, or the numbers of its points where they are classes."""
    if all(isinstance(title, float) for title in scene.titles):
        return np.array(scene.titles, np.float64)
    return np.arange(len(scene.titles), dtype=np.float64)


def _coloured(axes: Axes, places: NDArray[np.float32], column: pd.Series) -> None:
    groups = _groups(column)
    for number, name in enumerate(sorted(set(groups))):
        x, y = places[groups == name].T
        axes.scatter(x, y, s=5, label=name, color=plt.get_cmap("tab20")(number % 20), linewidths=0)
    axes.set(xticks=[], yticks=[])
