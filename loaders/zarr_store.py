"""ZarrStore: a finished atlas.zarr, read-only."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import zarr
from anndata.io import read_elem

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
from .reading import reading
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
    from .store_files import StoreFiles

_FACTS = f"uns/{names.UNS}"


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
        with reading(uri, "zarr.json"):
            self.group: Any = _open_atlas(self.files)
        with reading(uri, "X"):
            self.layout = names.read_layout(self.group, uri)
        self.indptr = self.layout.indptr
        self.fingerprint = fingerprint(self.manifest)
        with reading(uri, _FACTS):
            facts = read_elem(self.group[_FACTS])
            self.schema = AtlasSchema.from_json(str(facts[names.SCHEMA][0]), where=f"{uri}: {_FACTS}/{names.SCHEMA}")
            for source in self.schema.sources:
                source.measured(self.schema.num_genes)  # whoever wants it later would not name the store
            self.normalization = read_normalization(facts[names.NORMALIZATION])
            sizes = (self.n_vars, self.schema.num_genes, len(self.normalization.mean_g))
        if len(set(sizes)) > 1:
            raise DataError(
                f"{uri}: X has {sizes[0]} genes, the schema {sizes[1]}, the normalization {sizes[2]}; "
                "restore it or ingest again"
            )

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
        what = f"obs/{names.SIZE_FACTOR}"
        with reading(self.uri, what):
            values = np.asarray(self.group[what][:], np.float64)
            self._require_rows(what, len(values))
        return values

    def obs(self, columns: Sequence[str] | None = None, arrow_names: bool = False) -> pd.DataFrame:
        """Facts about the cells, all columns or these; see `CellStore.obs`."""
        with reading(self.uri, "obs"):
            group = self.group["obs"]
            known = list(group.attrs["column-order"])
            unknown = [name for name in columns or () if name not in known]
            if unknown:
                raise UsageError(f"{self.uri}: obs has no column {unknown[0]!r}; it has: {', '.join(known)}")
            table = read_frame(group, known if columns is None else columns)
            self._require_rows("obs", len(table))
            return table if arrow_names else with_python_names(table)

    def var(self) -> pd.DataFrame:
        """Genes; index = names."""
        with reading(self.uri, "var"):
            return read_elem(self.group["var"])

    def obsm_keys(self) -> list[str]:
        """Names of the tables with a row a cell."""
        with reading(self.uri, "obsm"):
            return sorted(self.group["obsm"])

    def obsm(self, key: str) -> NDArray[np.generic] | pd.DataFrame:
        """A table with a row a cell, as it was stored."""
        known = self.obsm_keys()
        if key not in known:
            raise UsageError(f"{self.uri}: obsm has no {key!r}; it has: {', '.join(known) or 'nothing'}")
        with reading(self.uri, f"obsm/{key}"):
            element = self.group[f"obsm/{key}"]
            is_frame = "column-order" in element.attrs
            table: NDArray[np.generic] | pd.DataFrame = read_frame(element) if is_frame else read_elem(element)
            self._require_rows(f"obsm/{key}", table.shape[0])
        return table

    def obsm_columns(self, key: str) -> FrameColumns | None:
        """The same by its columns, read as they are asked for; None if it has no named ones."""
        with reading(self.uri, f"obsm/{key}"):
            table = self.group.get(f"obsm/{key}")
            return FrameColumns(table, self.uri) if table is not None and "column-order" in table.attrs else None

    def _require_rows(self, what: str, num_rows: int) -> None:
        if num_rows != self.n_obs:
            raise DataError(f"{self.uri}: {what} has {num_rows} rows, not {self.n_obs}; restore it or ingest again")

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
        with reading(self.uri, "X"):
            _in_threads(self._pool, reads, READ_THREADS if here else self.files.threads)
        self.entries_decoded += sum(part.num_decoded for _, part in reads) // len(self._readers)
        return CsrBlock(indptr, indices, data)

    def close_shards(self) -> None:
        """Take the files of X, and what was read of them, out of memory; who reads on opens them anew."""
        self.__dict__.pop("_readers", None)

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
        with reading(self.uri, "the atlas"):
            if not lazy:
                return anndata.io.read_zarr(self.files.zarr())
            tables = {name: read_elem(self.group[name]) for name in ("obs", "var", "uns")}
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
            return self._reader(names.DATA, data.dtype), self._reader(names.INDICES, indices.dtype, self.n_vars)
        whole = f"{self.uri}/{names.DATA}", f"{self.uri}/{names.INDICES}"
        return ArrayReader(data, whole[0]), ArrayReader(indices, whole[1], self.n_vars)

    def _reader(self, array: str, dtype: np.dtype[Any], limit: int | None = None) -> ShardReader:
        def where(shard: int) -> str:
            return names.name_shard(self.uri, self.layout, f"{array}/c/{shard}")

        crc32c_of, layout = shard_checksums(self.manifest, array), self.layout
        return self.files.reader(array, dtype, layout.inner_chunk, layout.chunks_per_shard, where, crc32c_of, limit)


def _open_atlas(files: StoreFiles) -> Any:
    """The group of an atlas; DataError for what another job has made."""
    with suppress(zarr.errors.GroupNotFoundError):
        group = zarr.open_group(files.zarr(), mode="r")
        if f"{_FACTS}/{names.SCHEMA}" in group:
            return group
    raise DataError(f"{files.uri} is an output of unicoord-atlas, but no atlas store")


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
