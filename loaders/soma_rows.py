"""Rows of a SOMA sparse matrix in storage order, as CSR.

TileDB hands out entries tile by tile.  Where the tiles of a row lie side by side, entries come sorted already and are
taken as they are; otherwise a window's entries are sorted by counting, once.
Shapes: n rows, z entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import DataError, UnreachableError

from .object_address import object_address
from .object_open import folders
from .soma_open import tiledbsoma

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .store import CsrBuffer

ROWS, COLUMNS, VALUES = "soma_dim_0", "soma_dim_1", "soma_data"
_ROWS_TOGETHER = 65_536
"""Of a matrix between cells."""


def entries_of(
    array: Any, joinids: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[Any]]]:
    """Positions in `joinids` (ascending), columns and values of all entries that are not 0, a buffer at a time."""
    if not len(joinids):
        return
    first, last = int(joinids[0]), int(joinids[-1])
    consecutive = last - first + 1 == len(joinids)
    wanted = slice(first, last) if consecutive else pa.array(joinids)  # both ends of SOMA's slices are taken
    places = np.zeros(last - first + 1, np.int32)  # a look-up an entry, where a search would take half of the time
    places[joinids - first] = np.arange(len(joinids))
    for table in _tables(array, wanted):
        rows, columns, values = (table.column(name).to_numpy() for name in (ROWS, COLUMNS, VALUES))
        kept = values != 0
        if not kept.all():
            rows, columns, values = rows[kept], columns[kept], values[kept]
        yield places[rows - first], columns, values


def _tables(array: Any, wanted: slice | pa.Array) -> Iterator[pa.Table]:
    try:
        yield from array.read((wanted,)).tables()
        return
    except tiledbsoma().SOMAError as error:
        if object_address(array.uri) is None:
            raise DataError(
                f"{array.uri}: cannot be read ({error}); restore it or write the experiment again"
            ) from error
    folders(array.uri)  # outside: TileDB's error holds headers of the answer, and this says why none comes
    raise UnreachableError(f"{array.uri}: the server broke off, often as it was tried; give the command again")


def read_rows(
    array: Any,
    joinids: NDArray[np.int64],
    indptr: NDArray[np.int64],
    num_genes: int,
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    buffer: CsrBuffer,
) -> CsrBlock:
    """The rows of ascending `joinids`.

    Parameters
    ----------
    array
        An open SparseNDArray.
    indptr
        (n + 1,) from 0: how many entries each row has.
    dtypes
        Of indices and data.

    Raises
    ------
    DataError
        If a row has another number of entries.
    """
    num_entries = int(indptr[-1])
    rows = buffer.array("rows", num_entries, np.dtype(np.int32))
    indices = buffer.array("indices", num_entries, dtypes[0])
    data = buffer.array("data", num_entries, dtypes[1])
    filled = 0
    for positions, columns, values in entries_of(array, joinids):
        stop = filled + len(positions)
        if stop > num_entries:
            raise _changed(array)
        rows[filled:stop], indices[filled:stop], data[filled:stop] = positions, columns, values
        filled = stop
    if filled != num_entries or not np.array_equal(np.bincount(rows, minlength=len(joinids)), np.diff(indptr)):
        raise _changed(array)
    if _sorted(rows, indices):
        return CsrBlock(indptr, indices, data)
    matrix = coo_array((data, (rows, indices.astype(np.int32))), shape=(len(joinids), num_genes)).tocsr()
    matrix.sort_indices()
    return CsrBlock(indptr, matrix.indices.astype(dtypes[0]), matrix.data)


def graph_rows(
    array: Any, joinids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """A matrix between the cells of the store as CSR: indptr (n + 1,), columns ascending in each row, values.

    All is in memory, 8 bytes an entry.  DataError if an entry is of no cell of the store.
    """
    lengths_n, columns_of, values_of = np.zeros(len(joinids), np.int64), [], []
    for start in range(0, len(joinids), _ROWS_TOGETHER):
        part = joinids[start : start + _ROWS_TOGETHER]
        table = array.read((slice(int(part[0]), int(part[-1])),)).tables().concat()
        rows, columns = (np.searchsorted(joinids, table.column(name).to_numpy()) for name in (ROWS, COLUMNS))
        if not np.array_equal(joinids[np.minimum(columns, len(joinids) - 1)], table.column(COLUMNS).to_numpy()):
            raise DataError(f"{array.uri}: has neighbours that are no cells of the store; build the graph again")
        order = np.lexsort((columns, rows))
        columns_of.append(columns[order].astype(np.int32))
        values_of.append(table.column(VALUES).to_numpy()[order].astype(np.float32))
        lengths_n[start : start + len(part)] = np.bincount(rows - start, minlength=len(part))
    return np.concatenate([[0], np.cumsum(lengths_n)]), np.concatenate(columns_of), np.concatenate(values_of)


def _sorted(rows: NDArray[np.int32], columns: NDArray[Any]) -> bool:
    step = np.diff(rows)
    return bool((step >= 0).all() and (columns[1:] > columns[:-1])[step == 0].all())


def _changed(array: Any) -> DataError:
    return DataError(f"{array.uri}: it holds other entries than when it was counted; open it again")
