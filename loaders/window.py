"""A window: the cells that are in memory together, and the batches cut from it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unicoord_atlas.batch import SparseRows

from .plan import WindowPlan, expand_ranges, find_runs
from .store import CellStore, CsrBuffer, CsrRows

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Window:
    """Counts of a window's cells, in the order they were read, and the order in which they are delivered."""

    counts: CsrRows
    rows: NDArray[np.int64]
    """(k,) rows of the store, in the order of delivery."""
    order: NDArray[np.int64]
    weights: NDArray[np.float32]
    num_genes: int

    def batch_counts(self, start: int, stop: int, memory: BatchMemory) -> SparseRows:
        """Counts of the start-th to stop-th cell to deliver; a copy."""
        taken = take_rows(self.counts, self.order[start:stop], memory)
        return SparseRows(
            torch.from_numpy(taken.indptr),
            torch.from_numpy(taken.indices),
            torch.from_numpy(taken.data),
            self.num_genes,
        )


def read_window(store: CellStore, plan: WindowPlan, rows: NDArray[np.int64] | None, buffer: CsrBuffer) -> Window:
    """Read a window; `rows` maps positions to rows of the store, None if they are the same."""
    read = expand_ranges(plan.ranges)
    ranges = plan.ranges
    if rows is not None:
        read = rows[read]
        ranges = find_runs(read)
    counts = store.read_ranges(ranges, buffer)
    return Window(counts, read[plan.order], plan.order, plan.weights, store.n_vars)


def take_rows(counts: CsrRows, picks: NDArray[np.int64], memory: BatchMemory) -> CsrRows:
    """The picked rows, in the order given; copies.

    A slice a run of rows: an index a non-zero, as fancy indexing needs, would cost ten times as much.
    """
    indptr = np.zeros(len(picks) + 1, np.int64)
    np.cumsum(counts.indptr[picks + 1] - counts.indptr[picks], out=indptr[1:])
    starts, stops = counts.indptr[
        find_runs(picks)
    ].T.tolist()  # flat lists: objects that hold others wake the collector
    indices, data = (memory.array(int(indptr[-1]), stored.dtype) for stored in (counts.indices, counts.data))
    for stored, taken in ((counts.indices, indices), (counts.data, data)):
        np.concatenate([stored[start:stop] for start, stop in zip(starts, stops, strict=True)], out=taken)
    return CsrRows(indptr, indices, data)


class BatchMemory:
    """Memory for batches that is used again once nobody refers to it: page faults would double the cost of a copy."""

    _KEPT = 8
    _UNUSED = 3  # references: the list, the loop's name, and the argument of getrefcount

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint8]] = []

    def array(self, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of any content; it may be kept for as long as one likes."""
        needed = length * dtype.itemsize
        for block in self._blocks:
            if len(block) >= needed and sys.getrefcount(block) == self._UNUSED:
                return block[:needed].view(dtype)
        fresh = np.empty(needed + needed // 4, np.uint8)  # the next batch may be somewhat larger
        self._blocks = [*self._blocks[1 - self._KEPT :], fresh]
        return fresh[:needed].view(dtype)
