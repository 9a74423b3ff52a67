"""A window: the cells that are in memory together, and the batches cut from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
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

    def batch_counts(self, start: int, stop: int) -> SparseRows:
        """Counts of the start-th to stop-th cell to deliver; a copy."""
        taken = take_rows(self.counts, self.order[start:stop])
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


def take_rows(counts: CsrRows, picks: NDArray[np.int64]) -> CsrRows:
    """The picked rows, in the order given; copies."""
    indptr = np.zeros(len(picks) + 1, np.int64)
    np.cumsum(counts.indptr[picks + 1] - counts.indptr[picks], out=indptr[1:])
    wanted = pa.array(picks)
    return CsrRows(indptr, *(_take(counts.indptr, values, wanted) for values in (counts.indices, counts.data)))


def _take(indptr: NDArray[np.int64], values: NDArray[Any], picks: pa.Array) -> NDArray[Any]:
    """Entries of the picked rows.

    To Arrow a row is a byte string: it takes strings with a memcpy each, without Python's lock, into memory that its
    pool uses again.  Fancy indexing, with an index a non-zero, would cost ten times as much; a slice a row, twice.
    """
    offsets, content = pa.py_buffer(indptr * values.itemsize), pa.py_buffer(values)
    strings = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(indptr) - 1, [None, offsets, content])
    taken = strings.take(picks).buffers()[2]
    return np.frombuffer(taken, values.dtype) if taken else np.empty(0, values.dtype)
