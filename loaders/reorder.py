"""The cells of a store in another order, as the shards of another: rows are read from all over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import zarr

from .plan import find_runs
from .row_matrix import bounded_cuts
from .store import CsrBuffer
from .take_rows import take_rows
from .write_pass import begin_shards, own_rows
from .zarr_layout import MatrixLayout, read_layout
from .zarr_writer import AtlasWriter, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from .store import CellStore
    from .write_pass import RunEach

_ENTRIES_TOGETHER = 1 << 24
"""Of rows that are read together, in the order of the store: rows that share a compressed block share its decoding."""


@dataclass(frozen=True, slots=True)
class ReorderTask:
    """All that a process needs to write one shard; the store pickles as its address."""

    out: Path
    shard: int
    store: CellStore
    order: NDArray[np.int64]
    """Rows of the store that have entries in the shard, in their new order."""
    threads: int


def write_reordered(
    out: Path,
    layout: MatrixLayout,
    store: CellStore,
    order: NDArray[np.int64],
    threads: int,
    progress: Callable[[int], object],
    run_each: RunEach = map,
) -> None:
    """Write X with row i of `out` taken from row order[i] of `store`, going on from whatever whole shards are there.

    Parameters
    ----------
    layout
        Of `out`: its indptr follows from the order.
    progress
        Called with the number of rows of each shard.
    """
    out = out.absolute()  # a process of a cluster may stand elsewhere
    begin_shards(out, layout)
    tasks = [
        ReorderTask(out, shard, store, order[slice(*layout.rows_of_shard(shard))], threads)
        for shard in range(layout.num_shards)
    ]
    left = [task for task in tasks if not is_whole(out, layout, task.shard)]
    num_own = np.diff(own_rows(layout)).tolist()
    progress(layout.num_rows - sum(num_own[task.shard] for task in left))
    for shard in run_each(write_reordered_shard, left):
        progress(num_own[shard])


def write_reordered_shard(task: ReorderTask) -> int:
    """Write a shard, and return which."""
    layout = read_layout(zarr.open_group(task.out, mode="r"), str(task.out))
    if is_whole(task.out, layout, task.shard):
        return task.shard  # by a worker that was lost after it had written it
    first_row, stop_row = layout.rows_of_shard(task.shard)
    buffer = CsrBuffer()
    with AtlasWriter(task.out, layout, task.shard, task.shard + 1, task.threads) as writer:
        for start, stop in bounded_cuts(layout.indptr, stop_row, first_row, stop_row, _ENTRIES_TOGETHER):
            rows = task.order[start - first_row : stop - first_row]
            ascending = np.argsort(rows, kind="stable")
            place = np.empty_like(ascending)
            place[ascending] = np.arange(len(rows))
            taken = take_rows(task.store.read_ranges(find_runs(rows[ascending]), buffer), place)
            writer.write(taken)
    return task.shard


def reordered_layout(layout: MatrixLayout, order: NDArray[np.int64]) -> MatrixLayout:
    """How the same rows lie in another order."""
    indptr = np.concatenate([[0], np.cumsum(np.diff(layout.indptr)[order])])
    return MatrixLayout(indptr, layout.num_genes, layout.data_dtype, layout.inner_chunk, layout.chunks_per_shard)
