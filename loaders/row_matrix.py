"""Matrices of input files, read as blocks of consecutive rows: CSR as it lies, dense, and CSC turned out of core.

Shapes: n cells (rows), g genes (columns), z non-zeros.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import DataError

from .chunked import FileStretch, Stretch, open_stretch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ENTRIES_PER_BLOCK = 1 << 18
"""Most entries that are held at once for one block.  Small, so that the copies that work on it makes stay in the cache
and in memory that is used again: at four times the size the same arithmetic takes twice the time."""
_BUCKET_ENTRIES = 1 << 20
"""Entries of CSC that are sorted together: every step writes to every bucket, so few are better."""
_SAMPLES, _SAMPLE_SIZE = 3, 20_000


class RowMatrix(Protocol):
    """A matrix of an input file."""

    encoding: str
    """csr, csc or dense"""
    dtype: np.dtype[Any]
    shape: tuple[int, int]

    def sample(self) -> NDArray[Any]:
        """Some values from the start, the middle and the end, to guess what the matrix holds."""
        ...

    def cuts(self, rows_per_block: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges of at most `rows_per_block` rows and, if more than one row, `ENTRIES_PER_BLOCK` entries."""
        ...

    def read(self, start: int, stop: int) -> CsrBlock:
        """Rows start to stop; may be called from several threads."""
        ...


class CsrMatrix:
    """CSR as it lies in the file."""

    encoding = "csr"

    def __init__(self, indptr: NDArray[np.int64], indices: Stretch, data: Stretch, num_columns: int) -> None:
        if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(data) or len(indices) != len(data):
            raise DataError("indptr, indices and data do not fit together; the file is damaged")
        if (np.diff(indptr) < 0).any():
            raise DataError("indptr descends; the file is damaged")
        self._indptr, self._indices, self._data = indptr, indices, data
        self.dtype = data.dtype
        self.shape = (len(indptr) - 1, num_columns)

    def sample(self) -> NDArray[Any]:
        """Some values from the start, the middle and the end."""
        return _sample(self._data)

    def cuts(self, rows_per_block: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges bounded in rows and entries."""
        return bounded_cuts(self._indptr, rows_per_block, start, stop)

    def read(self, start: int, stop: int) -> CsrBlock:
        """Rows start to stop."""
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        indices = self._indices.read(first, last)
        if last > first and not (indices.min() >= 0 and indices.max() < self.shape[1]):
            raise DataError(f"a column index is outside 0..{self.shape[1] - 1}; the file is damaged")
        return CsrBlock(self._indptr[start : stop + 1] - first, indices, _plain(self._data.read(first, last)))


class DenseMatrix:
    """A two-dimensional h5py dataset or zarr array."""

    encoding = "dense"

    def __init__(self, array: Any) -> None:
        self._array = array
        self.dtype: np.dtype[Any] = array.dtype
        self.shape: tuple[int, int] = tuple(array.shape)

    def sample(self) -> NDArray[Any]:
        """Some values from the start, the middle and the end."""
        rows = max(1, min(self.shape[0], _SAMPLE_SIZE // max(1, self.shape[1])))
        starts = sorted({0, self.shape[0] // 2, max(0, self.shape[0] - rows)})
        return np.concatenate([np.asarray(self._array[s : s + rows]).ravel() for s in starts])

    def cuts(self, rows_per_block: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges bounded in rows and values; whole chunks where they fit, so that none is decoded twice."""
        rows = min(rows_per_block, max(1, ENTRIES_PER_BLOCK // max(1, self.shape[1])))
        chunk = self._array.chunks[0] if self._array.chunks else 1
        if rows > chunk:
            rows -= rows % chunk
        return ((first, min(first + rows, stop)) for first in range(start, stop, rows))

    def read(self, start: int, stop: int) -> CsrBlock:
        """Rows start to stop."""
        dense = np.asarray(self._array[start:stop])
        present = dense != 0  # NaN counts as present and is refused later, by name
        indptr = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int64)
        return CsrBlock(indptr, np.nonzero(present)[1].astype(np.int32), _plain(dense[present]))


class CscMatrix:
    """CSC, turned into CSR in temporary files when rows are first asked for."""

    encoding = "csc"

    def __init__(
        self, indptr: NDArray[np.int64], indices: Stretch, data: Stretch, num_rows: int, scratch: Path | None
    ) -> None:
        self._by_column = CsrMatrix(indptr, indices, data, num_rows)  # the same checks hold
        self._parts = (indptr, indices, data)
        self._scratch = scratch
        self._turned: CsrMatrix | None = None
        self.dtype = data.dtype
        self.shape = (num_rows, len(indptr) - 1)

    def sample(self) -> NDArray[Any]:
        """Some values from the start, the middle and the end."""
        return self._by_column.sample()

    def cuts(self, rows_per_block: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges bounded in rows and entries."""
        return self._rows().cuts(rows_per_block, start, stop)

    def read(self, start: int, stop: int) -> CsrBlock:
        """Rows start to stop, which `cuts` was asked for before."""
        return self._rows().read(start, stop)

    def _rows(self) -> CsrMatrix:
        if self._turned is None:
            self._turned = turn_csc(*self._parts, self.shape[0], self._scratch)
        return self._turned


def bounded_cuts(
    indptr: NDArray[np.int64], max_rows: int, start: int, stop: int, max_entries: int | None = None
) -> Iterator[tuple[int, int]]:
    """Row ranges of at most `max_rows` rows and, if more than one row, `max_entries` (`ENTRIES_PER_BLOCK`) entries."""
    max_entries = ENTRIES_PER_BLOCK if max_entries is None else max_entries
    while start < stop:
        by_entries = int(np.searchsorted(indptr, indptr[start] + max_entries, side="right")) - 1
        end = min(start + max_rows, max(start + 1, by_entries), stop)
        yield start, end
        start = end


def begins_of(lengths: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    """(n + 1,) indptr of rows whose numbers of entries come in parts; no second array of that length is made."""
    indptr = np.zeros(sum(len(part) for part in lengths) + 1, np.int64)
    start = 1
    for part in lengths:
        indptr[start : start + len(part)] = part
        start += len(part)
    return np.cumsum(indptr, out=indptr)


def turn_csc(indptr: NDArray[np.int64], rows: Stretch, data: Stretch, num_rows: int, scratch: Path | None) -> CsrMatrix:
    """CSC to CSR with a bounded number of entries in memory.

    Entries are dealt into buckets of consecutive rows, each bucket a region of temporary files in `scratch`; then
    each bucket is sorted by row.  Columns come in ascending order, so a stable sort keeps them ascending.
    """
    size = len(data)
    steps = [(a, min(a + _BUCKET_ENTRIES, size)) for a in range(0, size, _BUCKET_ENTRIES)]
    per_row = np.zeros(num_rows, np.int32)  # no row has 2**31 entries
    for a, b in steps:
        part = rows.read(a, b)
        if not (part.min() >= 0 and part.max() < num_rows):
            raise DataError(f"a row index is outside 0..{num_rows - 1}; the file is damaged")
        per_row += np.bincount(part, minlength=num_rows)
    row_indptr = begins_of([per_row])
    del per_row
    buckets = list(bounded_cuts(row_indptr, num_rows, 0, num_rows, _BUCKET_ENTRIES))
    bucket_of_row = np.repeat(np.arange(len(buckets), dtype=np.int32), [b - a for a, b in buckets])
    row_file, column_file, value_file = (
        FileStretch(tempfile.TemporaryFile(dir=scratch), np.dtype(dtype), size)
        for dtype in (np.int32, np.int32, data.dtype)
    )

    cursor = row_indptr[[a for a, _ in buckets]]
    for a, b in steps:
        part = rows.read(a, b)
        bucket = bucket_of_row[part]
        order = np.argsort(bucket, kind="stable")
        columns = np.searchsorted(indptr, np.arange(a, b), side="right") - 1
        sorted_parts = part[order], columns[order], data.read(a, b)[order]
        ends = np.cumsum(np.bincount(bucket, minlength=len(buckets)))
        for number, (low, high) in enumerate(zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)):
            if high > low:
                for file, values in zip((row_file, column_file, value_file), sorted_parts, strict=True):
                    file.write(int(cursor[number]), values[low:high])
                cursor[number] += high - low

    for first, last in buckets:
        a, b = int(row_indptr[first]), int(row_indptr[last])
        order = np.argsort(row_file.read(a, b), kind="stable")
        for file in (column_file, value_file):
            file.write(a, file.read(a, b)[order])
    return CsrMatrix(row_indptr, column_file, value_file, len(indptr) - 1)


def _plain(data: NDArray[Any]) -> NDArray[np.number[Any]]:
    """Values in a type that all arithmetic knows: no booleans, no half floats, native byte order."""
    if data.dtype.kind == "b":
        return data.view(np.uint8)
    return (
        data.astype(np.float32) if data.dtype == np.float16 else data.astype(data.dtype.newbyteorder("="), copy=False)
    )


def _sample(data: Stretch) -> NDArray[Any]:
    size = len(data)
    starts = sorted({0, max(0, size // 2 - _SAMPLE_SIZE // 2), max(0, size - _SAMPLE_SIZE)})[:_SAMPLES]
    return np.concatenate([data.read(a, min(a + _SAMPLE_SIZE, size)) for a in starts])


def open_matrix(element: Any, scratch: Path | None) -> RowMatrix:
    """The matrix in an HDF5 or Zarr element of an AnnData file, old encodings too."""
    if hasattr(element, "shape"):
        if len(element.shape) != 2:
            raise DataError(f"has {len(element.shape)} dimensions, not 2")
        _require_numbers(element.dtype)
        return DenseMatrix(element)
    attributes = element.attrs
    encoding = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if encoding not in ("csr", "csc", "csr_matrix", "csc_matrix") or shape is None:
        raise DataError(f"is encoded as {encoding or 'something unknown'!r}, not as csr_matrix, csc_matrix or array")
    num_rows, num_columns = int(shape[0]), int(shape[1])
    indptr = np.asarray(element["indptr"][:])
    _require_whole(indptr.dtype, "indptr")
    _require_whole(element["indices"].dtype, "indices")
    _require_numbers(element["data"].dtype)
    indptr = indptr.astype(np.int64)
    parts = indptr, open_stretch(element["indices"]), open_stretch(element["data"])
    by_row = encoding.startswith("csr")
    if len(indptr) != (num_rows if by_row else num_columns) + 1:
        raise DataError(f"indptr has {len(indptr)} entries, which does not fit the shape {(num_rows, num_columns)}")
    return CsrMatrix(*parts, num_columns) if by_row else CscMatrix(*parts, num_rows, scratch)


def _require_numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "buif":
        raise DataError(f"holds values of type {dtype}, which are no counts")


def _require_whole(dtype: np.dtype[Any], what: str) -> None:
    if dtype.kind not in "ui":
        raise DataError(f"{what} holds values of type {dtype}, not whole numbers; the file is damaged")
