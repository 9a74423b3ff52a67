"""Restored levels as a table of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unicoord_atlas.restoration import Restored, Scores

_METHODS = ("restored", "neighbour", "interpolation", "ceiling")
_LEGEND = """PCC over genes with the real level that was left out of training.
mean: of the mean profiles; difference: of what sets the level apart from the mean of the remaining levels.
neighbour: the nearest remaining level, copied; interpolation: of the neighbouring means; ceiling: one half of the real
level's cells against the other.  cells: single cells against the level's mean, restored and real.
"""


def restored_table(names: Sequence[str], results: Mapping[int, Restored]) -> str:
    """A line a level, then what the columns are."""
    rows = [("level", *(f"mean {m}" for m in _METHODS), *(f"difference {m}" for m in _METHODS), "cells", "nearest")]
    for level, result in results.items():
        each: list[Scores | None] = [getattr(result, method) for method in _METHODS]
        rows.append(
            (
                names[level],
                *(f"{scores.mean:.4f}" if scores else "-" for scores in each),
                *(f"{scores.difference:.4f}" if scores else "-" for scores in each),
                f"{result.restored.cells:.3f}/{result.ceiling.cells:.3f}",
                names[result.nearest],
            )
        )
    # Two lines of heads: "mean restored" would make each column twice as wide as its numbers.
    heads = [head.split(" ") if " " in head else ["", head] for head in rows[0]]
    lines = [[head[0] for head in heads], [head[1] for head in heads], *rows[1:]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([*text, "", _LEGEND])
