"""A CSR matrix written to an .h5ad row by row, in the encoding of AnnData and in compressed chunks.

HDF5 knows one fast compressor that every reader has, deflate, and zlib would take longer over the counts than it takes
to draw them.  So each chunk's stream is put together here: bytes that are noise (the low byte of gene numbers, the high
bytes of counts) are stored, and only those that are nearly constant are compressed.  To a reader it is `gzip` behind
`shuffle`, as h5py writes it.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py
    from numpy.typing import DTypeLike, NDArray

_CHUNK = 1 << 16
"""Entries of X that a file holds together: 256 KiB before compression."""
_NOISE: dict[np.dtype[Any], tuple[int, ...]] = {np.dtype("<i4"): (0,), np.dtype("<f4"): (2, 3)}
"""Bytes of an int32 below 65,536 and of a small whole float32 that are worth no effort."""
_ADLER_BASE = 65_521


class CsrWriter:
    """Appends rows to a group that AnnData reads as a CSR matrix with int32 indices; `finish` it."""

    def __init__(self, group: h5py.Group, num_genes: int, compress: bool = True, dtype: DTypeLike = np.float32) -> None:
        self._group, self._num_genes = group, num_genes
        filters: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compress else {}
        self._columns = [
            _Column(
                group.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(_CHUNK,), **filters),
                _NOISE.get(kind),
            )
            for name, kind in (("indices", np.dtype("<i4")), ("data", np.dtype(dtype)))
        ]
        self._lengths: list[NDArray[np.int64]] = []

    def append(self, lengths: NDArray[np.int64], indices: NDArray[np.int32], data: NDArray[np.number]) -> None:
        """Rows of these lengths."""
        self._lengths.append(lengths)
        for column, values in zip(self._columns, (indices, data), strict=True):
            column.append(values)

    def finish(self) -> None:
        """Write what is left over and say what the group is."""
        for column in self._columns:
            column.finish()
        indptr = np.concatenate([np.zeros(1, np.int64), *self._lengths]).cumsum()
        self._group["indptr"] = indptr
        shape = (len(indptr) - 1, self._num_genes)
        self._group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})


class _Column:
    """Values of a dataset, chunk by chunk; h5py compresses those of which no `noise` is known."""

    def __init__(self, dataset: h5py.Dataset, noise: Sequence[int] | None) -> None:
        self._dataset, self._noise = dataset, noise
        self._chunk = np.empty(_CHUNK, dataset.dtype)
        self._filled = self._written = 0

    def append(self, values: NDArray[Any]) -> None:
        start = 0
        while start < len(values):
            taken = values[start : start + _CHUNK - self._filled]
            self._chunk[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            start += len(taken)
            if self._filled == _CHUNK:
                self._write()

    def finish(self) -> None:
        if self._filled:
            self._write()

    def _write(self) -> None:
        end = self._written + self._filled
        self._dataset.resize((end,))
        if self._noise is None:
            self._dataset[self._written : end] = self._chunk[: self._filled]
        else:
            self._chunk[self._filled :] = 0
            stored: Any = self._chunk if self._dataset.compression is None else deflate(self._chunk, self._noise)
            self._dataset.id.write_direct_chunk((self._written,), stored)
        self._written, self._filled = end, 0


def deflate(values: NDArray[Any], noise: Sequence[int]) -> bytes:
    """A zlib stream of the shuffled bytes of four-byte numbers; bytes of the places in `noise` are only stored.

    Deflate streams that end on a byte, at a flush, may follow each other; run lengths never look back into another.
    Places whose bytes are all 0, half of them in counts, cost nothing: their stream is known.
    """
    used, by_place = int(np.bitwise_or.reduce(values.view("<u4"))), values.view(np.uint8).reshape(-1, 4)
    parts, low, high = [b"\x78\x01"], 1, 0  # both halves of the checksum (RFC 1950)
    for place in range(4):
        level, last = 0 if place in noise else 1, place == 3
        if used >> 8 * place & 0xFF:
            plane: Any = np.ascontiguousarray(by_place[:, place])
            parts.append(_stream(plane, level, last))
            both = zlib.adler32(plane, high << 16 | low)
            low, high = both & 0xFFFF, both >> 16
        else:
            parts.append(_stream_of_zeros(len(values), level, last))
            high = (high + len(values) * low) % _ADLER_BASE
    parts.append(struct.pack(">I", high << 16 | low))
    return b"".join(parts)


def _stream(plane: Any, level: int, last: bool) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return stream.compress(plane) + stream.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)


@lru_cache
def _stream_of_zeros(length: int, level: int, last: bool) -> bytes:
    return _stream(bytes(length), level, last)
