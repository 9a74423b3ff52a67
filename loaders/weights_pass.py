"""From neighbours and distances to the symmetric weights of a graph, rows at a time.

The transpose of the weights is made out of core, like any matrix that lies the wrong way round.
Shapes: n cells, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import scipy.sparse as sp

from unicoord_atlas.neighbors.connectivities import joined, membership

from .chunked import FileStretch
from .graph_pass import pieces
from .row_matrix import begins_of, turn_csc

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .row_file import RowFile


@dataclass(frozen=True, slots=True)
class CsrFiles:
    """A square CSR matrix whose entries lie in two files of our own."""

    indptr: NDArray[np.int64]
    indices: FileStretch
    data: FileStretch

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows start to stop."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        return sp.csr_matrix(
            (self.data.read(first, last), self.indices.read(first, last), self.indptr[start : stop + 1] - first),
            shape=(stop - start, len(self.indptr) - 1),
        )


class EntryWriter:
    """Takes the rows of a matrix, one block after the other."""

    def __init__(self, folder: Path, name: str) -> None:
        self._files: tuple[BinaryIO, BinaryIO] = (
            (folder / f"{name}.indices").open("w+b"),
            (folder / f"{name}.data").open("w+b"),
        )
        self._lengths: list[NDArray[np.int32]] = []

    def append(self, rows: sp.csr_matrix) -> None:
        """Put the next rows."""
        self._lengths.append(np.diff(rows.indptr).astype(np.int32))
        for file, values, dtype in zip(self._files, (rows.indices, rows.data), (np.int32, np.float32), strict=True):
            file.write(np.ascontiguousarray(values, dtype).data)

    def finish(self) -> CsrFiles:
        """The matrix, once all rows are there."""
        indptr = begins_of(self._lengths)
        for file in self._files:
            file.flush()
        indices, data = (
            FileStretch(file, np.dtype(dtype), int(indptr[-1]))
            for file, dtype in zip(self._files, (np.int32, np.float32), strict=True)
        )
        return CsrFiles(indptr, indices, data)


def distance_matrix(folder: Path, indices: RowFile, distances: RowFile) -> CsrFiles:
    """Distances of each cell to its neighbours, columns ascending; those of twins are stored zeros."""
    out = EntryWriter(folder, "sorted")
    for start, stop in pieces(indices.shape[0]):
        out.append(_rows(indices[start:stop], distances[start:stop], indices.shape[0]))
    return out.finish()


def connectivity_matrix(folder: Path, indices: RowFile, distances: RowFile) -> CsrFiles:
    """UMAP's symmetric weights; see `neighbors.connectivities`."""
    num_rows, k = indices.shape
    total = sum(float(distances[start:stop].sum(dtype=np.float64)) for start, stop in pieces(num_rows))
    directed = EntryWriter(folder, "directed")
    for start, stop in pieces(num_rows):
        weights_nk = membership(distances[start:stop], total / (num_rows * (k + 1)))
        directed.append(_rows(indices[start:stop], weights_nk, num_rows))
    weights = directed.finish()
    turned = turn_csc(weights.indptr, weights.indices, weights.data, num_rows, folder)
    out = EntryWriter(folder, "joined")
    for start, stop in pieces(num_rows):
        block = turned.read(start, stop)
        back = sp.csr_matrix((block.data, block.indices, block.indptr), shape=(stop - start, num_rows))
        out.append(joined(weights.read(start, stop), back))
    return out.finish()


def _rows(indices_nk: NDArray[np.int32], values_nk: NDArray[np.float32], num_columns: int) -> sp.csr_matrix:
    order = np.argsort(indices_nk, axis=1)
    n, k = indices_nk.shape
    indices, values = (np.take_along_axis(table, order, axis=1).ravel() for table in (indices_nk, values_nk))
    return sp.csr_matrix((values, indices, np.arange(0, n * k + 1, k)), shape=(n, num_columns))
