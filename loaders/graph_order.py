"""A matrix of cells by cells under another order of the cells, out of core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .graph_pass import pieces
from .weights_pass import CsrFiles, EntryWriter

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_COPIED = 1 << 23
"""Entries read from the store at a time."""


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
    indices, values = (_mapped(folder / f"{name}.{key}.old", matrix[key]) for key in ("indices", "data"))
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


def _mapped(path: Path, array: Any) -> NDArray[Any]:
    """A copy of a compressed array as a plain file, mapped into memory."""
    copy = np.memmap(path, array.dtype, "w+", shape=array.shape) if array.shape[0] else np.empty(0, array.dtype)
    for start in range(0, array.shape[0], _COPIED):
        copy[start : start + _COPIED] = array[start : start + _COPIED]
    return copy
