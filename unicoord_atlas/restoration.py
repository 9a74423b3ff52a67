"""How well a level of a coordinate that was left out of training is restored.  Source: the paper, "Restoration".

All correlations are Pearson's over genes (PCC), of log-normalized values.
Shapes: n cells, g genes, l levels, r random halves, c coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linprog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

HALVES = 10


@dataclass(frozen=True, slots=True)
class LevelMeans:
    """Mean profile of each level, and of random halves of its cells."""

    mean_lg: NDArray[np.float64]
    cells_l: NDArray[np.int64]
    halves_r2lg: NDArray[np.float64]
    """(r, 2, l, g): the two halves of each of r random cuts."""

    def rest(self, level: int) -> NDArray[np.float64]:
        """(g,) mean of all cells of the other levels."""
        others = np.arange(len(self.cells_l)) != level
        mean: NDArray[np.float64] = self.cells_l[others] @ self.mean_lg[others] / self.cells_l[others].sum()
        return mean


def level_means(
    blocks: Iterable[tuple[NDArray[np.int64], sp.csr_matrix]],
    level_of_cell: NDArray[np.int32],
    num_levels: int,
    seed: int,
) -> LevelMeans:
    """One pass over cells.

    Parameters
    ----------
    blocks
        Positions of some cells and their (n, g) values.
    level_of_cell
        Level of every cell, -1 for those of none.
    """
    half = np.random.default_rng(seed).integers(0, 2, (len(level_of_cell), HALVES))
    sums, counts = 0.0, np.bincount(level_of_cell[level_of_cell >= 0], minlength=num_levels)
    sides = np.stack(
        [
            np.bincount(2 * level_of_cell[level_of_cell >= 0] + half[level_of_cell >= 0, r], minlength=2 * num_levels)
            for r in range(HALVES)
        ]
    )
    for rows, values_ng in blocks:
        known = level_of_cell[rows] >= 0
        group_nr = 2 * level_of_cell[rows][known, None] + half[rows][known] + 2 * num_levels * np.arange(HALVES)
        at = np.repeat(np.flatnonzero(known), HALVES)
        shape = (2 * num_levels * HALVES, len(rows))
        members = sp.csr_matrix((np.ones(len(at)), (group_nr.ravel(), at)), shape=shape)
        sums = sums + (members @ values_ng).toarray()
    by_half = np.asarray(sums).reshape(HALVES, num_levels, 2, -1)
    mean = by_half[0].sum(axis=1) / np.maximum(counts, 1)[:, None]
    halves = by_half / np.maximum(sides.reshape(HALVES, num_levels, 2, 1), 1)
    return LevelMeans(mean, counts, halves.transpose(0, 2, 1, 3))


def pcc(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlation of the last axes; 0 where either is constant."""
    a, b = (x.astype(np.float64) - x.mean(axis=-1, keepdims=True, dtype=np.float64) for x in (a, b))
    norm = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    result: NDArray[np.float64] = np.where(norm > 0, (a * b).sum(axis=-1) / np.where(norm > 0, norm, 1), 0.0)
    return result


def interpolation_weights(target_c: NDArray[np.floating], known_lc: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """Weights of the known levels whose mean coordinates are the target's, on levels as near as can be.

    In one dimension these are the two neighbours.  Of all weights w >= 0 with sum 1 and w known = target, those with
    the least sum of w times squared distance; None where the target lies outside of all known levels.
    """
    scale = np.maximum(np.ptp(known_lc, axis=0), 1e-12)
    known, target = known_lc / scale, target_c / scale
    distance = ((known - target) ** 2).sum(axis=1)
    conditions = np.concatenate([known.T, np.ones((1, len(known)))])
    found = linprog(distance, A_eq=conditions, b_eq=np.append(target, 1.0), bounds=(0, None))
    weights: NDArray[np.float64] | None = found.x if found.success else None
    return weights


@dataclass(frozen=True, slots=True)
class Scores:
    """PCC of a level's mean, of its difference from the mean of the remaining levels, and of single cells."""

    mean: float
    difference: float
    cells: float | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """One level: restored, what else one could have said, and the best that can be expected."""

    restored: Scores
    neighbour: Scores
    interpolation: Scores | None
    ceiling: Scores
    """One random half of the level's real cells against the other, mean of ten cuts."""
    nearest: int
    """The level whose mean the restored mean is most alike."""
    pcc_l: tuple[float, ...]
    """Of the restored mean with each level's mean."""


def score_restored(
    level: int,
    restored_mean_g: NDArray[np.floating],
    restored_cells: float,
    ceiling_cells: float,
    means: LevelMeans,
    coordinates_lc: NDArray[np.floating],
) -> Restored:
    """Compare with the real level.

    Parameters
    ----------
    restored_cells, ceiling_cells
        Mean PCC of single restored and single real cells with the level's mean.
    coordinates_lc
        Mean coordinates of each level.
    """
    truth, rest = means.mean_lg[level], means.rest(level)

    def scores(profile_g: NDArray[np.floating], cells: float | None = None) -> Scores:
        return Scores(float(pcc(profile_g, truth)), float(pcc(profile_g - rest, truth - rest)), cells)

    others = np.flatnonzero(np.arange(len(coordinates_lc)) != level)
    scale = np.maximum(np.ptp(coordinates_lc, axis=0), 1e-12)
    distance = (((coordinates_lc[others] - coordinates_lc[level]) / scale) ** 2).sum(axis=1)
    weights = interpolation_weights(coordinates_lc[level], coordinates_lc[others])
    one, other = means.halves_r2lg[:, 0, level], means.halves_r2lg[:, 1, level]
    pcc_l = pcc(restored_mean_g, means.mean_lg)
    return Restored(
        scores(restored_mean_g, restored_cells),
        scores(means.mean_lg[others[distance.argmin()]]),
        None if weights is None else scores(weights @ means.mean_lg[others]),
        Scores(float(pcc(one, other).mean()), float(pcc(one - rest, other - rest).mean()), ceiling_cells),
        int(pcc_l.argmax()),
        tuple(pcc_l.tolist()),
    )
