"""Every name, size and codec of an atlas store on disk, spelled once.

An atlas is an AnnData Zarr v3 group.  X is CSR; `X/data` and `X/indices` are cut at the same entries into shards of
equal inner chunks, so that shard k of one belongs to shard k of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

DATA = "X/data"
INDICES = "X/indices"
INDPTR = "X/indptr"
SOURCE = "source"
"""obs column: the name of the file a cell came from."""
SIZE_FACTOR = "size_factor"
"""obs column: see `unicoord_atlas.normalization`."""
UNS = "unicoord"
"""uns/unicoord holds the next two."""
SCHEMA = "schema"
NORMALIZATION = "normalization"
DISTANCES = "distances"
CONNECTIVITIES = "connectivities"
"""obsp: what `build-graph` adds, as scanpy names it."""
GRAPH_PART = "graph"
"""The name of that addition in the manifest, or in the record of a SOMA."""
GRAPH_FACTS = "unicoord_graph"
"""uns: of which cells the graph is, and how it was made."""
GENE_SETS = "X_gene_sets"
"""obsm: what `select-gene-sets` adds, a column a set; a mapped query has one of this name, too."""
GENE_SETS_FACTS = "unicoord_gene_sets"
"""uns: which sets these are, and how they were chosen."""

INNER_CHUNK = 262_144
"""Entries decoded together at most; rows may straddle."""
CHUNKS_PER_SHARD = 256
"""A shard holds 2**26 entries: 128 MiB of uint16 before compression."""
INDPTR_CHUNK = 131_072
BLOSC_CNAME: Final = "lz4"
"""Reads fastest, with shuffle; zstd would halve the speed to save a quarter of the bytes."""
BLOSC_LEVEL = 5
BLOSC_BLOCKSIZE = 32_768
"""Bytes decoded together at least: what a read of a few rows pays."""


def index_dtype(num_genes: int) -> np.dtype[np.unsignedinteger | np.signedinteger]:
    """Smallest type for gene indices that anndata, scipy and torch all read."""
    return np.dtype(np.uint16 if num_genes <= 65_535 else np.int32)


def count_dtype(largest: float) -> np.dtype[np.unsignedinteger]:
    """Smallest unsigned type that holds every count."""
    for candidate in (np.uint8, np.uint16, np.uint32):
        if largest <= np.iinfo(candidate).max:
            return np.dtype(candidate)
    raise DataError(f"a count of {largest:g} is over {np.iinfo(np.uint32).max}; is X really counts?")


@dataclass(frozen=True)
class MatrixLayout:
    """How X lies on disk: all of it is known once the facts pass has counted each row's entries."""

    indptr: NDArray[np.int64]
    """(n_obs + 1,)"""
    num_genes: int
    data_dtype: np.dtype[np.generic]
    inner_chunk: int = INNER_CHUNK
    chunks_per_shard: int = CHUNKS_PER_SHARD

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    @property
    def num_entries(self) -> int:
        """Number of stored entries."""
        return int(self.indptr[-1])

    @property
    def shard_entries(self) -> int:
        """Entries of a full shard."""
        return self.inner_chunk * self.chunks_per_shard

    @property
    def num_shards(self) -> int:
        """Shards of each of the two arrays."""
        return -(-self.num_entries // self.shard_entries)

    @cached_property
    def index_dtype(self) -> np.dtype[np.unsignedinteger | np.signedinteger]:
        """Type of X/indices."""
        return index_dtype(self.num_genes)

    def entries_of_shard(self, shard: int) -> tuple[int, int]:
        """First entry of a shard and the one past its last."""
        start = shard * self.shard_entries
        return start, min(start + self.shard_entries, self.num_entries)

    def rows_of_shard(self, shard: int) -> tuple[int, int]:
        """First row with an entry in a shard, and the one past the last."""
        return rows_of_entries(self.indptr, *self.entries_of_shard(shard))


def rows_of_entries(indptr: NDArray[np.int64], start: int, stop: int) -> tuple[int, int]:
    """First row with an entry in start:stop, and the one past the last."""
    first = int(np.searchsorted(indptr, start, side="right")) - 1
    past = int(np.searchsorted(indptr, stop, side="left"))
    return first, max(past, first)


def ascends(indptr: NDArray[np.int64], num_entries: int) -> bool:
    """Whether borders of rows begin at 0, never fall, and end at the last entry."""
    if not len(indptr) or (indptr[0], indptr[-1]) != (0, num_entries):
        return False
    return not bool((indptr[1:] < indptr[:-1]).any())


def read_layout(group: Any, where: str) -> MatrixLayout:
    """How X of an opened store lies on disk; DataError if its parts do not fit one another."""
    try:
        data, indices, indptr = group[DATA], group[INDICES], group[INDPTR]
        num_rows, num_genes = (int(size) for size in group["X"].attrs["shape"])
        inner_chunk = data.chunks[0]
        shard = data.shards[0] if data.shards else inner_chunk
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise DataError(
            f"{where}: X is not a CSR matrix ({error}); was the store written by `unicoord-atlas ingest`?"
        ) from error
    fits = (indptr.shape, indices.shape, len(data.shape)) == ((num_rows + 1,), data.shape, 1)
    if not fits or indices.dtype != index_dtype(num_genes) or data.dtype.kind not in "uif":
        raise DataError(
            f"{where}: X is {num_rows} x {num_genes}, but {INDPTR} is {indptr.shape}, {INDICES} {indices.shape} of "
            f"{indices.dtype} and {DATA} {data.shape} of {data.dtype}; restore it or ingest again"
        )
    borders = np.asarray(indptr[:], np.int64)
    if borders[-1] != data.shape[0]:
        raise DataError(f"{where}: {INDPTR} ends at {borders[-1]}, but {DATA} has {data.shape[0]} entries")
    if not ascends(borders, data.shape[0]):
        raise DataError(f"{where}: {INDPTR} does not ascend from 0; restore it or ingest again")
    return MatrixLayout(borders, num_genes, data.dtype, inner_chunk, shard // inner_chunk)


def name_shard(path: str, layout: MatrixLayout, name: str) -> str:
    """A file of a store as messages call it: its path, and the rows it holds if it is a shard of X."""
    array, _, shard = name.partition("/c/")
    if array not in (DATA, INDICES) or not (shard.isdecimal() and len(shard) < 10 and int(shard) < layout.num_shards):
        return f"{path}/{name}"
    start, stop = layout.rows_of_shard(int(shard))
    return f"{path}/{name} (shard {shard}, rows {start}:{stop})"
