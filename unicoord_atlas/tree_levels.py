"""Levels of a tree above a column of labels: each label's ancestors at some depth become a coarser column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from .label_tree import LabelTree

OTHER = ("other", "others")
"""Names of what is no type: they have no place in a tree."""


def level_columns(tree: LabelTree, labels: pd.Series, num_levels: int) -> dict[str, pd.Series]:
    """Coarser columns, the coarsest first, by their names.

    Depth counts from where the tree of the labels that occur first branches, along the longest way, and a depth that
    tells labels apart no better than the one before is passed over.  A cell whose label has two ancestors at a level is
    unlabelled there; the hierarchical loss gives its probability to both.

    Parameters
    ----------
    labels
        The label of each cell, missing where unlabelled.
    num_levels
        The coarsest so many.

    Raises
    ------
    DataError
        If a label is not in the tree.
    ConfigError
        If the tree has no level above the labels that tells any apart.
    """
    column = str(labels.name)
    texts = labels.astype("string")
    nodes = {
        str(label): tree.find(str(label), column)
        for label in sorted(texts.dropna().unique())
        if str(label).lower() not in OTHER
    }
    columns: dict[str, pd.Series] = {}
    for above in _cuts(tree, nodes)[:num_levels]:
        name = f"{column}_level{len(columns) + 1}"
        titles = {
            label: tree.title_of[next(iter(shares))]
            for label, shares in above.items()
            if len(shares) == 1  # of one with two ancestors no one can say which
        }
        columns[name] = texts.map(titles).astype("category").rename(name)
    if not columns:
        raise ConfigError(
            f"{tree.where}: no level above the {len(nodes)} labels of {column!r} tells any of them apart; "
            "leave out --hierarchy"
        )
    return columns


def _cuts(tree: LabelTree, nodes: Mapping[str, str]) -> list[dict[str, dict[str, float]]]:
    """Shares of each label in the nodes of each useful level, from the top."""
    depth = _depths(tree, tree.ancestors(list(nodes.values())))
    cuts: list[dict[str, dict[str, float]]] = []
    for level in range(max(depth.values(), default=0) + 1):
        frontier = {node for node, at in depth.items() if at <= level}
        known: dict[str, dict[str, float]] = {}
        above = {label: tree.shares(node, frontier, known) for label, node in nodes.items()}
        num_alone = len({next(iter(shares)) for shares in above.values() if len(shares) == 1})
        if 1 < num_alone < len(set(nodes.values())) and not (cuts and _same_parts(cuts[-1], above)):
            cuts.append(above)
    return cuts


def _same_parts(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether two levels tell the same labels apart, by whatever names."""
    pairs = {(tuple(sorted(one[label])), tuple(sorted(other[label]))) for label in one}
    return len(pairs) == len({left for left, _ in pairs}) == len({right for _, right in pairs})


def _depths(tree: LabelTree, nodes: set[str]) -> dict[str, int]:
    """Longest way from a root to each node, over nodes that all lie above some label."""
    depth: dict[str, int] = {}
    left: Sequence[str] = sorted(nodes)
    while left:
        ready = [node for node in left if all(parent in depth for parent in tree.parents[node])]
        for node in ready:
            depth[node] = 1 + max((depth[parent] for parent in tree.parents[node]), default=-1)
        left = [node for node in left if node not in depth]
    return depth
