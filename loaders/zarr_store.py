"""ZarrStore: a finished atlas.zarr, read-only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import zarr
from numpy.typing import NDArray

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.schema import AtlasSchema

from . import zarr_layout as names
from .shard_reader import Part, ShardReader
from .store import CsrBuffer, CsrRows
from .zarr_layout import MatrixLayout

if TYPE_CHECKING:
    import pandas as pd

READ_THREADS = 2


class ZarrStore:
    """A finished atlas; see `CellStore`.  It pickles as its address, so a spawned worker opens it anew."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._path = Path(uri)
        self.manifest = read_manifest(self._path)
        self._group = zarr.open_group(self._path, mode="r")
        self.layout = read_layout(self._group, uri)
        self.indptr = self.layout.indptr
        _require_shards(self._path, self.layout, self.manifest)
        self.fingerprint = _fingerprint(self.manifest)
        facts = anndata.io.read_elem(self._group[f"uns/{names.UNS}"])
        self.schema = AtlasSchema.from_json(str(facts[names.SCHEMA]), where=f"{uri}: uns/{names.UNS}/{names.SCHEMA}")
        self.normalization = read_normalization(facts[names.NORMALIZATION])

    def __reduce__(self) -> tuple[type[ZarrStore], tuple[str]]:
        return ZarrStore, (self.uri,)

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
        return np.asarray(self._group[f"obs/{names.SIZE_FACTOR}"][:], np.float64)

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Facts about the cells, all columns or these; index = obs_names."""
        group = self._group["obs"]
        if columns is None:
            return anndata.io.read_elem(group)
        unknown = [name for name in columns if name not in group.attrs["column-order"]]
        if unknown:
            known = ", ".join(group.attrs["column-order"])
            raise UsageError(f"{self.uri}: obs has no column {unknown[0]!r}; it has: {known}")
        index = anndata.io.read_elem(group[group.attrs["_index"]])
        import pandas as pd

        return pd.DataFrame({name: anndata.io.read_elem(group[name]) for name in columns}, index=pd.Index(index))

    def obsm(self, key: str) -> NDArray[np.generic] | pd.DataFrame:
        """A table with a row a cell, as it was stored."""
        group = self._group["obsm"]
        if key not in group:
            raise UsageError(f"{self.uri}: obsm has no {key!r}; it has: {', '.join(sorted(group)) or 'nothing'}")
        table: NDArray[np.generic] | pd.DataFrame = anndata.io.read_elem(group[key])
        return table

    def read_ranges(self, ranges: NDArray[np.int64], out: CsrBuffer | None = None) -> CsrRows:
        """Rows of the (b, 2) ranges start:stop, one after the other in the order given."""
        spans = self.indptr[ranges]
        rows = expand_ranges(ranges)
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        buffer = out or CsrBuffer()
        data = buffer.array("data", int(indptr[-1]), self.layout.data_dtype)
        indices = buffer.array("indices", int(indptr[-1]), self.layout.index_dtype)
        reads = [(reader.decode, part) for reader, into in zip(self._readers, (data, indices), strict=True) for part in reader.parts(spans, into)]
        _in_threads(self._pool, reads)
        return CsrRows(indptr, indices, data)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READ_THREADS, "read-shards")

    @cached_property
    def _readers(self) -> tuple[ShardReader, ShardReader]:
        data, indices = (
            ShardReader(
                self._path / array,
                dtype,
                self.layout.inner_chunk,
                self.layout.chunks_per_shard,
                lambda shard, array=array: name_shard(self._path, self.layout, f"{array}/c/{shard}"),
            )
            for array, dtype in ((names.DATA, self.layout.data_dtype), (names.INDICES, self.layout.index_dtype))
        )
        return data, indices


def _in_threads(pool: ThreadPoolExecutor, reads: Sequence[tuple[Callable[[Part], None], Part]]) -> None:
    # The threads draw from one iterator: a task each would cost more than many of these reads.
    left = iter(reads)

    def work() -> None:
        for decode, part in left:
            decode(part)

    for future in [pool.submit(work) for _ in range(READ_THREADS)]:
        future.result()


def expand_ranges(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers of the (b, 2) ranges start:stop, in order."""
    lengths = ranges[:, 1] - ranges[:, 0]
    before = np.cumsum(lengths) - lengths
    return np.repeat(ranges[:, 0] - before, lengths) + np.arange(int(lengths.sum()))


def read_manifest(path: Path) -> Mapping[str, Any]:
    """The manifest of a finished store of this format; DataError for anything else."""
    partial = path.parent / f".{path.name}.partial"
    if not path.exists():
        why = f"it is still being written or was cut off ({partial.name}): finish that job" if partial.exists() else "no such store"
        raise DataError(f"{path}: {why}")
    try:
        manifest: Mapping[str, Any] = json.loads((path / names.MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} has no {names.MANIFEST}: it is no finished store; make one with `unicoord-atlas ingest`") from None
    except ValueError as error:
        raise DataError(f"{path}/{names.MANIFEST} cannot be read ({error}); restore it or ingest again") from error
    version = manifest.get("format_version")
    if version != names.FORMAT_VERSION:
        raise DataError(f"{path}: format version {version}, this program reads {names.FORMAT_VERSION}; update it or ingest again")
    return manifest


def read_layout(group: zarr.Group, where: str) -> MatrixLayout:
    """How X of an opened store lies on disk."""
    try:
        data, indptr = group[names.DATA], group[names.INDPTR]
        num_genes = int(group["X"].attrs["shape"][1])
        inner_chunk, shard = data.chunks[0], data.shards[0]
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{where}: X is not a sharded CSR matrix ({error}); was the store written by `unicoord-atlas ingest`?") from error
    return MatrixLayout(np.asarray(indptr[:], np.int64), num_genes, data.dtype, inner_chunk, shard // inner_chunk)


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


def name_shard(path: Path, layout: MatrixLayout, name: str) -> str:
    """A file of a store as messages call it: its path, and the rows it holds if it is a shard of X."""
    array, _, shard = name.partition("/c/")
    if array not in (names.DATA, names.INDICES) or not shard.isdigit():
        return f"{path}/{name}"
    start, stop = layout.rows_of_shard(int(shard))
    return f"{path}/{name} (shard {shard}, rows {start}:{stop})"


def _require_shards(path: Path, layout: MatrixLayout, manifest: Mapping[str, Any]) -> None:
    """A size look at every shard: zarr reads a missing file as zeros, and would never tell."""
    for shard in range(layout.num_shards):
        for array in (names.DATA, names.INDICES):
            name = f"{array}/c/{shard}"
            expected = manifest["files"].get(name, {}).get("bytes")
            file = path / name
            size = file.stat().st_size if file.exists() else None
            if size is None or size != expected:
                state = "is missing" if size is None else f"has {size} bytes, not {expected}"
                raise DataError(f"{name_shard(path, layout, name)} {state}; restore it or ingest again")


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    counts = {name: entry["crc32c"] for name, entry in manifest["files"].items() if name.startswith("X/")}
    return hashlib.blake2b(json.dumps(counts, sort_keys=True).encode(), digest_size=16).hexdigest()
