"""Matrices of cells by cells, and tables with a row a cell, under another order of the cells, out of core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .graph_pass import pieces
from .row_file import MappedRows
from .weights_pass import CsrFiles, EntryWriter

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_COPIED = 1 << 23
"""Values read from the store at a time."""


def reordered_matrix(folder: Path, name: str, matrix: Any, order: NDArray[np.int64]) -> CsrFiles:
    """Row i and column i of the result are row and column order[i] of the matrix; columns ascend.

    Parameters
    ----------
    folder
        Where the result's files, and a copy of the matrix's entries that can be read anywhere, are put.
    matrix
        The Zarr group of a square CSR matrix.
    """
    indptr = np.asarray(matrix["indptr"][:], np.int64)
    indices, values = (mapped_copy(folder / f"{name}.{key}.old", matrix[key]) for key in ("indices", "data"))
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    out = EntryWriter(folder, f"{name}.new")
    for start, stop in pieces(len(order)):
        rows = order[start:stop]
        lengths = indptr[rows + 1] - indptr[rows]
        ptr = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.repeat(indptr[rows] - ptr[:-1], lengths) + np.arange(ptr[-1])
        block = sp.csr_matrix((values[entries], place[indices[entries]], ptr), shape=(stop - start, len(order)))
        block.sort_indices()
        out.append(block)
    return out.finish()


def mapped_copy(path: Path, array: Any, dtype: Any = None) -> MappedRows:
    """A compressed array as a plain file that is read at any rows."""
    shape, dtype = tuple(array.shape), np.dtype(dtype or array.dtype)
    rows = max(_COPIED // int(np.prod(shape[1:], dtype=np.int64)), 1)
    with path.open("wb") as file:  # written, not mapped: a full disk is an error then, not a signal
        for start in range(0, shape[0], rows):
            file.write(np.ascontiguousarray(array[start : start + rows], dtype).data)
    return MappedRows(path, shape, dtype)


@dataclass(frozen=True, slots=True)
class ReorderedTable:
    """A table with a row a cell under another order of the cells."""

    table: MappedRows
    order: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, width)."""
        return self.table.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return self.table.dtype

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Consecutive rows of the new order."""
        return self.table[self.order[rows]]
