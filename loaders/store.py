"""What every store of cells can do, and how one is opened."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from unicoord_atlas.errors import UsageError

from .object_address import shown
from .soma_address import is_soma

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import anndata
    import pandas as pd
    from numpy.typing import DTypeLike, NDArray

    from unicoord_atlas.csr_block import CsrBlock
    from unicoord_atlas.normalization import Normalization
    from unicoord_atlas.schema import AtlasSchema

    from .byte_cache import ByteCache


class CsrBuffer:
    """Memory that one read after another lands in: fresh large arrays would cost more in page faults than the copy.

    It is mapped, not taken from the heap: what is outgrown goes back to the kernel, where a heap that keeps what is
    freed, as training's does, would be left with a hole of the old size for each new one.
    """

    def __init__(self) -> None:
        self._memory: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of this length whose content is whatever was read last; grows when it must."""
        needed = length * dtype.itemsize
        if name not in self._memory or len(self._memory[name]) < needed:
            self._memory.pop(name, None)
            room = max(needed + needed // 8, 1)  # the next may be somewhat larger; what is not touched takes nothing
            self._memory[name] = np.frombuffer(mmap.mmap(-1, room, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        return self._memory[name][:needed].view(dtype)


class CellStore(Protocol):
    """Cells of one gene space: counts by rows, obs, and the facts of the atlas."""

    uri: str
    schema: AtlasSchema
    normalization: Normalization
    indptr: NDArray[np.int64]
    """(n_obs + 1,), whole in memory: 8 MB a million cells."""
    fingerprint: str
    """The same for two stores only if their counts are the same, in the same order."""

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        ...

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        ...

    @property
    def size_factors(self) -> NDArray[np.float64]:
        """(n_obs,); see `unicoord_atlas.normalization`."""
        ...

    @property
    def entry_bytes(self) -> int:
        """Bytes of a stored entry in memory: an index and a count."""
        ...

    def obs(self, columns: Sequence[str] | None = None, arrow_names: bool = False) -> pd.DataFrame:
        """Facts about the cells, all columns or these; index = obs_names, held by Arrow if asked for.

        Python's texts take five times the memory; but only they make the index one that `equals` AnnData's.
        """
        ...

    def var(self) -> pd.DataFrame:
        """Genes; index = names."""
        ...

    def obsm_keys(self) -> list[str]:
        """Names of the tables with a row a cell."""
        ...

    def obsm(self, key: str) -> NDArray[np.generic] | pd.DataFrame:
        """A table with a row a cell, as it was stored."""
        ...

    def read_ranges(self, ranges: NDArray[np.int64], out: CsrBuffer | None = None) -> CsrBlock:
        """Rows of the (b, 2) ranges start:stop, one after the other in the order given."""
        ...

    def to_dask(self, dtype: DTypeLike = np.float32) -> Any:
        """X as a dask.array.Array of CSR blocks."""
        ...

    def to_anndata(self, lazy: bool = True) -> anndata.AnnData:
        """The atlas as an AnnData, X as a Dask array or in memory."""
        ...


def open_store(uri: str | Path, cache: ByteCache | None = None) -> CellStore:
    """Open a finished atlas.zarr, or a SOMA Experiment; see `soma_address` for which cells and counts of it.

    Parameters
    ----------
    uri
        A path, or the address of an atlas in an object store: s3://, gs://, az://, http:// or https://.
    cache
        Keeps on this machine what is read of an atlas in an object store.

    Raises
    ------
    DataError
        What is wrong with a store that is neither.
    ConfigError, UnreachableError
        Why an object store does not hand it out.
    UsageError
        If there is a cache, and nothing to keep in it.
    """
    if is_soma(uri):
        if cache is not None:
            raise UsageError(
                f"{shown(uri)}: --cache keeps Zarr atlases only; `unicoord-atlas convert` makes one of a SOMA, once"
            )
        from .soma_store import SomaStore  # late: tiledbsoma takes seconds, and is an extra

        return SomaStore(str(uri))
    from .zarr_store import ZarrStore  # late: a floor above may need only the protocol

    return ZarrStore(str(uri), cache)
