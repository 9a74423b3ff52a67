"""Figures that only a report has.  Shapes: n cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unicoord_atlas.report.plane import MOST_POINTS

from .evaluate_figures import short
from .plotting import Line2D, Normalize, ScalarMappable, plt, save

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_BARS = 25
_COLOURS = 20
_PANELS = 12
_GREY = "0.8"
_REST = np.float32(_GREY)
_PIXELS = 300, 450


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
    """Cells on a plane by label, the twenty most frequent in colours of their own, or by number.

    Up to 100,000 cells are points; of more a pixel has the mean colour of its cells, the paler the fewer they are.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    if values.dtype.kind == "f":
        colours_n3, scale = _colours_of_numbers(values)
        if scale is not None:
            figure.colorbar(scale, ax=axes, shrink=0.7)
    else:
        colours_n3, marks, texts = _colours_of_labels(values)
        axes.legend(marks, texts, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    if len(places_n2) > MOST_POINTS:
        pixels = int(np.clip(len(places_n2) ** 0.5, *_PIXELS))  # so that there are several cells to most of them
        image, extent = shaded(places_n2, colours_n3, pixels)
        axes.imshow(image, extent=extent, origin="lower", aspect="auto", interpolation="none")
    else:
        rest_first = np.argsort((colours_n3 != _REST).any(axis=1), kind="stable")
        size = float(np.clip(20_000 / len(places_n2), 0.3, 8))
        x, y = places_n2[rest_first].T  # rasterized: an SVG of all points would be huge
        axes.scatter(x, y, c=colours_n3[rest_first], s=size, linewidths=0, rasterized=True)
    axes.set(title=title, xticks=[], yticks=[])
    save(figure, path)


def shaded(
    places_n2: NDArray[np.float32], colours_n3: NDArray[np.float32], pixels: int
) -> tuple[NDArray[np.float32], tuple[float, float, float, float]]:
    """(pixels, pixels, 4) mean colour of the cells in each square, its opacity by their logarithm; and the extent."""
    low, high = places_n2.min(axis=0), places_n2.max(axis=0)
    step = np.maximum(high - low, 1e-9) / pixels
    column, row = np.minimum(((places_n2 - low) / step).astype(np.int64), pixels - 1).T
    square = row * pixels + column
    counts = np.bincount(square, minlength=pixels**2)
    sums = [np.bincount(square, channel, pixels**2) for channel in colours_n3.T]
    image = np.zeros((pixels**2, 4), np.float32)
    filled = counts > 0
    image[filled, :3] = np.stack(sums, axis=1)[filled] / counts[filled, None]
    image[filled, 3] = 0.5 + 0.5 * np.log1p(counts[filled]) / np.log1p(counts.max())
    return image.reshape(pixels, pixels, 4), (float(low[0]), float(high[0]), float(low[1]), float(high[1]))


def _colours_of_numbers(values: pd.Series) -> tuple[NDArray[np.float32], ScalarMappable | None]:
    """(n, 3), grey where missing, and what a colour bar needs, if there are any numbers."""
    numbers = values.to_numpy(np.float64)
    known = np.isfinite(numbers)
    colours = np.full((len(numbers), 3), _REST, np.float32)
    if not known.any():
        return colours, None
    scale = ScalarMappable(Normalize(numbers[known].min(), numbers[known].max()), "viridis")
    colours[known] = scale.to_rgba(numbers[known])[:, :3]
    return colours, scale


def _colours_of_labels(values: pd.Series) -> tuple[NDArray[np.float32], list[Line2D], list[str]]:
    """(n, 3), grey for rare and missing labels, and marks and texts of a legend."""
    codes, names = pd.factorize(values.astype("string"))
    frequent = np.argsort(-np.bincount(codes[codes >= 0], minlength=len(names)), kind="stable")[:_COLOURS]
    table = np.full((len(names) + 1, 3), _REST, np.float32)  # the last is that of missing labels, code -1
    table[frequent] = np.array(plt.get_cmap("tab20").colors)[: len(frequent)]  # type: ignore[attr-defined]
    marks = [Line2D([], [], linestyle="", marker="o", color=table[code]) for code in frequent]
    texts = [short(str(names[code])) for code in frequent]
    if len(names) > len(frequent) or (codes < 0).any():
        marks.append(Line2D([], [], linestyle="", marker="o", color=_GREY))
        texts.append("others or unlabelled")
    return table[codes], marks, texts


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
