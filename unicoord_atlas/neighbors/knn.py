"""Nearest neighbours of points: by comparing all where there are few, by inverted lists (faiss) where there are many.

Both only propose candidates; distances are then computed directly, so that twins are at distance 0 and the order is
right to the last bit.  Shapes: m queries, n points, d dimensions, c candidates, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from unicoord_atlas.errors import DataError

from .lists import SEARCHED_APART, ListSearch, import_faiss

if TYPE_CHECKING:
    from numpy.typing import NDArray

Metric = Literal["euclidean", "cosine"]

MOST_COMPARISONS = 1_000_000_000
"""All are compared up to so many pairs: 31,600 cells with each other."""
_SPARE = 8
"""Candidates beyond k: those that rounding would put just outside."""
_TILE_FLOATS = 1 << 23
_GATHERED_FLOATS = 1 << 18
_PROBES = [2, 3, 4, 5, 6, 7, *(m << e for e in range(1, 5) for m in (4, 5, 6, 7)), *(1 << e for e in range(7, 13))]
_BLOCK = 1 << 16
"""Points that are read from a file together."""
MANY_PROBES = 16
"""Lists from which on codes are worth a trial: to make them takes as long as to look into a few."""
_MOST_MORE = 1.5
_POOLS = (4, 6, 8)
"""Candidates for each neighbour."""


class Points(Protocol):
    """(n, d) float32: an array, or a file that is read where it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    def __getitem__(self, rows: slice | NDArray[np.int64], /) -> NDArray[np.float32]:
        """These points."""
        ...


class Search(Protocol):
    """Proposes candidates among points that it knows."""

    def candidates(self, queries_md: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """(m, count) indices of points, about the nearest, in any order; -1 where there are no more."""
        ...


@dataclass(frozen=True, slots=True)
class ExactSearch:
    """Compares a query with every point."""

    points_nd: NDArray[np.float32]

    def candidates(self, queries_md: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The nearest, but for rounding."""
        num_points = len(self.points_nd)
        count = min(count, num_points)
        half_norms_n = 0.5 * np.einsum("nd,nd->n", self.points_nd, self.points_nd)
        found = np.empty((len(queries_md), count), np.int64)
        rows = max(_TILE_FLOATS // num_points, 1)
        for start in range(0, len(queries_md), rows):
            nearness = half_norms_n - queries_md[start : start + rows] @ self.points_nd.T
            found[start : start + rows] = np.argpartition(nearness, count - 1, axis=1)[:, :count]
        return found


@dataclass(frozen=True, slots=True)
class FlatSearch:
    """Compares a query with every point, by faiss: the same as `ExactSearch`, faster where points are many."""

    points_nd: Points

    def candidates(self, queries_md: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The nearest, but for rounding; a block of points at a time, so that they may lie in a file."""
        faiss, num_points = import_faiss(), self.points_nd.shape[0]
        away = np.empty((len(queries_md), 0), np.float32)
        found = np.empty((len(queries_md), 0), np.int64)
        for start in range(0, num_points, _BLOCK):
            block_nd = np.ascontiguousarray(self.points_nd[start : start + _BLOCK])
            away_mc, found_mc = faiss.knn(queries_md, block_nd, min(count, len(block_nd)))
            away = np.concatenate([away, away_mc], axis=1)
            found = np.concatenate([found, found_mc + start], axis=1)
            if found.shape[1] > count:
                kept = np.argpartition(away, count - 1, axis=1)[:, :count]
                away, found = np.take_along_axis(away, kept, axis=1), np.take_along_axis(found, kept, axis=1)
        return found


def needs_lists(num_queries: int, num_points: int) -> bool:
    """Whether comparing all pairs would take too long."""
    return num_queries * num_points > MOST_COMPARISONS


def nearest(
    points_nd: Points,
    queries_m: NDArray[np.int64],
    members_n: NDArray[np.int64] | None,
    search: Search,
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(m, k) neighbours of some of the points and their Euclidean distances, nearest first, itself left out.

    Parameters
    ----------
    points_nd
        All points.
    queries_m
        Rows of the points that are asked for.
    members_n
        The points that may be neighbours, which `search` counts from 0; None if they are all.
    """
    queries_md = np.ascontiguousarray(points_nd[queries_m])
    num_members = points_nd.shape[0] if members_n is None else len(members_n)
    found_mc = search.candidates(queries_md, min(k + 1 + _SPARE, num_members))
    short = (found_mc < 0).sum(axis=1) > found_mc.shape[1] - k - 1
    if short.any():  # lists so small that a query's hold too few points
        inside = points_nd if members_n is None else points_nd[members_n]
        found_mc[short] = FlatSearch(inside).candidates(queries_md[short], found_mc.shape[1])
    missing_mc = found_mc < 0
    rows_mc = found_mc if members_n is None else members_n[found_mc]
    distances_mc = direct_distances(points_nd, queries_md, np.where(missing_mc, 0, rows_mc))
    distances_mc[missing_mc | (rows_mc == queries_m[:, None])] = np.inf
    if distances_mc.shape[1] > 2 * (k + 1 + _SPARE):  # to put all of a pool in order would take as long as to find it
        kept = np.argpartition(distances_mc, k + _SPARE, axis=1)[:, : k + 1 + _SPARE]
        rows_mc = np.take_along_axis(rows_mc, kept, axis=1)
        distances_mc = np.take_along_axis(distances_mc, kept, axis=1)
    order = np.lexsort((rows_mc, distances_mc), axis=1)[:, :k]
    return np.take_along_axis(rows_mc, order, axis=1), np.take_along_axis(distances_mc, order, axis=1)


def direct_distances(
    points_nd: Points, queries_md: NDArray[np.float32], rows_mc: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(m, c) Euclidean distances of each query to its own points."""
    distances_mc = np.empty(rows_mc.shape, np.float32)
    step = max(_GATHERED_FLOATS // (rows_mc.shape[1] * points_nd.shape[1]), 1)
    for start in range(0, len(rows_mc), step):
        part = slice(start, start + step)
        away_mcd = points_nd[rows_mc[part]]
        away_mcd -= queries_md[part, None]
        distances_mc[part] = np.sqrt(np.einsum("mcd,mcd->mc", away_mcd, away_mcd))
    return distances_mc


def recall(found_mk: NDArray[np.float32], true_mk: NDArray[np.float32]) -> float:
    """Share of the neighbours found that are no farther than the truly k-th nearest: among twins any will do."""
    return float((found_mk <= true_mk[:, -1:] * (1 + 1e-6)).mean())


def true_distances(
    points_nd: Points, queries_m: NDArray[np.int64], members_n: NDArray[np.int64] | None, k: int
) -> NDArray[np.float32]:
    """(m, k) distances to the true neighbours, by comparing each query with every point."""
    inside_nd = points_nd if members_n is None else points_nd[members_n]
    return nearest(points_nd, queries_m, members_n, FlatSearch(inside_nd), k)[1]


@dataclass(frozen=True, slots=True)
class Trial:
    """Queries whose true neighbours are known: on them it is chosen how to search."""

    points_nd: Points
    queries_m: NDArray[np.int64]
    members_n: NDArray[np.int64] | None
    truth_mk: NDArray[np.float32]
    wanted: float
    """Share of the true neighbours that a search has to find."""

    @classmethod
    def of(
        cls, points_nd: Points, queries_m: NDArray[np.int64], members_n: NDArray[np.int64] | None, k: int, wanted: float
    ) -> Trial:
        """Compare these queries with every point."""
        return cls(points_nd, queries_m, members_n, true_distances(points_nd, queries_m, members_n, k), wanted)

    def passed(self, search: Search) -> bool:
        """Whether a search finds enough."""
        k = self.truth_mk.shape[1]
        found_mk = nearest(self.points_nd, self.queries_m, self.members_n, search, k)[1]
        return recall(found_mk, self.truth_mk) >= self.wanted


def choose_probes(trial: Trial, index: Any) -> int:
    """The fewest lists of an index to look into for the recall that is wanted.

    Raises
    ------
    DataError
        If not even all lists are enough, which only a wanted recall above 1 can bring about.
    """
    num_lists = int(index.nlist)
    for probes in (*(p for p in _PROBES if p < num_lists), num_lists):
        if trial.passed(ListSearch(index, probes, SEARCHED_APART)):
            return probes
    raise DataError(f"a recall of {trial.wanted} cannot be reached by looking into all {num_lists} lists")


def choose_pool(trial: Trial, coded: Any, probes: int) -> tuple[int, int] | None:
    """How many lists of codes to look into, and how many points to take out of them to compare the distances of.

    None if codes do not tell enough, as where points are dense: so many that have the same code as the neighbours.

    Parameters
    ----------
    probes
        As many as are enough for the points themselves.
    """
    k = trial.truth_mk.shape[1]
    for more in (p for p in (probes, *_PROBES) if probes <= p <= _MOST_MORE * probes and p <= coded.nlist):
        for pool in (wide * (k + 1) for wide in _POOLS):
            if trial.passed(ListSearch(coded, more, SEARCHED_APART, pool)):
                return more, pool
    return None


def unit_rows(points_nd: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points of length 1, whose Euclidean neighbours are the cosine neighbours; one of length 0 stays."""
    lengths_n1 = np.sqrt(np.einsum("nd,nd->n", points_nd, points_nd))[:, None]
    lengths_n1[lengths_n1 == 0] = 1
    units_nd: NDArray[np.float32] = np.divide(points_nd, lengths_n1, dtype=np.float32)
    return units_nd
