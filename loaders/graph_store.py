"""A graph of cells in an atlas store: written in shards beside X, and the neighbours of any cells read out of core."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import anndata
import numpy as np
import scipy.sparse as sp
import zarr

from unicoord_atlas.errors import DataError, UsageError

from . import zarr_layout as names
from .array_reader import ArrayReader, is_sharded_blosc
from .fingerprints import table_fingerprint
from .manifest import files_fingerprint, read_manifest, shard_checksums
from .reading import reading
from .zarr_store import ZarrStore
from .zarr_writer import blosc_codec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from .array_reader import EntryReader
    from .graph_order import ReorderedTable
    from .row_file import RowFile
    from .soma_store import SomaStore
    from .store import CellStore
    from .store_files import StoreFiles
    from .weights_pass import CsrFiles

_INNER_CHUNK = 65_536
_CHUNKS_PER_SHARD = 64
"""A shard holds 2**22 entries: 16 MiB before compression."""
_ROWS_PER_CHUNK = 4_096
_SHARD_BYTES = 1 << 24
"""Of a table, at most, before compression: a shard is in memory while it is written."""


def fingerprint_of(store: CellStore) -> str:
    """The same for two stores only if their counts and the names of their cells are the same, in the same order."""
    if not isinstance(store, ZarrStore):
        return store.fingerprint
    with reading(store.uri, "obs"):
        index = str(_open(store)["obs"].attrs["_index"])
    return files_fingerprint(read_manifest(_files(store)), "X/", f"obs/{index}/")


def made_of(store: CellStore, use_rep: str | None) -> dict[str, str]:
    """What a graph that is made of the store now is of: its `cells`, and the `points` in obsm if they are given."""
    found = {"cells": fingerprint_of(store)}
    if use_rep is not None:
        found["points"] = table_fingerprint(store, use_rep)
    return found


class Neighbors:
    """The neighbours of every cell of a store, read when they are asked for."""

    indptr: NDArray[np.int64]
    """(n_obs + 1,), whole in memory."""

    def __init__(self, store: CellStore, key: str = names.DISTANCES) -> None:
        """Open the graph of a store; DataError if it is of other cells or points, UsageError if there is none."""
        record = graph_record(store, key)
        if record is None:
            raise UsageError(
                f"{store.uri} has no graph of neighbours; make one with `unicoord-atlas build-graph {store.uri}`"
            )
        # Graphs used to be recorded without their points; of such a one these are taken for the same.
        now = made_of(store, record["use_rep"] if "points" in record else None)
        if any(record[name] != value for name, value in now.items()):
            raise DataError(
                f"{store.uri}: its graph was made of other cells or of an older state of the atlas; "
                f"make it again with `unicoord-atlas build-graph {store.uri} --replace`"
            )
        self._uri = store.uri
        self.indptr, self._reader, self._dtype = _graph_entries(store, key)
        if len(self.indptr) != store.n_obs + 1:
            raise DataError(f"{store.uri}: obsp/{key} has {len(self.indptr) - 1} rows, not {store.n_obs}")

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Neighbours of some cells, in any order and repeated or not.

        Returns
        -------
        (n + 1,) where the neighbours of each begin, and (z,) their rows in the store, ascending for each cell.
        """
        spans = np.stack([self.indptr[rows], self.indptr[np.asarray(rows) + 1]], axis=1)
        indptr = np.concatenate([[0], np.cumsum(spans[:, 1] - spans[:, 0])])
        indices = np.empty(int(indptr[-1]), self._dtype)
        with reading(self._uri, "obsp"):
            for part in self._reader.parts(spans, indices):
                self._reader.decode(part)
        return indptr, indices


def graph_record(store: CellStore, key: str = names.DISTANCES) -> Mapping[str, Any] | None:
    """Settings of the store's graph, and what it was made of (see `made_of`), as JSON types; None if it has none."""
    if not isinstance(store, ZarrStore):
        return cast("SomaStore", store).graph_record
    with reading(store.uri, f"uns/{names.GRAPH_FACTS}"):
        group = _open(store)
        if names.GRAPH_FACTS not in group["uns"] or key not in group["obsp"]:
            return None
        facts = anndata.io.read_elem(group[f"uns/{names.GRAPH_FACTS}"])
        points = {"points": str(facts["points"])} if "points" in facts else {}
        return {**json.loads(str(facts["settings"])), "cells": str(facts["fingerprint"]), **points}


def _graph_entries(store: CellStore, key: str) -> tuple[NDArray[np.int64], EntryReader, np.dtype[Any]]:
    if not isinstance(store, ZarrStore):
        indptr, indices, _ = cast("SomaStore", store).graph(key)
        return indptr, ArrayReader(indices, f"{store.uri}/obsp/{key}"), indices.dtype
    with reading(store.uri, f"obsp/{key}"):
        matrix = _open(store)[f"obsp/{key}"]
        indices, borders = matrix["indices"], np.asarray(matrix["indptr"][:], np.int64)
        if not names.ascends(borders, indices.shape[0]):
            raise DataError(f"{store.uri}: obsp/{key}/indptr does not ascend from 0; restore it or ingest again")
        return borders, _entry_reader(store, f"obsp/{key}/indices", indices), indices.dtype


def graph_facts(store: CellStore) -> Mapping[str, Any] | None:
    """Recall of the store's graph and the settings that it was made with, as JSON; None if it has none."""
    if graph_record(store, names.CONNECTIVITIES) is None:
        return None
    if not isinstance(store, ZarrStore):
        return cast("SomaStore", store).graph_facts()
    with reading(store.uri, f"uns/{names.GRAPH_FACTS}"):
        facts: Mapping[str, Any] = anndata.io.read_elem(_open(store)[f"uns/{names.GRAPH_FACTS}"])
    return facts


def graph_entries(store: CellStore, key: str) -> int:
    """How many distances or connectivities there are."""
    if not isinstance(store, ZarrStore):
        return cast("SomaStore", store).graph_entries(key)
    return int(_open(store)[f"obsp/{key}/indices"].shape[0])


def graph_matrix(store: CellStore, key: str) -> sp.csr_matrix:
    """Distances or connectivities of the store's cells, all in memory."""
    if not isinstance(store, ZarrStore):
        indptr, indices, values = cast("SomaStore", store).graph(key)
        return sp.csr_matrix((values, indices, indptr), (store.n_obs, store.n_obs))
    with reading(store.uri, f"obsp/{key}"):
        matrix: sp.csr_matrix = anndata.io.read_elem(_open(store)[f"obsp/{key}"])
        matrix.check_format()  # whoever computes with it trusts its indices
        return matrix


def _open(store: CellStore) -> Any:
    return zarr.open_group(_files(store).zarr(), mode="r")


def _entry_reader(store: CellStore, name: str, array: Any) -> EntryReader:
    if not is_sharded_blosc(array):
        return ArrayReader(array, f"{store.uri}/{name}", store.n_obs)
    chunk, shard = array.chunks[0], array.shards[0]
    files = _files(store)
    crc32c_of = shard_checksums(read_manifest(files), name)

    def where(number: int) -> str:
        return f"{store.uri}/{name}/c/{number}"

    return files.reader(name, array.dtype, chunk, shard // chunk, where, crc32c_of, store.n_obs)


def _files(store: CellStore) -> StoreFiles:
    return cast("ZarrStore", store).files


def write_matrix(group: Any, key: str, matrix: CsrFiles) -> None:
    """Write a square CSR matrix as AnnData does, shard by shard."""
    num_rows = len(matrix.indptr) - 1
    folder = group.require_group(key)
    folder.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [num_rows, num_rows]})
    # one type for both, or scipy's conversions, which scanpy's umap uses, refuse the matrix
    index_dtype = np.dtype(np.int32 if matrix.indptr[-1] <= np.iinfo(np.int32).max else np.int64)
    for name, stretch, dtype in (("indices", matrix.indices, index_dtype), ("data", matrix.data, matrix.data.dtype)):
        shard = _INNER_CHUNK * _CHUNKS_PER_SHARD
        array = folder.create_array(
            name,
            shape=(len(stretch),),
            chunks=(_INNER_CHUNK,),
            shards=(shard,),
            dtype=dtype,
            compressors=[blosc_codec(dtype)],
            fill_value=0,
            overwrite=True,
        )
        for start in range(0, len(stretch), shard):
            stop = min(start + shard, len(stretch))
            array[start:stop] = stretch.read(start, stop).astype(dtype, copy=False)
    folder.create_array("indptr", data=matrix.indptr.astype(index_dtype), chunks=(names.INDPTR_CHUNK,), overwrite=True)


def write_table(group: Any, key: str, table_nd: NDArray[np.float32] | RowFile | ReorderedTable) -> None:
    """Write a dense table with a row a cell as AnnData does, shard by shard."""
    num_rows, width = table_nd.shape
    chunk_bytes = _ROWS_PER_CHUNK * max(width, 1) * table_nd.dtype.itemsize
    rows = _ROWS_PER_CHUNK * max(_SHARD_BYTES // chunk_bytes, 1)
    array = group.create_array(
        key,
        shape=table_nd.shape,
        chunks=(_ROWS_PER_CHUNK, width),
        shards=(rows, width),
        dtype=table_nd.dtype,
        compressors=[blosc_codec(table_nd.dtype)],
        attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        overwrite=True,
    )
    for start in range(0, num_rows, rows):
        array[start : start + rows] = table_nd[start : start + rows]
