"""Any range of one sharded array, decoded straight into the caller's memory: local files, blosc, our layout.

Shard files are mapped into memory and only the blosc blocks that hold the range are decoded.  That needs
`blosc_getitem`, which numcodecs' shared library exports although numcodecs has no function for it; where it is not
exported, whole inner chunks are decoded and the range copied.  Blosc knows no checksum of what it holds: a byte that
changed on disk would be other counts.  So a shard's file is read once and compared with the manifest before its first
entry is decoded.  Pages of the files are let go again and again, for the system's cache keeps them: a process would
seem as large as all that it has ever read.  A finished store is never changed; who truncates a file under a running
reader ends that process.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc

from unicoord_atlas.checksums import file_checksum
from unicoord_atlas.errors import DataError

from .array_reader import Part, reaches
from .shard_file import MISSING, read_index
from .zarr_layout import BLOSC_BLOCKSIZE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .array_reader import Work

_HEADER = np.dtype(
    [
        ("version", "u1"),
        ("codec_version", "u1"),
        ("flags", "u1"),
        ("typesize", "u1"),
        ("nbytes", "<u4"),
        ("blocksize", "<u4"),
        ("cbytes", "<u4"),
    ]
)
_STORED_PLAIN = 0x2
_LET_GO_BYTES = 32 << 20
"""Decoded between two times that mapped pages are let go; mapping them again costs some hundredths of the decoding."""
_GetItem = Callable[[int, int, int, int], int]


class ShardReader:
    """Reads entries of one array; any number of threads may call `decode` at a time."""

    def __init__(
        self,
        array: Path,
        dtype: np.dtype[np.generic],
        inner_chunk: int,
        chunks_per_shard: int,
        where: Callable[[int], str],
        crc32c_of: Callable[[int], str | None] = lambda shard: None,
        limit: int | None = None,
    ) -> None:
        """See `StoreFiles.reader`."""
        self._array = array
        self._dtype = dtype
        self._inner_chunk = inner_chunk
        self._chunks_per_shard = chunks_per_shard
        self._where, self._crc32c_of, self._limit = where, crc32c_of, limit
        self._mapping: dict[int, threading.Lock] = {}
        self._block = BLOSC_BLOCKSIZE
        self._thread = threading.local()
        self._shards: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint64]]] = {}
        self._chunks: dict[int, NDArray[np.uint8]] = {}
        self._maps: list[mmap.mmap] = []
        self._since_let_go = 0

    def parts(self, spans: NDArray[np.int64], out: NDArray[Any]) -> Iterator[Work]:
        """See `EntryReader`."""
        return self._parts(spans, out)

    def _parts(self, spans: NDArray[np.int64], out: NDArray[Any]) -> Iterator[Part]:
        """Cut entry ranges start:stop at the borders of inner chunks; join those with no block to leave out between."""
        chunks, pieces = _cut(spans, self._inner_chunk)
        if not len(pieces):
            return
        filled = np.concatenate([[0], np.cumsum(pieces[:, 1] - pieces[:, 0])])
        first_block, last_block = pieces[:, 0] // self._block, (pieces[:, 1] - 1) // self._block
        apart = (np.diff(chunks) != 0) | (pieces[1:, 0] < pieces[:-1, 1]) | (first_block[1:] > last_block[:-1] + 1)
        begins = np.concatenate([[0], np.flatnonzero(apart) + 1])
        ends = np.append(begins[1:], len(pieces))
        starts, stops = pieces[begins, 0], pieces[ends - 1, 1]
        num_decoded = (last_block[ends - 1] - first_block[begins] + 1) * self._block
        facts = (begins, ends, chunks[begins], starts, stops, filled[begins], filled[ends], num_decoded)
        for begin, end, chunk, start, stop, into, until, decoded in zip(*(f.tolist() for f in facts), strict=True):
            wanted = None if until - into == stop - start else pieces[begin:end] - start
            yield Part(chunk, start, stop, out[into:until], wanted, min(decoded, self._inner_chunk))

    def decode(self, part: Part) -> None:
        """Read one part; DataError names the shard and its rows if it is damaged."""
        encoded = self._chunks.get(part.chunk)
        if encoded is None:
            encoded = self._chunks[part.chunk] = self._chunk(part.chunk)
        self._fill(part, encoded)

    def _fill(self, part: Part, encoded: NDArray[np.uint8]) -> None:
        """Decode a part from the bytes of its inner chunk, which have been checked."""
        self._since_let_go += part.num_decoded * self._dtype.itemsize  # a lost addition of another thread is no harm
        if self._since_let_go > _LET_GO_BYTES:
            self._since_let_go = 0
            for mapped in tuple(self._maps):
                mapped.madvise(mmap.MADV_DONTNEED)
        if part.pieces is None:
            self._decode_range(part.chunk, encoded, part.start, part.out)
        else:
            if not hasattr(self._thread, "scratch"):
                self._thread.scratch = np.empty(self._inner_chunk, self._dtype)
            scratch = self._thread.scratch[: part.stop - part.start]
            self._decode_range(part.chunk, encoded, part.start, scratch)
            np.concatenate([scratch[start:stop] for start, stop in part.pieces.tolist()], out=part.out)
        if self._limit is not None and reaches(part.out, self._limit):  # while it is in this core's cache
            raise self._damaged(part.chunk, f"holds an index that is not in 0..{self._limit - 1}")

    def _decode_range(self, chunk: int, encoded: NDArray[np.uint8], start: int, out: NDArray[Any]) -> None:
        if len(out) == self._inner_chunk:
            self._decode_whole(chunk, encoded, out)
        elif (get_item := _blosc_get_item()) is not None:
            if get_item(encoded.ctypes.data, start, len(out), out.ctypes.data) != out.nbytes:
                raise self._damaged(chunk)
        else:
            whole = np.empty(self._inner_chunk, self._dtype)
            self._decode_whole(chunk, encoded, whole)
            out[:] = whole[start : start + len(out)]

    def _decode_whole(self, chunk: int, encoded: NDArray[np.uint8], out: NDArray[Any]) -> None:
        try:
            blosc.decompress(encoded, out)
        except RuntimeError as error:
            raise self._damaged(chunk) from error

    def _chunk(self, chunk: int) -> NDArray[np.uint8]:
        """Encoded bytes of an inner chunk."""
        shard = chunk // self._chunks_per_shard
        if shard not in self._shards:
            with self._mapping.setdefault(shard, threading.Lock()):  # the checksum is taken once, not by every thread
                if shard not in self._shards:
                    self._shards[shard] = self._map_file(self._array / "c" / str(shard), shard)
        file, index = self._shards[shard]
        offset, length = self._extent(chunk, index)
        return self._checked(chunk, file[offset : offset + length])

    def _extent(self, chunk: int, index: NDArray[np.uint64]) -> tuple[int, int]:
        """Where an inner chunk lies in its shard, and its bytes."""
        offset, length = (int(number) for number in index[chunk % self._chunks_per_shard])
        if offset == MISSING or length < _HEADER.itemsize:
            raise self._damaged(chunk)
        return offset, length

    def _checked(self, chunk: int, encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The encoded bytes, if their header agrees with the array: blosc believes what a header says."""
        header = encoded[: _HEADER.itemsize].view(_HEADER)[0]
        nbytes, blocksize = int(header["nbytes"]), int(header["blocksize"])
        if (nbytes, header["typesize"], header["cbytes"]) != (
            self._inner_chunk * self._dtype.itemsize,
            self._dtype.itemsize,
            len(encoded),
        ):
            raise self._damaged(chunk)
        if not header["flags"] & _STORED_PLAIN:
            num_blocks = -(-nbytes // blocksize) if blocksize else 0
            table = encoded[_HEADER.itemsize : _HEADER.itemsize + 4 * num_blocks].view("<u4")
            if (
                num_blocks == 0
                or len(table) < num_blocks
                or int(table.min()) < 16 + 4 * num_blocks
                or int(table.max()) >= len(encoded)
            ):
                raise self._damaged(chunk)
        return encoded

    def _map_file(self, path: Path, shard: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        index = read_index(path, self._chunks_per_shard, self._where(shard))
        expected = self._crc32c_of(shard)
        if expected not in (None, file_checksum(path)):
            raise DataError(f"{self._where(shard)}: the file has a wrong checksum; restore it or ingest again")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._maps.append(mapped)
        return np.frombuffer(mapped, np.uint8), index

    def _damaged(self, chunk: int, fault: str = "is damaged") -> DataError:
        shard, position = divmod(chunk, self._chunks_per_shard)
        return DataError(f"{self._where(shard)}: inner chunk {position} {fault}; restore the file or ingest again")


def _cut(spans: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inner chunk of each piece, and (p, 2) its start:stop counted from the chunk's, of spans cut at their borders."""
    spans = spans[spans[:, 1] > spans[:, 0]]
    first = spans[:, 0] // size
    num_pieces = (spans[:, 1] - 1) // size - first + 1
    before = np.cumsum(num_pieces) - num_pieces
    chunks = np.repeat(first - before, num_pieces) + np.arange(int(num_pieces.sum()))
    pieces = np.repeat(spans, num_pieces, axis=0) - (chunks * size)[:, None]
    return chunks, np.clip(pieces, 0, size)


@cache
def _blosc_get_item() -> _GetItem | None:
    """`blosc_getitem` of numcodecs' library: (encoded, first item, items, destination) -> bytes, or below 0."""
    try:
        function = ctypes.CDLL(blosc.__file__).blosc_getitem
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    function.restype = ctypes.c_int
    get_item: _GetItem = function
    return get_item
