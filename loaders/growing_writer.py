"""Rows written one after the other to an AnnData file, when nobody knows yet how many entries there will be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anndata
import numpy as np
import zarr

from . import zarr_layout as names
from .cell_names import with_python_names
from .h5ad_writer import CsrWriter
from .hdf5_file import Hdf5Output
from .zarr_tables import EMPTY, write_tables
from .zarr_writer import ShardStream, create_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pandas as pd
    from numpy.typing import DTypeLike

    from unicoord_atlas.csr_block import CsrBlock


class GrowingWriter(Protocol):
    """What is told to write a matrix of cells that are made on the way."""

    def append(self, block: CsrBlock) -> None:
        """Write the next rows."""
        ...

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any]) -> None:
        """Write the rest: the tables of cells and genes, and what else is known."""
        ...


class GrowingZarr:
    """Writes X in the shards of an atlas; memory is that of a few chunks and one number a row."""

    def __init__(self, out: Path, num_genes: int, dtype: DTypeLike = np.float32, threads: int = 1) -> None:
        self._out, self._lengths = out, [np.zeros(1, np.int64)]
        self._layout = names.MatrixLayout(np.zeros(1, np.int64), num_genes, np.dtype(dtype))
        create_matrix(out, self._layout)
        self._pool = ThreadPoolExecutor(threads, "encode-shards")
        self._data, self._indices = (
            ShardStream(out / array, self._layout, kind, 0, self._pool, threads)
            for array, kind in ((names.DATA, self._layout.data_dtype), (names.INDICES, self._layout.index_dtype))
        )

    def append(self, block: CsrBlock) -> None:
        """Write the next rows."""
        self._lengths.append(np.diff(block.indptr))
        self._data.append(block.data)
        self._indices.append(block.indices.astype(self._layout.index_dtype, copy=False))

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any]) -> None:
        """Write the rest: the tables of cells and genes, and what else is known."""
        self._data.close()
        self._indices.close()
        indptr = np.concatenate(self._lengths).cumsum()
        root = zarr.open_group(self._out, mode="a", zarr_format=3)
        for array in (names.DATA, names.INDICES):
            zarr.open_array(self._out / array, mode="r+", zarr_format=3).resize((int(indptr[-1]),))
        root.create_array(names.INDPTR, data=indptr, chunks=(names.INDPTR_CHUNK,), overwrite=True)
        root["X"].attrs.update({"shape": [len(indptr) - 1, self._layout.num_genes]})
        write_tables(root, {"obs": obs, "var": var, "uns": dict(uns)})

    def close(self) -> None:
        """Let go of files and threads, finished or not."""
        self._pool.shutdown(cancel_futures=True)
        self._data.abandon()
        self._indices.abandon()


class GrowingH5ad:
    """Writes X of an .h5ad in compressed chunks."""

    def __init__(self, path: Path, num_genes: int, dtype: DTypeLike = np.float32) -> None:
        self._output = Hdf5Output(path)
        self._file = self._output.file
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self._writer = CsrWriter(self._file.create_group("X"), num_genes, dtype=dtype)

    def append(self, block: CsrBlock) -> None:
        """Write the next rows."""
        self._writer.append(np.diff(block.indptr), block.indices.astype(np.int32, copy=False), block.data)
        self._output.check()

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: Mapping[str, Any]) -> None:
        """Write the rest: the tables of cells and genes, and what else is known."""
        self._writer.finish()
        with anndata.settings.override(allow_write_nullable_strings=True):  # a var may have come with some
            for key, element in {"obs": obs, "var": var, "uns": dict(uns), **{key: {} for key in EMPTY}}.items():
                anndata.io.write_elem(self._file, key, with_python_names(element) if key == "obs" else element)

    def close(self) -> None:
        """Close the file, finished or not."""
        self._output.close()


@contextmanager
def growing_writer(path: Path, num_genes: int, dtype: DTypeLike = np.float32) -> Iterator[GrowingWriter]:
    """A writer of an .h5ad file, or of a Zarr store under any other name, with X of this type."""
    writer = GrowingH5ad(path, num_genes, dtype) if path.suffix == ".h5ad" else GrowingZarr(path, num_genes, dtype)
    try:
        yield writer
    finally:
        writer.close()
