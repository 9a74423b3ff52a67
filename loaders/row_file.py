"""A table in a file of our own that is filled block by block and knows how far: a killed pass goes on from there."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .chunked import FileStretch

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


_ROWS = 1 << 16
_STRETCH_BYTES = 1 << 24
"""Of a file, so many are in memory at a time where rows are read in any order."""


class RowFile:
    """(n, width) values, plain bytes; `next_row` rows are there, and with `durable` still are after a power cut."""

    def __init__(self, path: Path, num_rows: int, width: int, dtype: Any, durable: bool = True) -> None:
        self.path, self._durable = path, durable
        self._count = path.with_suffix(".rows")
        self.shape = (num_rows, width)
        self.dtype = np.dtype(dtype)
        self.next_row = min(self._counted(), self._rows_in_file())

    def append(self, values: NDArray[Any]) -> None:
        """Put the rows from `next_row` on."""
        with self.path.open("r+b" if self.next_row else "wb") as file:
            file.seek(self.next_row * self.shape[1] * self.dtype.itemsize)
            file.write(np.ascontiguousarray(values, self.dtype).data)
            if self._durable:
                file.flush()
                os.fdatasync(file.fileno())  # before the count says that they are there
        self._reached(self.next_row + len(values))

    def put_in_place(self, source: RowFile, places_n: NDArray[np.int64]) -> None:
        """All rows from `next_row` on: row i of another table becomes row places_n[i]."""
        source_row_n = np.empty_like(places_n)
        source_row_n[places_n] = np.arange(len(places_n))
        rows = source.anywhere()
        for start in range(self.next_row, self.shape[0], _ROWS):
            self.append(rows[source_row_n[start : start + _ROWS]])

    def _counted(self) -> int:
        try:
            return int(self._count.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _rows_in_file(self) -> int:
        row_bytes = self.shape[1] * self.dtype.itemsize
        return self.path.stat().st_size // row_bytes if row_bytes and self.path.exists() else 0

    def _reached(self, next_row: int) -> None:
        self.next_row = next_row
        partial = self._count.with_suffix(".partial")
        with partial.open("w") as file:
            file.write(str(self.next_row))
            if self._durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(self._count)

    def rows(self) -> NDArray[Any]:
        """All rows, mapped into memory."""
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)

    def anywhere(self) -> MappedRows:
        """All rows, to be read in any order."""
        return MappedRows(self.path, self.shape, self.dtype)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Consecutive rows, read from the file: unlike a map, they leave memory with the array."""
        start, stop, _ = rows.indices(self.shape[0])
        width = self.shape[1]
        values = np.fromfile(self.path, self.dtype, (stop - start) * width, offset=start * width * self.dtype.itemsize)
        return values.reshape(stop - start, width)

    def stretch(self) -> FileStretch:
        """All values, row after row, read in pieces."""
        return FileStretch(self.path.open("rb"), self.dtype, self.shape[0] * self.shape[1])


class MappedRows:
    """A file of plain values that is read at any rows; what was read does not stay in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else None
        self._values = np.frombuffer(self._map or b"", self.dtype).reshape(shape)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[Any]:
        """A copy of these rows."""
        if isinstance(rows, slice):
            return self._taken(rows)
        flat_n = rows.ravel()
        taken = np.empty((len(flat_n), *self.shape[1:]), self.dtype)
        for part in self._by_stretch(flat_n):
            taken[part] = self._taken(flat_n[part])
        return taken.reshape(*rows.shape, *self.shape[1:])

    def _by_stretch(self, rows_n: NDArray[np.integer]) -> list[NDArray[np.int64]]:
        """Which of the rows lie in each stretch of the file: a row alone would bring pages around it into memory."""
        row_bytes = max(int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize, 1)
        stretch_n = (rows_n // max(_STRETCH_BYTES // row_bytes, 1)).astype(np.uint16)  # which NumPy sorts by radix
        order = np.argsort(stretch_n, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(stretch_n[order])) + 1)

    def _taken(self, rows: slice | NDArray[np.integer]) -> NDArray[Any]:
        taken = np.array(self._values[rows])
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)  # the system's cache keeps them; they no longer count as ours
        return taken
