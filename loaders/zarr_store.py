"""ZarrStore: a finished atlas.zarr, read-only."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import zarr

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import ConfigError, DataError, UsageError
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.schema import AtlasSchema

from . import zarr_layout as names
from .array_reader import ArrayReader, Part, is_sharded_blosc
from .cell_names import FrameColumns, read_frame, with_python_names
from .manifest import fingerprint, read_manifest, require_files, shard_checksums
from .object_address import from_anywhere
from .plan import expand_ranges
from .store import CsrBuffer
from .store_files import READ_THREADS, open_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from numpy.typing import DTypeLike, NDArray

    from .array_reader import EntryReader, Work
    from .byte_cache import ByteCache
    from .shard_reader import ShardReader
    from .store import CellStore


class ZarrStore:
    """A finished atlas; see `CellStore`.  It pickles as its address, so a spawned worker opens it anew."""

    def __init__(self, uri: str, cache: ByteCache | None = None) -> None:
        self.files = open_files(uri, cache)
        self.uri = uri = self.files.uri
        self._cache = cache
        self._process = os.getpid()
        self.entries_decoded = 0
        """Since the store was opened: over the entries read, because blocks are decoded whole."""
        self.manifest = read_manifest(self.files)
        require_files(self.files, self.manifest)
        try:
            self.group: Any = zarr.open_group(self.files.zarr(), mode="r")
        except zarr.errors.GroupNotFoundError:
            raise DataError(f"{uri} is an output of unicoord-atlas, but no atlas store") from None
        self.layout = names.read_layout(self.group, uri)
        self.indptr = self.layout.indptr
        self.fingerprint = fingerprint(self.manifest)
        facts = anndata.io.read_elem(self.group[f"uns/{names.UNS}"])
        if names.SCHEMA not in facts:  # cells that `generate` made, or coordinates with counts
            raise DataError(f"{uri} is an output of unicoord-atlas, but no atlas store")
        self.schema = AtlasSchema.from_json(str(facts[names.SCHEMA][0]), where=f"{uri}: uns/{names.UNS}/{names.SCHEMA}")
        self.normalization = read_normalization(facts[names.NORMALIZATION])

    def __reduce__(self) -> tuple[type[ZarrStore], tuple[str, ByteCache | None]]:
        return ZarrStore, (from_anywhere(self.uri), self._cache)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.layout.num_rows

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return self.layout.num_genes

    @property
    def entry_bytes(self) -> int:
        """Bytes of a stored entry in memory."""
        return self.layout.data_dtype.itemsize + self.layout.index_dtype.itemsize

    @cached_property
    def size_factors(self) -> NDArray[np.float64]:
        """(n_obs,); see `unicoord_atlas.normalization`."""
        return np.asarray(self.group[f"obs/{names.SIZE_FACTOR}"][:], np.float64)

    def obs(self, columns: Sequence[str] | None = None, arrow_names: bool = False) -> pd.DataFrame:
        """Facts about the cells, all columns or these; see `CellStore.obs`."""
        group = self.group["obs"]
        if columns is None:
            columns = list(group.attrs["column-order"])
        unknown = [name for name in columns if name not in group.attrs["column-order"]]
        if unknown:
            known = ", ".join(group.attrs["column-order"])
            raise UsageError(f"{self.uri}: obs has no column {unknown[0]!r}; it has: {known}")
        table = read_frame(group, columns)
        return table if arrow_names else with_python_names(table)

    def var(self) -> pd.DataFrame:
        """Genes; index = names."""
        return anndata.io.read_elem(self.group["var"])

    def obsm_keys(self) -> list[str]:
        """Names of the tables with a row a cell."""
        return sorted(self.group["obsm"])

    def obsm(self, key: str) -> NDArray[np.generic] | pd.DataFrame:
        """A table with a row a cell, as it was stored."""
        group = self.group["obsm"]
        if key not in group:
            raise UsageError(f"{self.uri}: obsm has no {key!r}; it has: {', '.join(self.obsm_keys()) or 'nothing'}")
        if "column-order" in group[key].attrs:
            return read_frame(group[key])
        table: NDArray[np.generic] = anndata.io.read_elem(group[key])
        return table

    def obsm_columns(self, key: str) -> FrameColumns | None:
        """The same by its columns, read as they are asked for; None if it has no named ones."""
        table = self.group.get(f"obsm/{key}")
        return FrameColumns(table) if table is not None and "column-order" in table.attrs else None

    def read_ranges(self, ranges: NDArray[np.int64], out: CsrBuffer | None = None) -> CsrBlock:
        """Rows of the (b, 2) ranges start:stop, one after the other in the order given."""
        if os.getpid() != self._process:
            raise ConfigError(
                f"{self.uri}: this process was forked after the store was opened, and the threads that read did not "
                "come along; start workers with the spawn method"
            )
        spans = self.indptr[ranges]
        rows = expand_ranges(ranges)
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        buffer = out or CsrBuffer()
        data = buffer.array("data", int(indptr[-1]), self.layout.data_dtype)
        indices = buffer.array("indices", int(indptr[-1]), self.layout.index_dtype)
        reads = [
            (reader.decode, part)
            for reader, into in zip(self._readers, (data, indices), strict=True)
            for part in reader.parts(spans, into)
        ]
        here = all(isinstance(part, Part) for _, part in reads)
        _in_threads(self._pool, reads, READ_THREADS if here else self.files.threads)
        self.entries_decoded += sum(part.num_decoded for _, part in reads) // len(self._readers)
        return CsrBlock(indptr, indices, data)

    def to_dask(self, dtype: DTypeLike = np.float32) -> Any:
        """X as a dask.array.Array of CSR blocks that follow the chunks on disk; see `lazy.dask_rows`."""
        from .lazy import dask_rows  # late: Dask takes a second, and is an extra

        return dask_rows(self, dtype, self.layout.inner_chunk)

    def to_anndata(self, lazy: bool = True) -> anndata.AnnData:
        """The atlas as an AnnData.

        Parameters
        ----------
        lazy
            X is `to_dask()`, and obsm, obsp, layers and varm are Dask arrays too; obs, var and uns are in memory, so
            that scanpy takes them.  Otherwise all is in memory, counts in their type on disk.

        Raises
        ------
        ConfigError
            If `lazy`, and Dask is not installed.
        """
        if not lazy:
            return anndata.io.read_zarr(self.files.zarr())
        tables = {name: anndata.io.read_elem(self.group[name]) for name in ("obs", "var", "uns")}
        arrays = {
            name: {key: anndata.experimental.read_elem_lazy(part) for key, part in self.group[name].members()}
            for name in ("obsm", "obsp", "varm", "layers")
        }
        return anndata.AnnData(self.to_dask(), **tables, **arrays)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.files.threads, "read-shards")

    @cached_property
    def _readers(self) -> tuple[EntryReader, EntryReader]:
        data, indices = self.group[names.DATA], self.group[names.INDICES]
        if (
            is_sharded_blosc(data)
            and is_sharded_blosc(indices)
            and (data.chunks, data.shards) == (indices.chunks, indices.shards)
        ):
            return self._reader(names.DATA, data.dtype), self._reader(names.INDICES, indices.dtype)
        return ArrayReader(data), ArrayReader(indices)

    def _reader(self, array: str, dtype: np.dtype[Any]) -> ShardReader:
        def where(shard: int) -> str:
            return names.name_shard(self.uri, self.layout, f"{array}/c/{shard}")

        crc32c_of = shard_checksums(self.manifest, array)
        return self.files.reader(array, dtype, self.layout.inner_chunk, self.layout.chunks_per_shard, where, crc32c_of)


def require_zarr(store: CellStore, purpose: str) -> ZarrStore:
    """The store itself; UsageError if it is a SOMA, which cannot serve the purpose."""
    if not isinstance(store, ZarrStore):
        raise UsageError(f"{store.uri}: only a Zarr atlas can {purpose}; make one with `unicoord-atlas convert`")
    return store


def _in_threads(
    pool: ThreadPoolExecutor, reads: Sequence[tuple[Callable[[Any], None], Work]], num_threads: int
) -> None:
    # The threads draw from one iterator: a task each would cost more than many of these reads.
    left = iter(reads)

    def work() -> None:
        for decode, part in left:
            decode(part)

    futures = [pool.submit(work) for _ in range(num_threads)]
    wait(futures)  # all of them, before an error of one is raised: they write into the caller's memory
    for future in futures:
        future.result()


def read_normalization(facts: Mapping[str, Any]) -> Normalization:
    """The frozen normalization from its entries under uns."""
    return Normalization(
        facts["highly_expressed"].astype(np.bool_),
        facts["mean_fraction"],
        facts["mean"],
        facts["variance"],
        float(facts["target_sum"]),
        float(facts["max_fraction"]),
        int(facts["min_cells"]),
        bool(facts["log_input"]),
    )
