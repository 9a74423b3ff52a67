"""Stretches of one-dimensional arrays of an input file, decoded chunk by chunk, from many threads at once.

h5py reads and decompresses under one lock for the whole process.  Plain arrays are therefore read from the file's
bytes, and the chunks of gzipped ones (with or without shuffle: what AnnData and CellRanger write) are taken as they
lie and inflated here, where zlib lets other threads run.  Whatever else a file uses goes through h5py or zarr itself.
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import h5py
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_INFLATABLE = ((_DEFLATE,), (_SHUFFLE, _DEFLATE))
_LARGE_CHUNK = 1 << 20
"""Bytes from which a chunk that h5py or zarr decodes is kept; one that is inflated is kept always: neighbouring reads
share it and decoding it again would cost."""
_KEPT_BYTES, _KEPT_AT_LEAST = 16 << 20, 8
"""Of all arrays together: of each of an atlas's hundred sources, some would add up.  The threads that read a source
share chunks of two arrays, so that some are kept whatever their size."""


class _KeptChunks:
    """The decoded chunks that were asked for last."""

    def __init__(self) -> None:
        self._lock, self._bytes = threading.Lock(), 0
        self._chunks: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()

    def __len__(self) -> int:
        """Chunks that are kept now."""
        return len(self._chunks)

    def get(self, key: tuple[int, int]) -> NDArray[Any] | None:
        """A chunk by array and number, if it is there."""
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
            return self._chunks.get(key)

    def put(self, key: tuple[int, int], chunk: NDArray[Any]) -> None:
        """Keep a chunk, and let go those that were asked for longest ago."""
        with self._lock:
            if key in self._chunks:  # another thread decoded it meanwhile
                return
            self._chunks[key] = chunk
            self._bytes += chunk.nbytes
            while self._bytes > _KEPT_BYTES and len(self._chunks) > _KEPT_AT_LEAST:
                self._bytes -= self._chunks.popitem(last=False)[1].nbytes


_KEPT, _NEXT_KEY = _KeptChunks(), count()


class Stretch(Protocol):
    """A one-dimensional array of which any part can be read, from any thread."""

    dtype: np.dtype[Any]

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Elements start to stop."""
        ...


class ChunkedStretch:
    """A one-dimensional h5py dataset or zarr array."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.dtype: np.dtype[Any] = array.dtype
        self._chunk_size: int = array.chunks[0] if array.chunks else 0
        self._inflate = _inflates(array) if isinstance(array, h5py.Dataset) else None
        large = self._chunk_size * self.dtype.itemsize >= _LARGE_CHUNK
        self._by_chunk = self._chunk_size > 0 and (large or self._inflate is not None)
        self._key = next(_NEXT_KEY)

    def __len__(self) -> int:
        """Number of elements."""
        return int(self._array.shape[0])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Elements start to stop."""
        if not self._by_chunk or stop <= start:
            return np.asarray(self._array[start:stop])
        out = np.empty(stop - start, self.dtype)
        for number in range(start // self._chunk_size, (stop - 1) // self._chunk_size + 1):
            first = number * self._chunk_size
            low, high = max(start, first), min(stop, first + self._chunk_size)
            out[low - start : high - start] = self._chunk(number)[low - first : high - first]
        return out

    def _chunk(self, number: int) -> NDArray[Any]:
        chunk = _KEPT.get((self._key, number))
        if chunk is None:
            chunk = self._decode(number)
            _KEPT.put((self._key, number), chunk)
        return chunk

    def _decode(self, number: int) -> NDArray[Any]:
        first = number * self._chunk_size
        if self._inflate is not None:
            try:
                skipped_filters, raw = self._array.id.read_direct_chunk((first,))
            except (OSError, RuntimeError, ValueError):
                skipped_filters, raw = 1, b""  # never written, or unreadable: h5py fills it in, or says what is wrong
            if not skipped_filters:
                return inflate_chunk(raw, self._inflate, self.dtype, self._chunk_size)
        return np.asarray(self._array[first : first + self._chunk_size])


def _inflates(dataset: h5py.Dataset) -> tuple[int, ...] | None:
    """The filters of a dataset whose chunks `inflate_chunk` understands, else None."""
    if not dataset.chunks or dataset.dtype.kind not in "iufb":
        return None
    filters = _filters(dataset)
    return filters if filters in _INFLATABLE else None


def _filters(dataset: h5py.Dataset) -> tuple[int, ...]:
    created = dataset.id.get_create_plist()
    return tuple(created.get_filter(i)[0] for i in range(created.get_nfilters()))


def inflate_chunk(raw: bytes, filters: tuple[int, ...], dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    """Undo the filters of one HDF5 chunk of `size` elements."""
    raw = zlib.decompress(raw, bufsize=size * dtype.itemsize)
    if _SHUFFLE in filters:
        planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, size)
        return np.ascontiguousarray(planes.T).view(dtype).reshape(size)
    return np.frombuffer(raw, dtype, count=size)


class PlainStretch:
    """A one-dimensional h5py dataset without filters, read past HDF5 from the bytes of its file."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self.dtype: np.dtype[Any] = dataset.dtype
        self._chunk_size: int = dataset.chunks[0] if dataset.chunks else max(1, dataset.shape[0])
        self._descriptor = os.open(dataset.file.filename, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        """Number of elements."""
        return int(self._dataset.shape[0])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Elements start to stop."""
        out = np.empty(max(0, stop - start), self.dtype)
        while start < stop:
            number, skip = divmod(start, self._chunk_size)
            part = out[len(out) - (stop - start) :][: self._chunk_size - skip]
            offset = self._offset(number * self._chunk_size)
            if offset is None:  # never written: HDF5 fills it in
                part[:] = self._dataset[start : start + len(part)]
            else:
                read_exactly(self._descriptor, part, offset + skip * self.dtype.itemsize)
            start += len(part)
        return out

    def _offset(self, first: int) -> int | None:
        if not self._dataset.chunks:
            contiguous: int | None = self._dataset.id.get_offset()
            return contiguous
        chunked: int | None = self._dataset.id.get_chunk_info_by_coord((first,)).byte_offset
        return chunked


def read_exactly(descriptor: int, out: NDArray[Any], offset: int) -> None:
    """Fill an array from a file; OSError if the file ends before."""
    left = memoryview(out.view(np.uint8).data)
    while left:
        count = os.preadv(descriptor, [left], offset)
        if count == 0:
            raise OSError(f"the file ends {len(left)} bytes before the end of the values")
        left, offset = left[count:], offset + count


def open_stretch(array: Any) -> Stretch:
    """A one-dimensional h5py dataset or zarr array, by the fastest way that can read it."""
    if isinstance(array, h5py.Dataset) and array.dtype.kind in "iuf" and array.size:
        file = array.file
        is_plain_file = file.driver == "sec2" and file.userblock_size == 0 and file.mode == "r"
        if is_plain_file and not array.external and not _filters(array):
            return PlainStretch(array)
    return ChunkedStretch(array)


class FileStretch:
    """An array in a temporary file of our own."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], size: int) -> None:
        self._file = file
        weakref.finalize(self, file.close)
        self.dtype = dtype
        self._size = size

    def __len__(self) -> int:
        """Number of elements."""
        return self._size

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Elements start to stop."""
        width = self.dtype.itemsize
        return np.frombuffer(os.pread(self._file.fileno(), (stop - start) * width, start * width), self.dtype)

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Put values from element `start` on."""
        data = memoryview(np.ascontiguousarray(values, self.dtype).view(np.uint8).data)
        offset = start * self.dtype.itemsize
        while data:  # a single call writes at most 2 GiB
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written
