"""AtlasWriter: rows of counts -> whole shards of X.

A shard appears under its name only when it is whole, and its bytes depend on nothing but its entries.  So a writer
that is opened on what a killed one left goes on from the last whole shard, and the result is the same, byte for byte.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import DataError

from . import zarr_layout as names
from .shard_file import MISSING, encode_index, read_index

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from .zarr_layout import MatrixLayout


class AtlasWriter:
    """Writes consecutive rows of an atlas, in atlas gene order, into the shards first_shard:stop_shard.

    Give it blocks that begin at `next_row` (past 0 where whole shards were found) until `stop_row`.
    Several writers may fill disjoint ranges of shards of one store; then call `create_matrix` first.
    Use it as a context manager: it closes if all went well, and else leaves the whole shards for the next writer.
    """

    next_row: int
    """First row of the next block to write."""
    stop_row: int
    """The row past the last that this writer needs."""

    def __init__(
        self, out: Path, layout: MatrixLayout, first_shard: int = 0, stop_shard: int | None = None, threads: int = 2
    ) -> None:
        if stop_shard is None or not (out / names.INDPTR).exists():
            create_matrix(out, layout)
        stop_shard = layout.num_shards if stop_shard is None else stop_shard
        while first_shard < stop_shard and is_whole(out, layout, first_shard):
            first_shard += 1
        self._layout = layout
        self._next_entry = layout.entries_of_shard(first_shard)[0]
        self._stop_entry = (
            layout.entries_of_shard(stop_shard)[0] if stop_shard < layout.num_shards else layout.num_entries
        )
        self.next_row, self.stop_row = names.rows_of_entries(layout.indptr, self._next_entry, self._stop_entry)
        self._pool = ThreadPoolExecutor(threads)
        self._data = ShardStream(out / names.DATA, layout, layout.data_dtype, first_shard, self._pool, threads)
        self._indices = ShardStream(out / names.INDICES, layout, layout.index_dtype, first_shard, self._pool, threads)

    def write(self, block: CsrBlock) -> None:
        """Append a block of consecutive rows, the first of which is `next_row`; rows past `stop_row` are left out."""
        stop = min(self.next_row + len(block.indptr) - 1, self.stop_row)
        first_entry = int(self._layout.indptr[self.next_row])
        expected = self._layout.indptr[self.next_row : stop + 1] - first_entry
        if not np.array_equal(block.indptr[: len(expected)] - block.indptr[0], expected):
            raise DataError(
                f"rows {self.next_row}:{stop} differ from what the first pass counted; did a source change meanwhile?"
            )
        skip = self._next_entry - first_entry
        take = min(int(expected[-1]), self._stop_entry - first_entry)
        entries = slice(int(block.indptr[0]) + skip, int(block.indptr[0]) + take)
        self._data.append(_narrowed(block.data[entries], self._layout.data_dtype, self.next_row, stop))
        self._indices.append(block.indices[entries].astype(self._layout.index_dtype, copy=False))
        self._next_entry = first_entry + take
        self.next_row = stop

    def write_from(self, row: int, block: CsrBlock) -> None:
        """Append what is needed of a block that begins at `row`: those before `next_row` may be in it, empty or not."""
        if self.next_row < min(row + block.num_rows, self.stop_row):  # else its rows are empty
            self.write(CsrBlock(block.indptr[self.next_row - row :], block.indices, block.data))

    def close(self) -> None:
        """Finish the last shard; DataError if rows are missing."""
        if self._next_entry < self._stop_entry:
            raise DataError(f"rows {self.next_row}:{self.stop_row} were never written; did a source shrink meanwhile?")
        self._data.close()
        self._indices.close()
        self._pool.shutdown()

    def __enter__(self) -> AtlasWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._pool.shutdown(cancel_futures=True)
            self._data.abandon()
            self._indices.abandon()


class ShardStream:
    """The entries of one array, cut into inner chunks, encoded in the pool, appended to shard files in order."""

    def __init__(
        self,
        array: Path,
        layout: MatrixLayout,
        dtype: np.dtype[np.generic],
        first_shard: int,
        pool: ThreadPoolExecutor,
        ahead: int,
    ) -> None:
        self._folder = array / "c"
        self._layout = layout
        self._shard = first_shard
        self._pool = pool
        self._ahead = ahead
        self._chunk = np.zeros(layout.inner_chunk, dtype)
        self._filled = 0
        self._encoding: deque[Future[bytes]] = deque()
        self._file: BinaryIO | None = None
        self._partial = self._folder
        self._spans: list[tuple[int, int]] = []

    def append(self, values: NDArray[np.generic]) -> None:
        """Take entries; whole chunks go on to be encoded."""
        start = 0
        while start < len(values):
            stop = min(start + len(self._chunk) - self._filled, len(values))
            self._chunk[self._filled : self._filled + stop - start] = values[start:stop]
            self._filled += stop - start
            start = stop
            if self._filled == len(self._chunk):
                self._encode()

    def close(self) -> None:
        """Encode the last chunk, whose rest is zeros, and end the last shard."""
        if self._filled:
            self._encode()
        self._end_shard()

    def abandon(self) -> None:
        """Leave an unfinished shard as it is; the next writer begins it anew."""
        if self._file is not None:
            self._file.close()

    def _encode(self) -> None:
        self._encoding.append(self._pool.submit(_encoded, self._chunk))
        self._chunk = np.zeros_like(self._chunk)
        self._filled = 0
        if len(self._encoding) > self._ahead:
            self._write_oldest()
        if len(self._spans) + len(self._encoding) == self._layout.chunks_per_shard:
            self._end_shard()

    def _write_oldest(self) -> None:
        encoded = self._encoding.popleft().result()
        if self._file is None:
            self._folder.mkdir(exist_ok=True)
            # A name of its own: a process that a scheduler gave up may still be writing the same shard.
            self._partial = self._folder / f"{self._shard}.{secrets.token_hex(4)}.partial"
            self._file = self._partial.open("xb")
        self._spans.append((self._file.tell(), len(encoded)))
        self._file.write(encoded)

    def _end_shard(self) -> None:
        while self._encoding:
            self._write_oldest()
        if self._file is None:
            return
        index = np.full((self._layout.chunks_per_shard, 2), MISSING, np.uint64)
        index[: len(self._spans)] = self._spans
        self._file.write(encode_index(index))
        self._file.flush()
        os.fsync(self._file.fileno())  # a shard that has its name must survive a power cut whole: resume trusts it
        self._file.close()
        self._partial.rename(self._folder / str(self._shard))
        self._file, self._spans = None, []
        self._shard += 1


def _encoded(chunk: NDArray[np.generic]) -> bytes:
    # Pool threads make blosc work in one thread each, which also makes its bytes deterministic.
    encoded: bytes = blosc.compress(
        chunk, names.BLOSC_CNAME.encode(), names.BLOSC_LEVEL, blosc.SHUFFLE, names.BLOSC_BLOCKSIZE
    )
    return encoded


def _narrowed(data: NDArray[np.generic], dtype: np.dtype[np.generic], start: int, stop: int) -> NDArray[np.generic]:
    if dtype.kind == "u" and len(data) and not 0 <= data.min() <= data.max() <= 2 ** (8 * dtype.itemsize) - 1:
        raise DataError(
            f"rows {start}:{stop} hold {data.max()}, which the first pass did not see; did a source change meanwhile?"
        )
    return data.astype(dtype, copy=False)


def blosc_codec(dtype: np.dtype[np.generic]) -> BloscCodec:
    """The compressor of all that this program writes in shards."""
    return BloscCodec(
        typesize=dtype.itemsize,
        cname=names.BLOSC_CNAME,
        clevel=names.BLOSC_LEVEL,
        shuffle="shuffle",
        blocksize=names.BLOSC_BLOCKSIZE,
    )


def is_whole(out: Path, layout: MatrixLayout, shard: int) -> bool:
    """Whether both files of a shard are there to the last byte."""
    try:
        for array in (names.DATA, names.INDICES):
            path = out / array / "c" / str(shard)
            read_index(path, layout.chunks_per_shard, str(path))
    except DataError:
        return False
    return True


def create_matrix(out: Path, layout: MatrixLayout) -> None:
    """Metadata of the group and of X, and X/indptr; does nothing where they are."""
    if (out / names.INDPTR / "c").exists() and _has_indptr(out, layout):
        return
    root = zarr.open_group(
        out, mode="a", zarr_format=3, attributes={"encoding-type": "anndata", "encoding-version": "0.1.0"}
    )
    matrix = root.require_group("X")
    matrix.attrs.update(
        {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [layout.num_rows, layout.num_genes]}
    )
    for array, dtype in ((names.DATA, layout.data_dtype), (names.INDICES, layout.index_dtype)):
        root.create_array(
            array,
            shape=(layout.num_entries,),
            chunks=(layout.inner_chunk,),
            shards=(layout.shard_entries,),
            dtype=dtype,
            compressors=[blosc_codec(dtype)],
            fill_value=0,
            overwrite=True,
        )
    root.create_array(names.INDPTR, data=layout.indptr, chunks=(names.INDPTR_CHUNK,), overwrite=True)


def _has_indptr(out: Path, layout: MatrixLayout) -> bool:
    """Whether all of X/indptr was written: a chunk that a full disk left out would read as 0."""
    try:
        return np.array_equal(np.asarray(zarr.open_array(out / names.INDPTR, mode="r")[:]), layout.indptr)
    except (OSError, ValueError, KeyError, RuntimeError):
        return False


def remove_unfinished(out: Path) -> None:
    """Remove what killed writers left of shards."""
    for array in (names.DATA, names.INDICES):
        for partial in (out / array).glob("c/*.partial"):
            partial.unlink(missing_ok=True)  # its writer may live, and end it just now
