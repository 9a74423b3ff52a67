"""Rows of a store dealt into files by where they will lie: an external sort that decodes each block of the store once.

Rows gathered from all over a store have a whole compressed block decoded for each: ten times what is wanted, and more
the larger the store is.  So the store is read stretch by stretch, and each stretch is written as a file of buckets, of
which each holds the rows of some neighbouring places; then a bucket is read from all files and put in order.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numcodecs import blosc

from unicoord_atlas.csr_block import CsrBlock

from .in_order import in_order
from .plan import find_runs
from .row_matrix import begins_of, bounded_cuts
from .take_rows import take_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .store import CellStore, CsrBuffer
    from .zarr_layout import MatrixLayout

ENTRIES_TOGETHER = 1 << 24
"""Of a stretch, and of a bucket."""
_LEVEL = 1
"""Of compression: each file is read once."""


@dataclass(frozen=True, slots=True)
class DealTask:
    """All that a process needs to write the file of a stretch; the store pickles as its address."""

    path: Path
    store: CellStore
    rows: NDArray[np.int64]
    """Of the store, ascending."""
    slots: NDArray[np.int64]
    """Where each of them will lie among the rows of all buckets."""
    borders: NDArray[np.int64]
    """(buckets + 1,) first slot of each bucket, and their number."""
    threads: int


@dataclass(frozen=True, slots=True)
class Buckets:
    """The files of all stretches."""

    paths: tuple[Path, ...]
    first_rows: NDArray[np.int64]
    """Of the store, in each file."""

    @classmethod
    def of(cls, tasks: Sequence[DealTask]) -> Buckets:
        """Those that these tasks have written."""
        return cls(tuple(task.path for task in tasks), np.array([task.rows[0] for task in tasks], np.int64))

    def read(
        self,
        number: int,
        first_place: int,
        rows: NDArray[np.int64],
        layout: MatrixLayout,
        buffer: CsrBuffer,
        threads: int,
    ) -> CsrBlock:
        """A bucket in the order of its places.

        Parameters
        ----------
        rows
            Of the store, at each place of the bucket.
        layout
            Of the matrix in its new order.
        """
        lengths = np.diff(layout.indptr[first_place : first_place + len(rows) + 1])
        path_of_row = np.searchsorted(self.first_rows, rows, side="right") - 1
        as_read = np.argsort(path_of_row, kind="stable")  # in each file they lie in the order of their places, too
        indptr = begins_of([lengths[as_read]])
        ends = indptr[np.searchsorted(path_of_row[as_read], np.arange(len(self.paths) + 1))]
        data = buffer.array("data", int(indptr[-1]), layout.data_dtype)
        indices = buffer.array("indices", int(indptr[-1]), layout.index_dtype)
        pieces = [slice(start, stop) for start, stop in pairwise(ends.tolist())]
        files = [
            (path, data[piece], indices[piece])
            for path, piece in zip(self.paths, pieces, strict=True)
            if piece.start < piece.stop
        ]
        for _ in in_order(lambda file: _decode(number, *file), files, threads):
            pass
        place = np.empty_like(as_read)
        place[as_read] = np.arange(len(place))
        return take_rows(CsrBlock(indptr, indices, data), place)


def bucket_spans(layout: MatrixLayout, start: int, stop: int) -> list[tuple[int, int]]:
    """Places start:stop cut into those of one bucket each."""
    return list(bounded_cuts(layout.indptr, max(stop - start, 1), start, stop, ENTRIES_TOGETHER))


def plan_deals(
    folder: Path,
    store: CellStore,
    order: NDArray[np.int64],
    spans: Sequence[tuple[int, int]],
    threads: int,
) -> list[DealTask]:
    """One task a stretch of the store; place i will have row order[i].

    Parameters
    ----------
    spans
        Places start:stop of each bucket.  A place may be in several, or in none.
    """
    if not spans:
        return []
    rows = np.concatenate([order[start:stop] for start, stop in spans])
    slots = np.argsort(rows, kind="stable")
    rows = rows[slots]
    borders = begins_of([np.array([stop - start for start, stop in spans])])
    firsts = np.append(np.flatnonzero(np.diff(rows, prepend=-1)), len(rows))  # a row of two buckets is in one file
    lengths = store.indptr[rows[firsts[:-1]] + 1] - store.indptr[rows[firsts[:-1]]]
    cuts = bounded_cuts(begins_of([lengths]), len(lengths), 0, len(lengths), ENTRIES_TOGETHER)
    pieces = [slice(firsts[start], firsts[stop]) for start, stop in cuts]
    return [
        DealTask(folder / str(number), store, rows[piece], slots[piece], borders, threads)
        for number, piece in enumerate(pieces)
    ]


def deal(task: DealTask) -> int:
    """Write a file: 2 x buckets + 1 offsets, then counts and genes of each bucket; the number of rows."""
    by_slot = np.argsort(task.slots)
    block = task.store.read_ranges(find_runs(task.rows))
    cuts = np.searchsorted(task.slots[by_slot], task.borders).tolist()
    hands = in_order(lambda cut: _encoded(take_rows(block, by_slot[slice(*cut)])), pairwise(cuts), task.threads)
    encoded = [piece for hand in hands for piece in hand]
    offsets = np.cumsum([8 * (len(encoded) + 1), *map(len, encoded)], dtype=np.int64)
    # Under its name only when it is whole, and of a name of its own until then: see `ShardStream`.
    partial = task.path.with_name(f"{task.path.name}.{secrets.token_hex(4)}.partial")
    with partial.open("xb") as file:
        file.write(offsets.data)
        file.writelines(encoded)
    partial.replace(task.path)
    return len(task.rows)


def _encoded(rows: CsrBlock) -> list[bytes]:
    return [
        blosc.compress(values, b"lz4", _LEVEL, blosc.SHUFFLE) if len(values) else b""
        for values in (rows.data, rows.indices)
    ]


def _decode(number: int, path: Path, data: NDArray[np.generic], indices: NDArray[np.generic]) -> None:
    with path.open("rb") as file:
        file.seek(16 * number)
        start, middle, stop = np.frombuffer(file.read(24), np.int64).tolist()
        file.seek(start)
        encoded = memoryview(file.read(stop - start))
    blosc.decompress(encoded[: middle - start], data)
    blosc.decompress(encoded[middle - start :], indices)
