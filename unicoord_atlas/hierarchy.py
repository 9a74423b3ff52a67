"""Levels of labels that are tied: which parent categories each child category belongs to.

Shapes: k children, p parents.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import ConfigError, DataError
from .tree_levels import OTHER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .label_tree import LabelTree
    from .schema import LabelColumn


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Two discrete dimensions of which one refines the other."""

    parent: str
    child: str
    parents_kp: NDArray[np.float32]
    """Share of each child that belongs to each parent; rows sum to 1."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What `latent.hierarchy` says: columns from coarse to fine, and the tree that ties them."""

    columns: tuple[str, ...]
    tree: str = ""
    """A file; empty if cells themselves show which label belongs to which."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each column and the next finer one."""
        return tuple(itertools.pairwise(self.columns))


def parse_hierarchy(texts: Sequence[str], discrete: Sequence[str] = ()) -> tuple[Chain, ...]:
    """Read "cell_class > cell_type", "FILE", "FILE: cell_type" or "FILE: cell_class > cell_type".

    A file alone is about the first of the `discrete` columns.
    """
    chains = []
    for text in texts:
        file, colon, rest = text.partition(": ")
        if not colon:
            file, rest = ("", text) if ">" in text else (text, discrete[0] if discrete else "")
        columns = tuple(part.strip() for part in rest.split(">"))
        is_file = bool(file) and Path(file).is_file()
        if not all(columns) or (file and not is_file) or (not file and len(columns) < 2):
            raise ConfigError(
                f'latent.hierarchy: {text!r} is no hierarchy: write "parent_column > child_column", or a file with a '
                'tree of labels, "FILE" or "FILE: column"' + (f"; there is no file {file!r}" if file else "")
            )
        chains.append(Chain(columns, file.strip()))
    return tuple(chains)


def hierarchy_of_columns(
    parent: LabelColumn, child: LabelColumn, parent_codes: NDArray[np.int32], child_codes: NDArray[np.int32]
) -> Hierarchy:
    """The tree that two label columns of the same cells spell.

    A folded category "other" is shared out among its parents as its cells are; a child never seen with a parent is
    shared out evenly.  DataError names a child with two parents.
    """
    seen = _seen_together(parent, child, parent_codes, child_codes)
    for code in np.flatnonzero((seen > 0).sum(axis=1) > 1):
        name = child.categories[code]
        if name.lower() not in OTHER:
            parents = ", ".join(
                f"{parent.categories[p]!r} ({int(seen[code, p])} cells)" for p in np.flatnonzero(seen[code])
            )
            raise DataError(f"hierarchy {parent.name} > {child.name}: {name!r} has more than one parent: {parents}")
    return Hierarchy(parent.name, child.name, _as_shares(seen))


def hierarchy_of_tree(
    tree: LabelTree,
    parent: LabelColumn,
    child: LabelColumn,
    parent_codes: NDArray[np.int32],
    child_codes: NDArray[np.int32],
    made: bool = False,
) -> Hierarchy:
    """What a tree says of two label columns: a child with two parents gives half to each.

    A folded category "other" takes what belongs to parents that were folded, and is shared out as its cells are.
    Where the parents were `made` of the tree, a child may have ancestors that are no one's only ones, and so no
    categories: it is shared out evenly.

    Raises
    ------
    DataError
        If a label is not in the tree, has no ancestor among the parents, or a cell's two labels contradict the tree.
    """
    seen = _seen_together(parent, child, parent_codes, child_codes)
    places = {tree.find(name, parent.name): p for p, name in enumerate(parent.categories) if name.lower() not in OTHER}
    above = {*places, *(tree.find(name, parent.name) for name in parent.folded)}
    other = next((p for p, name in enumerate(parent.categories) if name.lower() in OTHER), None)
    shares, known = seen.copy(), dict[str, dict[str, float]]()
    for code, name in enumerate(child.categories):
        if name.lower() in OTHER:
            continue
        shares[code] = 0
        for node, share in tree.shares(tree.find(name, child.name), above, known).items():
            shares[code, places.get(node, other)] += share
        strange = np.flatnonzero((seen[code] > 0) & (shares[code] == 0))
        if len(strange) or not (made or shares[code].any()):
            above_it = f"any of the labels of {parent.name!r}"
            if len(strange):
                above_it = f"{parent.categories[strange[0]]!r}, as {int(seen[code, strange[0]])} cells say"
            raise DataError(f"{tree.where}: {name!r} of {child.name!r} does not lie below {above_it}")
    return Hierarchy(parent.name, child.name, _as_shares(shares))


def _seen_together(
    parent: LabelColumn, child: LabelColumn, parent_codes: NDArray[np.int32], child_codes: NDArray[np.int32]
) -> NDArray[np.float64]:
    """(k, p) cells with each pair of labels."""
    both = (parent_codes >= 0) & (child_codes >= 0)
    seen = np.zeros((len(child.categories), len(parent.categories)))
    np.add.at(seen, (child_codes[both], parent_codes[both]), 1)
    return seen


def _as_shares(weights_kp: NDArray[np.float64]) -> NDArray[np.float32]:
    weights_kp = np.where(weights_kp.sum(axis=1, keepdims=True) == 0, 1.0, weights_kp)
    shares_kp: NDArray[np.float32] = (weights_kp / weights_kp.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares_kp
