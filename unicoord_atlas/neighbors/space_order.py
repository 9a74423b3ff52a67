"""An order of points in which those that lie close in space stand close: halves of halves, as in a k-d tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .knn import Points

_SAMPLE = 4_096
"""Points of a part that say along which dimension it is widest."""
_ROWS = 1 << 16
"""Points that are in memory together, where they lie in a file."""


def split_order(points_nd: Points, leaf: int = 64) -> NDArray[np.int64]:
    """(n,) rows of the points in their new order.

    Each part is halved at the median of the dimension in which it is widest, until `leaf` points are left; a part keeps
    the order that it had.  Depends on the points only.
    """
    order = np.arange(points_nd.shape[0])
    for start, stop in _split(points_nd, order, max(leaf, _ROWS)):
        # Read once, ascending: a file would be gone through again for each of a thousand small parts.
        rows = order[start:stop].copy()
        inside = np.arange(len(rows))
        _split(points_nd[rows], inside, leaf)
        order[start:stop] = rows[inside]
    return order


def _split(points_nd: Points, order: NDArray[np.int64], leaf: int) -> list[tuple[int, int]]:
    """Put the rows in order, and return start and stop of its parts of at most `leaf` rows."""
    parts, leaves = [(0, len(order))], []
    while parts:
        start, stop = parts.pop()
        if stop - start <= leaf:
            leaves.append((start, stop))
            continue
        rows = order[start:stop]
        sample_sd = points_nd[rows[:: max(1, len(rows) // _SAMPLE)]]
        widest = int(np.argmax(np.var(sample_sd, axis=0, dtype=np.float64)))
        blocks = range(0, len(rows), _ROWS)
        values = np.concatenate([points_nd[rows[first : first + _ROWS]][:, widest].copy() for first in blocks])
        middle = len(rows) // 2
        halves = np.argpartition(values, middle, kind="introselect")
        halves[:middle].sort()
        halves[middle:].sort()
        order[start:stop] = rows[halves]
        parts += [(start, start + middle), (start + middle, stop)]
    return leaves
