"""Nearest points of other points: of a query's cells among a reference's.

Shapes: m queries, n points, d dimensions, k neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .knn import ExactSearch, FlatSearch, Search, direct_distances, needs_lists

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPARE = 8
"""Candidates beyond k: those that rounding would put just outside."""


def search_all(points_nd: NDArray[np.float32], num_queries: int) -> Search:
    """Compare every query with every point: by numpy where pairs are few, by faiss where they are many."""
    return FlatSearch(points_nd) if needs_lists(num_queries, len(points_nd)) else ExactSearch(points_nd)


def query_nearest(
    points_nd: NDArray[np.float32], queries_md: NDArray[np.float32], search: Search, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(m, k) rows of the nearest points and their Euclidean distances, nearest first; all points if there are fewer.

    A search in lists may come back with fewer than k; those queries are compared with every point.
    """
    queries_md = np.ascontiguousarray(queries_md, np.float32)
    count = min(k + _SPARE, len(points_nd))
    found_mc = search.candidates(queries_md, count)
    short_m = (found_mc < 0).any(axis=1)
    if short_m.any():
        found_mc[short_m] = ExactSearch(points_nd).candidates(queries_md[short_m], count)
    distances_mc = direct_distances(points_nd, queries_md, found_mc)
    order = np.lexsort((found_mc, distances_mc), axis=1)[:, :k]
    return np.take_along_axis(found_mc, order, axis=1), np.take_along_axis(distances_mc, order, axis=1)
