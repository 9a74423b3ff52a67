"""Names of cells held by Arrow: as Python's texts they would take five times the memory.  Shapes: n cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import zarr
from zarr.core.dtype import VariableLengthUTF8

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def read_frame(table: Any, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """A table that AnnData or `write_frame` wrote to Zarr, all columns or these; names held by Arrow."""
    chosen = table.attrs["column-order"] if columns is None else columns
    return pd.DataFrame({name: anndata.io.read_elem(table[name]) for name in chosen}, index=read_names(table))


class FrameColumns:
    """A table that AnnData or `write_frame` wrote to Zarr, by its columns, which are read as they are asked for."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.columns: list[str] = list(table.attrs["column-order"])

    def __getitem__(self, name: str) -> Any:
        """(n,) values of a column."""
        return anndata.io.read_elem(self._table[name])


def write_frame(root: zarr.Group, key: str, frame: pd.DataFrame) -> None:
    """Write a table as AnnData does, a column at a time; names that Arrow holds are written in pieces."""
    if frame.index.dtype != "string[pyarrow]":
        anndata.io.write_elem(root, key, frame)
        return
    columns = ((str(name), _plain(frame[name].array)) for name in frame)
    write_columns(root, key, frame.iloc[:0], frame.index, columns)


def write_columns(
    root: zarr.Group, key: str, empty: pd.DataFrame, names: pd.Index, columns: Iterable[tuple[str, Any]]
) -> None:
    """Write a table whose columns come one at a time and whose names are held by Arrow.

    Parameters
    ----------
    empty
        A table with the same columns and no rows.
    """
    anndata.io.write_elem(root, key, empty.set_axis(pd.Index([], dtype=object)))
    group: Any = root[key]
    for column, values in columns:
        anndata.io.write_elem(group, column, values)
    name = group.attrs["_index"]
    attributes = dict(group[name].attrs)
    array = group.create_array(
        name,
        shape=(len(names),),
        chunks=(min(_AT_ONCE, max(len(names), 1)),),
        dtype=VariableLengthUTF8(),
        attributes=attributes,
        overwrite=True,
    )
    for start in range(0, len(names), _AT_ONCE):
        array[start : start + _AT_ONCE] = names[start : start + _AT_ONCE].to_numpy(object)


def _plain(values: Any) -> Any:
    """A column as AnnData knows it: NumPy's own, or one of pandas' kinds."""
    return values.to_numpy() if isinstance(values, pd.arrays.NumpyExtensionArray) else values


def with_python_names(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with names that AnnData can write."""
    return frame.set_axis(frame.index.astype(object)) if frame.index.dtype == "string[pyarrow]" else frame
