"""Trees of labels: which parent category each child category belongs to.  Shapes: k children, p parents."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .schema import LabelColumn


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Two discrete dimensions of which one refines the other."""

    parent: str
    child: str
    parents_kp: NDArray[np.float32]
    """Share of each child that belongs to each parent; rows sum to 1."""


def parse_hierarchy(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """("cell_class > cell_type",) to (("cell_class", "cell_type"),); "a > b > c" gives each neighbouring pair."""
    pairs: list[tuple[str, str]] = []
    for text in texts:
        levels = [part.strip() for part in text.split(">")]
        if len(levels) < 2 or not all(levels):
            raise ConfigError(f'latent.hierarchy: {text!r} is no hierarchy; write it as "parent_column > child_column"')
        pairs += list(itertools.pairwise(levels))
    return tuple(pairs)


def hierarchy_of_columns(
    parent: LabelColumn, child: LabelColumn, parent_codes: NDArray[np.int32], child_codes: NDArray[np.int32]
) -> Hierarchy:
    """The tree that two label columns of the same cells spell.

    A folded category "other" is shared out among its parents as its cells are; a child never seen with a parent is
    shared out evenly.  DataError names a child with two parents.
    """
    both = (parent_codes >= 0) & (child_codes >= 0)
    seen = np.zeros((len(child.categories), len(parent.categories)))
    np.add.at(seen, (child_codes[both], parent_codes[both]), 1)
    for code in np.flatnonzero((seen > 0).sum(axis=1) > 1):
        name = child.categories[code]
        if name.lower() not in ("other", "others"):
            parents = ", ".join(
                f"{parent.categories[p]!r} ({int(seen[code, p])} cells)" for p in np.flatnonzero(seen[code])
            )
            raise DataError(f"hierarchy {parent.name} > {child.name}: {name!r} has more than one parent: {parents}")
    seen[seen.sum(axis=1) == 0] = 1
    shares = (seen / seen.sum(axis=1, keepdims=True)).astype(np.float32)
    return Hierarchy(parent.name, child.name, shares)
