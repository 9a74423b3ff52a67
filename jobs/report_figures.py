"""Figures that only a report has.  Shapes: n cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .evaluate_figures import short
from .plotting import plt, save

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

_BARS = 25
_COLOURS = 20
_PANELS = 12
_REST = "0.8"


def draw_counts(counts: Mapping[str, int], title: str, path: Path) -> None:
    """Bars of the largest categories; the others are summed up in a last one."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    bars = ordered[:_BARS]
    if rest := ordered[_BARS:]:
        bars = [*bars, (f"{len(rest)} others", sum(count for _, count in rest))]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.22 * len(bars)), layout="constrained")
    axes.barh(range(len(bars)), [count for _, count in bars], color="tab:blue")
    axes.set_yticks(range(len(bars)), [short(name) for name, _ in bars], fontsize=8)
    axes.set(title=title, xlabel="cells")
    axes.invert_yaxis()
    save(figure, path)


def draw_curves(entries: Sequence[Mapping[str, Any]], pairs: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """A panel for each title of `pairs`; its lines are keys of the entries by the name they are given."""
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.8 * rows), layout="constrained", squeeze=False)
    for axes, (title, lines) in zip(grid.ravel(), pairs.items(), strict=False):
        drawn = [
            axes.plot([e["epoch"] + 1 for e in entries if key in e], [e[key] for e in entries if key in e])[0]
            for key in lines
        ]
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        if len(lines) > 1:
            axes.legend(drawn, list(lines.values()), frameon=False, fontsize=8)
    for axes in grid.ravel()[len(pairs) :]:
        axes.axis("off")
    save(figure, path)


def draw_map(places_n2: NDArray[np.float32], values: pd.Series, title: str, path: Path) -> None:
    """Cells on a plane by label, the twenty most frequent in colours of their own, or by number."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    x, y = places_n2.T
    size = float(np.clip(20_000 / len(places_n2), 0.3, 8))
    style: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True}  # an SVG of all points would be huge
    if values.dtype.kind == "f":
        known = values.notna().to_numpy()
        axes.scatter(x[~known], y[~known], color=_REST, **style)
        dots = axes.scatter(x[known], y[known], c=values[known].to_numpy(), cmap="viridis", **style)
        figure.colorbar(dots, ax=axes, shrink=0.7)
    else:
        names = values.astype("string")
        frequent = list(names.value_counts().index[:_COLOURS])
        rest = ~names.isin(frequent).to_numpy()
        axes.scatter(x[rest], y[rest], color=_REST, **style)
        colours = dict(zip(frequent, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
        coloured = np.array([colours[name] for name in names[~rest]]).reshape(-1, 3)
        axes.scatter(x[~rest], y[~rest], c=coloured, **style)
        marks = [axes.plot([], [], "o", color=colour)[0] for colour in colours.values()]
        texts = [short(name) for name in frequent]
        if rest.any():
            marks.append(axes.plot([], [], "o", color=_REST)[0])
            texts.append("others or unlabelled")
        axes.legend(marks, texts, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    axes.set(title=title, xticks=[], yticks=[])
    save(figure, path)


def draw_against_truth(truth: pd.DataFrame, found: pd.DataFrame, path: Path) -> None:
    """Coordinates over what they should be, a panel a dimension, up to twelve."""
    names = list(truth.columns[:_PANELS])
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3 * columns, 3 * rows), layout="constrained", squeeze=False)
    for axes, name in zip(grid.ravel(), names, strict=False):
        x, y = truth[name], found[name]
        axes.scatter(x, y, s=4, linewidths=0, alpha=0.5, rasterized=True)
        ends = [float(x.min()), float(x.max())]
        axes.plot(ends, ends, color="0.6", linestyle="--", linewidth=1)
        axes.set_title(short(str(name)), fontsize=9)
        axes.set(xlabel="truth", ylabel="coordinate")
    for axes in grid.ravel()[len(names) :]:
        axes.axis("off")
    save(figure, path)
