"""Experiments of this program: how they are written, and the facts that they carry under uns.

Counts are written in blocks of consecutive cells and consolidated at the end, so memory is bounded however many cells
there are.  A block is a fragment, which TileDB commits whole or not at all: a writer that was killed goes on behind the
last one.  A tile holds all genes of some cells, so that entries come out in the order of rows.
Shapes: n cells, g genes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from unicoord_atlas.errors import DataError
from unicoord_atlas.schema import AtlasSchema

from . import zarr_layout as names
from .row_matrix import bounded_cuts
from .soma_open import fragments, soma_context, tiledbsoma
from .soma_rows import COLUMNS, ROWS, VALUES
from .store import CsrBuffer
from .zarr_store import read_normalization

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata
    from numpy.typing import NDArray

    from unicoord_atlas.normalization import Normalization

    from .soma_open import OpenExperiment
    from .store import CellStore

MEASUREMENT, LAYER = "RNA", "data"
_ENTRIES = "row_entries"
"""(n,) entries of each cell, beside the schema and the normalization that a Zarr store has there, too."""
_COUNTS = "counts"
_COLUMNS = "obsm_columns"
"""Names of the columns of obsm tables that have any: SOMA keeps matrices."""
MADE_COLUMNS = "unicoord_columns"
"""The same, as JSON, in the metadata of a table that was added later."""
_TILE_ROWS = 256
_ROWS_TOGETHER = 50_000
_CHECKSUM = "ChecksumSHA256Filter"
"""The last filter, so that it is taken of the bytes on disk: TileDB compares it whenever it reads a tile."""
_FILTERS = {"filters": ["ByteShuffleFilter", "LZ4Filter", _CHECKSUM]}
"""Of coordinates: a fifth faster to read than TileDB's zstd, a sixth larger."""
_VALUE_FILTERS = {"filters": ["ZstdFilter", _CHECKSUM]}


def written_facts(
    opened: OpenExperiment, joinids: NDArray[np.int64]
) -> tuple[AtlasSchema, Normalization, NDArray[np.int64]] | None:
    """Schema, normalization and entries of each cell; None if this program did not write the matrix.

    Raises
    ------
    DataError
        If the matrix was changed after its facts were written.
    """
    if "uns" not in opened.measurement or names.UNS not in opened.measurement["uns"]:
        return None
    facts = opened.measurement["uns"][names.UNS]
    if facts.metadata.get("layer") != opened.address.layer:
        return None
    if facts.metadata.get(_COUNTS) != _mark(opened.matrix):
        raise DataError(
            f"{opened.address.uri}: its counts were changed after its normalization was computed; convert it again"
        )
    text = facts[names.SCHEMA].read().concat().column("values")[0].as_py()
    schema = AtlasSchema.from_json(text, where=f"{opened.address.uri}: uns/{names.UNS}/{names.SCHEMA}")
    stored = facts[names.NORMALIZATION]
    parts = {**dict(stored.metadata), **{key: array.read().to_numpy() for key, array in stored.items()}}
    return schema, read_normalization(parts), facts[_ENTRIES].read().to_numpy()[joinids]


def obsm_columns(opened: OpenExperiment, key: str) -> list[str] | None:
    """Names of the columns of an obsm table, if it had any."""
    made = opened.measurement.obsm[key].metadata.get(MADE_COLUMNS)
    if made is not None:
        return list(json.loads(made))
    facts = opened.measurement["uns"][names.UNS] if names.UNS in opened.measurement.get("uns", ()) else {}
    if key not in facts.get(_COLUMNS, ()):
        return None
    columns: list[str] = facts[_COLUMNS][key].read().concat().column("values").to_pylist()
    return columns


def write_experiment(out: Path, store: CellStore, tables: anndata.AnnData, progress: Callable[[int], object]) -> None:
    """Write the cells of a store, or go on from what a killed writer of the same left in `out`.

    Parameters
    ----------
    tables
        obs, var, obsm, obsp, varm and uns, as the store's own; without X.
    progress
        Called with the number of cells of each block.
    """
    library = tiledbsoma()
    if not _is_begun(out):
        _begin(out, store, tables)
    with library.Experiment.open(str(out), "w", context=soma_context()) as experiment:
        matrix = experiment.ms[MEASUREMENT]["X"][LAYER]
        _write_counts(matrix, store, progress)
    with library.Experiment.open(str(out), context=soma_context()) as experiment:
        mark = _mark(experiment.ms[MEASUREMENT].X[LAYER])
    with library.Experiment.open(str(out), "w", context=soma_context()) as experiment:
        facts = experiment.ms[MEASUREMENT]["uns"][names.UNS]
        facts.metadata.update({"layer": LAYER, _COUNTS: mark})


def _is_begun(out: Path) -> bool:
    """Whether all but the counts is there: their matrix is made after it."""
    library = tiledbsoma()
    if not library.Experiment.exists(str(out), context=soma_context()):
        return False
    with library.Experiment.open(str(out), context=soma_context()) as experiment:
        return "ms" in experiment and MEASUREMENT in experiment.ms and LAYER in experiment.ms[MEASUREMENT].get("X", ())


def _begin(out: Path, store: CellStore, tables: anndata.AnnData) -> None:
    """All but the counts; a half of it, which a killed writer left, is removed first."""
    out.mkdir(exist_ok=True)
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name.startswith("__"):
            path.unlink()
    cells = tables.copy()
    cells.uns = plain_texts(cells.uns)
    frames = {key: table for key, table in cells.obsm.items() if isinstance(table, pd.DataFrame)}
    for key, table in frames.items():
        cells.obsm[key] = table.to_numpy()
    cells.uns[names.UNS][_ENTRIES] = np.diff(store.indptr)
    cells.uns[names.UNS][_COLUMNS] = {key: np.array(list(table.columns), str) for key, table in frames.items()}
    soma_io().from_anndata(str(out), cells, MEASUREMENT, context=soma_context())
    with tiledbsoma().Experiment.open(str(out), "w", context=soma_context()) as experiment:
        measurement = experiment.ms[MEASUREMENT]
        matrices = measurement["X"] if "X" in measurement else measurement.add_new_collection("X")
        _new_matrix(matrices, store).close()


def soma_io() -> Any:
    """What exchanges experiments with AnnData; importing tiledbsoma does not import it."""
    tiledbsoma()
    from tiledbsoma import io

    return io


def _new_matrix(matrices: Any, store: CellStore) -> Any:
    dtype = store.read_ranges(np.zeros((0, 2), np.int64)).data.dtype
    tiles = {ROWS: {"tile": _TILE_ROWS, **_FILTERS}, COLUMNS: {"tile": store.n_vars, **_FILTERS}}
    return matrices.add_new_sparse_ndarray(
        LAYER,
        type=pa.from_numpy_dtype(dtype),
        shape=(store.n_obs, store.n_vars),
        platform_config=tiledbsoma().TileDBCreateOptions(dims=tiles, attrs={VALUES: _VALUE_FILTERS}),
    )


def _write_counts(matrix: Any, store: CellStore, progress: Callable[[int], object]) -> None:
    """The blocks behind the last one that is there, and that one again: the very last consolidates all."""
    buffer, library = CsrBuffer(), tiledbsoma()
    blocks = list(bounded_cuts(store.indptr, _ROWS_TOGETHER, 0, store.n_obs))
    last_row = _last_row(matrix)
    first = max(0, sum(start <= last_row for start, _ in blocks) - 1)
    progress(blocks[first][0] if blocks else 0)
    for start, stop in blocks[first:]:
        rows = store.read_ranges(np.array([[start, stop]]), buffer)
        numbers = np.repeat(np.arange(start, stop), np.diff(rows.indptr))
        parts = {ROWS: numbers, COLUMNS: rows.indices.astype(np.int64), VALUES: rows.data}
        last = library.TileDBWriteOptions(consolidate_and_vacuum=stop == store.n_obs)
        matrix.write(pa.table(parts), platform_config=last)
        progress(stop - start)


def _last_row(matrix: Any) -> int:
    """The last row with an entry; -1 of an empty matrix."""
    with tiledbsoma().SparseNDArray.open(matrix.uri, context=soma_context()) as written:
        domain = written.non_empty_domain()
    return -1 if domain is None else int(domain[0][1])


def _mark(matrix: Any) -> str:
    return hashlib.blake2b(json.dumps(fragments(matrix)).encode(), digest_size=16).hexdigest()


def plain_texts(value: Any) -> Any:
    """Nested uns with texts in arrays of plain texts: tiledbsoma writes no array of pandas' or NumPy's new strings."""
    if isinstance(value, dict):
        return {key: plain_texts(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OT":
        return np.array(value.tolist(), str)
    return value
