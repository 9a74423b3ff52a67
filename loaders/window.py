"""A window: the cells that are in memory together, and the batches cut from it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from unicoord_atlas.batch import SparseRows

from .plan import WindowPlan, expand_ranges, find_runs
from .store_files import READ_THREADS
from .take_rows import take_entries, take_rows, taken_indptr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

    from .store import CellStore, CsrBuffer

_COPYING = min(READ_THREADS, 4)
"""Threads that copy rows into a minibatch: few, for each must wait for Python's lock again and again."""


@dataclass(frozen=True, slots=True)
class Window:
    """Counts of a window's cells, in the order they were read, and the order in which they are delivered."""

    counts: CsrBlock
    rows: NDArray[np.int64]
    """(k,) rows of the store, in the order of delivery."""
    order: NDArray[np.int64]
    weights: NDArray[np.float32]
    num_genes: int

    def batch_counts(self, start: int, stop: int, pinned: bool = False) -> SparseRows:
        """Counts of the start-th to stop-th cell to deliver; a copy, in pinned memory if a GPU is to fetch it."""
        picks = self.order[start:stop]
        if not pinned:
            taken = take_rows(self.counts, picks)
            indptr, indices, data = map(torch.from_numpy, (taken.indptr, taken.indices, taken.data))
            return SparseRows(indptr, indices, data, self.num_genes)
        ends = taken_indptr(self.counts, picks)
        indices, data = (self._pinned(values, picks, ends) for values in (self.counts.indices, self.counts.data))
        return SparseRows(torch.from_numpy(ends), indices, data, self.num_genes)

    def _pinned(self, values: NDArray[Any], picks: NDArray[np.int64], indptr: NDArray[np.int64]) -> torch.Tensor:
        copy = torch.empty(int(indptr[-1]), dtype=_torch_type(values.dtype), pin_memory=True)
        _take_into(copy.numpy(), self.counts.indptr, values, picks, indptr)
        return copy


def read_window(store: CellStore, plan: WindowPlan, rows: NDArray[np.int64] | None, buffer: CsrBuffer) -> Window:
    """Read a window; `rows` maps positions to rows of the store, None if they are the same."""
    read = expand_ranges(plan.ranges)
    ranges = plan.ranges
    if rows is not None:
        read = rows[read]
        ranges = find_runs(read)
    counts = store.read_ranges(ranges, buffer)
    return Window(counts, read[plan.order], plan.order, plan.weights, store.n_vars)


def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _take_into(
    out: NDArray[Any],
    indptr: NDArray[np.int64],
    values: NDArray[Any],
    picks: NDArray[np.int64],
    into: NDArray[np.int64],
) -> None:
    """Write the entries of the picked rows, a share of the rows in each thread."""
    share = max(-(-len(picks) // _COPYING), 1)

    def copy(first: int) -> None:
        some = picks[first : first + share]
        out[into[first] : into[first + len(some)]] = take_entries(indptr, values, pa.array(some))

    for _ in _pool(os.getpid()).map(copy, range(0, len(picks), share)):
        pass


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Of this process: a forked one inherits no threads."""
    return ThreadPoolExecutor(_COPYING, "take-rows")
