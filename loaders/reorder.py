"""The cells of a store in another order, as the shards of another: dealt into buckets, then put in order."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import zarr

from unicoord_atlas.allocator import give_back_freed_memory

from .buckets import Buckets, bucket_spans, deal, plan_deals
from .store import CsrBuffer
from .write_pass import begin_shards, own_rows
from .zarr_layout import MatrixLayout, read_layout
from .zarr_writer import AtlasWriter, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .write_pass import RunEach
    from .zarr_store import ZarrStore

_DEALT = "unfinished-buckets"
"""Folder in the output.  What a killed job left there is dealt anew: nothing says that it survived a power cut."""


@dataclass(frozen=True, slots=True)
class ReorderTask:
    """All that a process needs to write one shard; the store pickles as its address."""

    out: Path
    shard: int
    order: NDArray[np.int64]
    """Rows of the store at the places of `spans`."""
    spans: list[tuple[int, int]]
    """Places start:stop of each bucket of the shard: a row that begins in it and ends in the next is in both."""
    first_bucket: int
    buckets: Buckets
    threads: int


def write_reordered(
    out: Path,
    layout: MatrixLayout,
    store: ZarrStore,
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
    num_left = {shard: owned[shard + 1] - owned[shard] for shard in left}
    progress(layout.num_rows - sum(num_left.values()))
    with _emptied(out / _DEALT) as folder:
        spans = {shard: bucket_spans(layout, *_places(layout, owned, shard)) for shard in left}
        deals = plan_deals(folder, store, order, [span for of_shard in spans.values() for span in of_shard], threads)
        half = sum(num_left.values()) / 2 / max(sum(len(task.rows) for task in deals), 1)
        for num_rows in run_each(deal, deals):
            progress(num_rows * half)
        buckets = Buckets.of(deals)
        del deals
        store.close_shards()
        give_back_freed_memory()
        for shard in run_each(write_reordered_shard, _tasks(out, order, spans, buckets, threads)):
            progress(num_left[shard] / 2)


def write_reordered_shard(task: ReorderTask) -> int:
    """Write a shard, and return which."""
    layout = read_layout(zarr.open_group(task.out, mode="r"), str(task.out))
    if is_whole(task.out, layout, task.shard):
        return task.shard  # by a worker that was lost after it had written it
    buffer = CsrBuffer()
    with AtlasWriter(task.out, layout, task.shard, task.shard + 1, task.threads) as writer:
        for number, (start, stop) in enumerate(task.spans):
            rows = task.order[start - task.spans[0][0] : stop - task.spans[0][0]]
            bucket = task.buckets.read(task.first_bucket + number, start, rows, layout, buffer, task.threads)
            writer.write_from(start, bucket)
    return task.shard


def _places(layout: MatrixLayout, owned: Sequence[int], shard: int) -> tuple[int, int]:
    """Of all rows that have an entry in the shard, and of the empty ones among them."""
    return min(layout.rows_of_shard(shard)[0], owned[shard]), owned[shard + 1]


def _tasks(
    out: Path, order: NDArray[np.int64], spans: Mapping[int, list[tuple[int, int]]], buckets: Buckets, threads: int
) -> Iterator[ReorderTask]:
    first_bucket = 0
    for shard, of_shard in spans.items():
        rows = order[of_shard[0][0] : of_shard[-1][1]]
        yield ReorderTask(out, shard, rows, of_shard, first_bucket, buckets, threads)
        first_bucket += len(of_shard)


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
