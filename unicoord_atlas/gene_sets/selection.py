"""From the scores of many sets to a few that differ from each other and tell types apart.

Sets whose entropy is higher than chance; of these the ones a random forest needs most to tell types; of these one a
group of correlated sets, the one with the highest entropy.
Source: the paper, Methods, "Generation of BP features".  Shapes: n cells, s sets, t top sets, k types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import average, fcluster
from scipy.spatial.distance import squareform

from unicoord_atlas.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TREES_TOGETHER = 8


@dataclass(frozen=True)
class Groups:
    """Correlated sets."""

    correlation_tt: NDArray[np.float64]
    linkage: NDArray[np.float64]
    """As scipy writes a tree."""
    group_t: NDArray[np.int64]
    """From 1."""


def stratified_rows(codes_n: NDArray[np.integer], size: int, seed: int) -> NDArray[np.int64]:
    """Rows of labelled cells, ascending: each type by its share, and one cell at least.

    Parameters
    ----------
    codes_n
        Type of each cell, -1 where unlabelled.
    size
        How many cells; all labelled ones if there are no more.

    Raises
    ------
    DataError
        If fewer than two types are labelled.
    """
    labelled = np.flatnonzero(codes_n >= 0)
    counts_k = np.bincount(codes_n[labelled])
    if (counts_k > 0).sum() < 2:
        raise DataError("the label has fewer than two types with cells; choose a --label that tells cells apart")
    if size >= len(labelled):
        return labelled
    exact_k = counts_k * (size / len(labelled))
    take_k = np.maximum(np.floor(exact_k).astype(np.int64), counts_k > 0)
    for code in np.argsort(take_k - exact_k, kind="stable")[: max(size - int(take_k.sum()), 0)]:
        take_k[code] += 1
    rng = np.random.default_rng([seed, 0x57])
    chosen = [
        rng.choice(np.flatnonzero(codes_n == code), take, replace=False) for code, take in enumerate(take_k) if take
    ]
    return np.sort(np.concatenate(chosen))


def forest_importance(
    scores_ns: NDArray[np.float32],
    codes_n: NDArray[np.integer],
    num_trees: int,
    seed: int,
    threads: int,
    num_levels: int = 64,
) -> NDArray[np.float64]:
    """(s,) importance of each set to a random forest that tells the types; sums to 1.

    A tree has a number for each type in each node, and grows with the cells: all of 50,000 cells and 100 types would
    take tens of GiB.  So they are grown a few at a time, and only their importance is kept.

    Parameters
    ----------
    num_levels
        A split is looked for between so many quantiles of a set's scores, as histogram-based trees do: with 100 types
        64 take half of the time of looking between all scores, and change importances no more than another seed does.
        0: between all scores, as in the paper.

    Raises
    ------
    ConfigError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        raise ConfigError(
            "the random forest needs scikit-learn, which is not installed: pip install 'unicoord-atlas[gene-sets]'"
        ) from None
    importance_s = np.zeros(scores_ns.shape[1])
    levels_ns = levels(scores_ns, num_levels) if num_levels else scores_ns
    for first in range(0, num_trees, _TREES_TOGETHER):
        trees = min(_TREES_TOGETHER, num_trees - first)
        grove = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, first])))
        forest = RandomForestClassifier(trees, random_state=grove, n_jobs=threads)
        importance_s += trees * forest.fit(levels_ns, codes_n).feature_importances_
    return importance_s / num_trees


def levels(scores_ns: NDArray[np.float32], num_levels: int) -> NDArray[np.float32]:
    """(n, s) in which of so many quantiles of its set each score lies, from 0."""
    levels_ns = np.empty_like(scores_ns)
    for number, scores_n in enumerate(scores_ns.T):
        bounds = np.unique(np.quantile(scores_n, np.linspace(0, 1, num_levels + 1)[1:-1]))
        levels_ns[:, number] = np.searchsorted(bounds, scores_n, side="right")
    return levels_ns


def first_by(values_s: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the highest values, the highest first; equal ones in their order."""
    return np.argsort(-values_s, kind="stable")[:count]


def correlated_groups(scores_nt: NDArray[np.float32], num_groups: int) -> Groups:
    """Average linkage on 1 - Pearson's r, cut to so many groups.

    Raises
    ------
    DataError
        If a set has the same score in all cells: it correlates with nothing.
    """
    scores_nt = scores_nt.astype(np.float64)
    if scores_nt.shape[1] == 1:
        return Groups(np.ones((1, 1)), np.zeros((0, 4)), np.ones(1, np.int64))
    if (constant := np.flatnonzero(scores_nt.std(axis=0) == 0)).size:
        raise DataError(f"top set number {constant[0]} has one score in all cells; ask for fewer --top sets")
    correlation_tt = np.clip(np.corrcoef(scores_nt, rowvar=False), -1, 1)
    distance_tt = 1 - (correlation_tt + correlation_tt.T) / 2
    np.fill_diagonal(distance_tt, 0)
    linkage = average(squareform(distance_tt, checks=False))
    return Groups(correlation_tt, linkage, fcluster(linkage, num_groups, "maxclust").astype(np.int64))


def highest_of_groups(group_t: NDArray[np.int64], entropy_t: NDArray[np.float64]) -> NDArray[np.int64]:
    """Position of the set with the highest entropy in each group, ascending; of equal ones the first."""
    best = [
        int(np.flatnonzero(group_t == group)[np.argmax(entropy_t[group_t == group])]) for group in np.unique(group_t)
    ]
    return np.array(sorted(best), np.int64)
