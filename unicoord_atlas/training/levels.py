"""Which label columns of a run are levels of one another: those that settings name, or made from a tree in a file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unicoord_atlas.columns import require_column
from unicoord_atlas.hierarchy import Hierarchy, hierarchy_of_columns, hierarchy_of_tree, parse_hierarchy
from unicoord_atlas.label_tree import LabelTree, read_tree
from unicoord_atlas.tree_levels import level_columns

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from unicoord_atlas.config import LatentConfig
    from unicoord_atlas.schema import LabelColumn


@dataclass(frozen=True)
class TiedLevels:
    """Pairs of columns, and an obs that has them all."""

    obs: pd.DataFrame
    trees: dict[tuple[str, str], LabelTree | None]
    """The tree of each pair of a parent and a child column; None if cells show which label belongs to which."""
    made: frozenset[str]
    """Columns that were made of a tree."""
    remarks: tuple[str, ...]


def tied_levels(config: LatentConfig, obs: pd.DataFrame) -> TiedLevels:
    """Read the trees that `latent.hierarchy` names, and make the levels that are not columns yet."""
    trees: dict[tuple[str, str], LabelTree | None] = {}
    remarks: list[str] = []
    new: set[str] = set()
    for chain in parse_hierarchy(config.hierarchy, config.discrete):
        if not chain.tree:
            trees |= dict.fromkeys(chain.pairs)
            continue
        tree = read_tree(Path(chain.tree))
        columns = list(chain.columns)
        if len(columns) == 1:
            made = level_columns(tree, require_column(obs, columns[0]), config.hierarchy_levels)
            obs = obs.assign(**made)
            columns = [*made, columns[0]]
            new |= set(made)
        trees |= dict.fromkeys(itertools.pairwise(columns), tree)
        remarks += _remarks(tree)
    return TiedLevels(obs, trees, frozenset(new), tuple(remarks))


def hierarchy_between(
    levels: TiedLevels,
    parent: LabelColumn,
    child: LabelColumn,
    parent_codes: NDArray[np.int32],
    child_codes: NDArray[np.int32],
) -> Hierarchy:
    """Shares of the children in the parents, by their tree or by the cells."""
    tree = levels.trees[parent.name, child.name]
    if tree is None:
        return hierarchy_of_columns(parent, child, parent_codes, child_codes)
    return hierarchy_of_tree(tree, parent, child, parent_codes, child_codes, parent.name in levels.made)


def _remarks(tree: LabelTree) -> list[str]:
    many = [
        f"{tree.title_of[n]} ({', '.join(tree.title_of[p] for p in tree.parents[n])})" for n in tree.with_many_parents
    ]
    if not many:
        return []
    shown = "; ".join(many[:20]) + (f"; and {len(many) - 20} more" if len(many) > 20 else "")
    return [f"{tree.where}: {len(many)} labels have more than one parent and contribute to each: {shown}"]
