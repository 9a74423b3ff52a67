"""Names of cells held by Arrow: as Python's texts they would take five times the memory.  Shapes: n cells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import zarr
from zarr.core.dtype import VariableLengthUTF8

from .reading import reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TEXT = pa.large_string()
_AT_ONCE = 1 << 16
"""Names that are texts of Python's at a time; also a chunk of the array on disk."""


def arrow_index(parts: Iterable[Any]) -> pd.Index:
    """(n,) the names of all parts, one part after the other."""
    chunks = pa.chunked_array([pa.array(_known_to_arrow(part), TEXT) for part in parts], TEXT)
    return pd.Index(pd.array(chunks, "string[pyarrow]"))


def _known_to_arrow(part: Any) -> Any:
    """NumPy's own texts as Python's, a part at a time: Arrow before version 26 does not know them."""
    return part.astype(object) if getattr(part, "dtype", None) == np.dtypes.StringDType() else part


def read_names(table: Any) -> pd.Index:
    """(n,) the index of a table that AnnData or `write_frame` wrote to Zarr."""
    key = table.attrs["_index"]
    array, title = table[key], None if key == "_index" else key
    if isinstance(array, zarr.Group):  # texts with missing ones, as some program may have written them
        return arrow_index([anndata.io.read_elem(array)]).rename(title)
    parts = (array[start : start + _AT_ONCE] for start in range(0, array.shape[0], _AT_ONCE))
    return arrow_index(parts).rename(title)


class StoredNames:
    """The index of a table that `write_frame` wrote, read where it is sliced."""

    def __init__(self, table: Any) -> None:
        key = table.attrs["_index"]
        self._array = table[key]
        self.name = None if key == "_index" else key

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def __getitem__(self, rows: slice) -> pd.Index:
        return pd.Index(self._array[rows].astype(object))


def read_frame(table: Any, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """A table that AnnData or `write_frame` wrote to Zarr, all columns or these; names held by Arrow."""
    chosen = table.attrs["column-order"] if columns is None else columns
    return pd.DataFrame({name: anndata.io.read_elem(table[name]) for name in chosen}, index=read_names(table))


class FrameColumns:
    """A table that AnnData or `write_frame` wrote to Zarr, by its columns, which are read as they are asked for."""

    def __init__(self, table: Any, where: Path | str) -> None:
        """`where` is the file or store, for messages."""
        self._table, self._where = table, where
        self.columns: list[str] = list(table.attrs["column-order"])

    def __getitem__(self, name: str) -> Any:
        """(n,) values of a column; DataError if they cannot be read."""
        with reading(self._where, f"{self._table.path}/{name}"):
            return anndata.io.read_elem(self._table[name])

    def with_column(self, title: str, values: Any, order: NDArray[np.int64] | None = None) -> TableByColumn:
        """All columns and one more, to be written; with `order`, which the further column has already, in that."""
        titles, last = [*self.columns, title], [(title, values)]
        if order is None:
            return TableByColumn(StoredNames(self._table), titles, chain(((n, self[n]) for n in self.columns), last))
        moved = self.in_order(order)
        return TableByColumn(moved.names, titles, chain(moved.columns, last))

    def in_order(self, order: NDArray[np.int64]) -> TableByColumn:
        """The same rows in another order, to be written."""
        moved = ((name, self[name][order]) for name in self.columns)
        return TableByColumn(read_names(self._table).take(order), self.columns, moved)


@dataclass(frozen=True, slots=True)
class TableByColumn:
    """A table to be written whose columns come one at a time: of a million cells a whole one takes 150 MB."""

    names: pd.Index | StoredNames
    """(n,)"""
    titles: Sequence[str]
    """Of the columns."""
    columns: Iterable[tuple[str, Any]]
    """Title and (n,) values of each."""


def write_frame(root: zarr.Group, key: str, frame: pd.DataFrame) -> None:
    """Write a table as AnnData does, a column at a time; names that Arrow holds are written in pieces."""
    if frame.index.dtype == "string[pyarrow]":
        columns = ((str(title), _plain(frame[title].array)) for title in frame)
        write_columns(root, key, TableByColumn(frame.index, [str(title) for title in frame], columns))
    else:
        anndata.io.write_elem(root, key, frame)


def put_aside(folder: Path, frame: pd.DataFrame) -> FrameColumns:
    """The same table in a folder, so that it need not stay in memory."""
    root: Any = zarr.open_group(folder, mode="w", zarr_format=3)
    write_frame(root, "table", frame)
    return FrameColumns(root["table"], folder)


def write_columns(root: zarr.Group, key: str, table: TableByColumn) -> None:
    """Write a table a column, and its names a piece, at a time."""
    empty = pd.DataFrame(
        columns=list(table.titles), index=pd.Index([], dtype=object, name=table.names.name), dtype=float
    )
    anndata.io.write_elem(root, key, empty)
    group: Any = root[key]
    for title, values in table.columns:
        anndata.io.write_elem(group, title, values)
    name = group.attrs["_index"]
    attributes = dict(group[name].attrs)
    array = group.create_array(
        name,
        shape=(len(table.names),),
        chunks=(min(_AT_ONCE, max(len(table.names), 1)),),
        dtype=VariableLengthUTF8(),
        attributes=attributes,
        overwrite=True,
    )
    for start in range(0, len(table.names), _AT_ONCE):
        array[start : start + _AT_ONCE] = table.names[start : start + _AT_ONCE].to_numpy(object)


def _plain(values: Any) -> Any:
    """A column as AnnData knows it: NumPy's own, or one of pandas' kinds."""
    return values.to_numpy() if isinstance(values, pd.arrays.NumpyExtensionArray) else values


def with_python_names(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with names that AnnData can write."""
    return frame.set_axis(frame.index.astype(object)) if frame.index.dtype == "string[pyarrow]" else frame
