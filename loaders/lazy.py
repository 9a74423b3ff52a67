"""A store as a Dask array or a lazy AnnData, to compute on an atlas with scanpy without holding it in memory.

Shapes: n cells, g genes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from unicoord_atlas.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from .store import CellStore

_CHUNKS_PER_BLOCK = 16
"""Some four million counts: 32 MB as float32 with int32 indices, and five hundred blocks for a million cells."""


def dask_rows(store: CellStore, dtype: DTypeLike, inner_chunk: int) -> Any:
    """X as a Dask array of CSR blocks.

    A block begins with the first row that begins in every so-manieth inner chunk, so that blocks are of one size on
    disk, whatever the depth of their cells, and hardly any chunk is decoded for two of them.

    Parameters
    ----------
    dtype
        Of the values; scanpy wants float32.
    inner_chunk
        Entries that the store decodes together.

    Returns
    -------
    dask.array.Array, shape (n, g); each block a scipy.sparse.csr_matrix.

    Raises
    ------
    ConfigError
        If Dask is not installed.
    """
    try:
        import dask.array as da
    except ImportError:
        raise ConfigError("to_dask needs Dask, which is not installed: pip install 'unicoord-atlas[dask]'") from None
    borders = block_borders(store.indptr, inner_chunk * _CHUNKS_PER_BLOCK)
    dtype = np.dtype(dtype)
    return da.map_blocks(
        partial(_read_block, store, borders, dtype),
        chunks=(tuple(np.diff(borders).tolist()), (store.n_vars,)),
        dtype=dtype,
        meta=csr_matrix((0, 0), dtype=dtype),
        name=f"atlas-{store.fingerprint}-{dtype}",
    )


def block_borders(indptr: NDArray[np.int64], entries: int) -> NDArray[np.int64]:
    """First row of each block, and the number of rows at the end; no block is empty unless there are no rows."""
    starts = np.searchsorted(indptr, np.arange(0, int(indptr[-1]), entries), side="left")
    return np.unique(np.concatenate([[0], starts, [len(indptr) - 1]])) if len(indptr) > 1 else np.zeros(2, np.int64)


def _read_block(
    store: CellStore, borders: NDArray[np.int64], dtype: np.dtype[Any], block_info: Any = None
) -> csr_matrix:
    number = block_info[None]["chunk-location"][0]
    rows = store.read_ranges(borders[None, number : number + 2])
    return csr_matrix(
        (rows.data.astype(dtype), rows.indices.astype(np.int32), rows.indptr),
        shape=(len(rows.indptr) - 1, store.n_vars),
    )
