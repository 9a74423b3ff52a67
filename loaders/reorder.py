"""The cells of a store in another order, as the shards of another: dealt into buckets, then put in order."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import zarr

from .buckets import Buckets, bucket_spans, deal, plan_deals
from .store import CsrBuffer
from .write_pass import begin_shards, own_rows
from .zarr_layout import MatrixLayout, read_layout
from .zarr_writer import AtlasWriter, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

    from .store import CellStore
    from .write_pass import RunEach

_DEALT = "unfinished-buckets"
"""Folder in the output.  What a killed job left there is dealt anew: nothing says that it survived a power cut."""


@dataclass(frozen=True, slots=True)
class ReorderTask:
    """All that a process needs to write one shard; the store pickles as its address."""

    out: Path
    shard: int
    store: CellStore
    first_place: int
    """Of the first row that begins in the shard, or of the one before if it ends in it."""
    order: NDArray[np.int64]
    """Rows of the store from that place on."""
    first_bucket: int
    """Number of the first bucket of the shard."""
    spans: list[tuple[int, int]]
    """Places start:stop of each of its buckets: all rows that begin in the shard."""
    buckets: Buckets
    threads: int


def write_reordered(
    out: Path,
    layout: MatrixLayout,
    store: CellStore,
    order: NDArray[np.int64],
    threads: int,
    progress: Callable[[float], object],
    run_each: RunEach = map,
) -> None:
    """Write X with row i of `out` taken from row order[i] of `store`, going on from whatever whole shards are there.

    Until it is finished, `out` also holds the buckets: the disk needs room for the counts twice.

    Parameters
    ----------
    layout
        Of `out`: its indptr follows from the order.
    progress
        Called with numbers of rows: a half of each where they are dealt, the other where they are written.
    """
    out = out.absolute()  # a process of a cluster may stand elsewhere
    begin_shards(out, layout)
    owned = own_rows(layout).tolist()
    left = [shard for shard in range(layout.num_shards) if not is_whole(out, layout, shard)]
    progress(layout.num_rows - sum(owned[shard + 1] - owned[shard] for shard in left))
    spans = {shard: bucket_spans(layout, *owned[shard : shard + 2]) for shard in left}
    with _emptied(out / _DEALT) as folder:
        deals = plan_deals(folder, store, order, [span for shard in left for span in spans[shard]], threads)
        for num_rows in run_each(deal, deals):
            progress(num_rows / 2)
        buckets = Buckets(tuple(task.path for task in deals), np.array([task.rows[0] for task in deals], np.int64))
        tasks, number = [], 0
        for shard in left:
            first = min(layout.rows_of_shard(shard)[0], owned[shard])
            rows = order[first : owned[shard + 1]]
            tasks.append(ReorderTask(out, shard, store, first, rows, number, spans[shard], buckets, threads))
            number += len(spans[shard])
        for shard in run_each(write_reordered_shard, tasks):
            progress((owned[shard + 1] - owned[shard]) / 2)


def write_reordered_shard(task: ReorderTask) -> int:
    """Write a shard, and return which."""
    layout = read_layout(zarr.open_group(task.out, mode="r"), str(task.out))
    if is_whole(task.out, layout, task.shard):
        return task.shard  # by a worker that was lost after it had written it
    with AtlasWriter(task.out, layout, task.shard, task.shard + 1, task.threads) as writer:
        for place, block in _blocks(task, layout):
            writer.write_from(place, block)
    return task.shard


def _blocks(task: ReorderTask, layout: MatrixLayout) -> Iterator[tuple[int, CsrBlock]]:
    """First place and rows."""
    own_place = task.first_place + len(task.order) - sum(stop - start for start, stop in task.spans)
    if task.first_place < own_place:  # a row that begins in the shard before, whose bucket it is in
        row = int(task.order[0])
        yield task.first_place, task.store.read_ranges(np.array([[row, row + 1]]))
    buffer = CsrBuffer()
    for number, (start, stop) in enumerate(task.spans, task.first_bucket):
        rows = task.order[start - task.first_place : stop - task.first_place]
        lengths = np.diff(layout.indptr[start : stop + 1])
        yield start, task.buckets.read(number, rows, lengths, layout, buffer, task.threads)


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """A folder for what is needed meanwhile; after a failure the next run begins it anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def reordered_layout(layout: MatrixLayout, order: NDArray[np.int64]) -> MatrixLayout:
    """How the same rows lie in another order."""
    indptr = np.concatenate([[0], np.cumsum(np.diff(layout.indptr)[order])])
    return MatrixLayout(indptr, layout.num_genes, layout.data_dtype, layout.inner_chunk, layout.chunks_per_shard)
