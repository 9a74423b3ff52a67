"""Any range of one sharded array, decoded straight into the caller's memory: local files, blosc, our layout.

Shard files are mapped into memory and only the blosc blocks that hold the range are decoded.  That needs
`blosc_getitem`, which numcodecs' shared library exports although numcodecs has no function for it; where it is not
exported, whole inner chunks are decoded and the range copied.  A finished store is never changed; who truncates a file
under a running reader ends that process.
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

from unicoord_atlas.errors import DataError

from .array_reader import Part
from .shard_file import MISSING, read_index
from .zarr_layout import BLOSC_BLOCKSIZE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

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
    ) -> None:
        """`where` names a shard and its rows, for messages."""
        self._array = array
        self._dtype = dtype
        self._inner_chunk = inner_chunk
        self._chunks_per_shard = chunks_per_shard
        self._where = where
        self._near = BLOSC_BLOCKSIZE // dtype.itemsize
        self._thread = threading.local()
        self._shards: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint64]]] = {}
        self._chunks: dict[int, NDArray[np.uint8]] = {}

    def parts(self, spans: NDArray[np.int64], out: NDArray[Any]) -> Iterator[Part]:
        """Cut entry ranges start:stop at the borders of inner chunks; join those so near that they share a block."""
        pieces: list[tuple[int, NDArray[Any]]] = []
        last_chunk, stop = -1, 0
        for chunk, start, piece in self._pieces(spans, out):
            if pieces and not (chunk == last_chunk and 0 <= start - stop <= self._near):
                yield Part(last_chunk, pieces[0][0], stop, tuple(pieces))
                pieces = []
            pieces.append((start, piece))
            last_chunk, stop = chunk, start + len(piece)
        if pieces:
            yield Part(last_chunk, pieces[0][0], stop, tuple(pieces))

    def _pieces(self, spans: NDArray[np.int64], out: NDArray[Any]) -> Iterator[tuple[int, int, NDArray[Any]]]:
        filled = 0
        for start, stop in spans.tolist():
            while start < stop:
                chunk, offset = divmod(start, self._inner_chunk)
                count = min(stop - start, self._inner_chunk - offset)
                yield chunk, offset, out[filled : filled + count]
                start, filled = start + count, filled + count

    def decode(self, part: Part) -> None:
        """Read one part; DataError names the shard and its rows if it is damaged."""
        if len(part.pieces) == 1:
            self._decode_range(part.chunk, part.start, part.pieces[0][1])
            return
        if not hasattr(self._thread, "scratch"):
            self._thread.scratch = np.empty(self._inner_chunk, self._dtype)
        scratch = self._thread.scratch[: part.stop - part.start]
        self._decode_range(part.chunk, part.start, scratch)
        for start, out in part.pieces:
            out[:] = scratch[start - part.start : start - part.start + len(out)]

    def _decode_range(self, chunk: int, start: int, out: NDArray[Any]) -> None:
        encoded = self._chunks.get(chunk)
        if encoded is None:
            encoded = self._chunks[chunk] = self._checked_chunk(chunk)
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

    def _checked_chunk(self, chunk: int) -> NDArray[np.uint8]:
        """Encoded bytes of an inner chunk, whose header agrees with the array: blosc believes what a header says."""
        shard, position = divmod(chunk, self._chunks_per_shard)
        if shard not in self._shards:
            self._shards[shard] = self._map_shard(shard)
        file, index = self._shards[shard]
        offset, length = (int(number) for number in index[position])
        if offset == MISSING or length < _HEADER.itemsize:
            raise self._damaged(chunk)
        encoded = file[offset : offset + length]
        header = encoded[: _HEADER.itemsize].view(_HEADER)[0]
        nbytes, blocksize = int(header["nbytes"]), int(header["blocksize"])
        if (nbytes, header["typesize"], header["cbytes"]) != (
            self._inner_chunk * self._dtype.itemsize,
            self._dtype.itemsize,
            length,
        ):
            raise self._damaged(chunk)
        if not header["flags"] & _STORED_PLAIN:
            num_blocks = -(-nbytes // blocksize) if blocksize else 0
            table = encoded[_HEADER.itemsize : _HEADER.itemsize + 4 * num_blocks].view("<u4")
            if (
                num_blocks == 0
                or len(table) < num_blocks
                or int(table.min()) < 16 + 4 * num_blocks
                or int(table.max()) >= length
            ):
                raise self._damaged(chunk)
        return encoded

    def _map_shard(self, shard: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        path = self._array / "c" / str(shard)
        index = read_index(path, self._chunks_per_shard, self._where(shard))
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return np.frombuffer(mapped, np.uint8), index

    def _damaged(self, chunk: int) -> DataError:
        shard, position = divmod(chunk, self._chunks_per_shard)
        return DataError(f"{self._where(shard)}: inner chunk {position} is damaged; restore the file or ingest again")


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
