"""AnnData files and tables of coordinates."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anndata
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from unicoord_atlas.loaders.cell_names import TableByColumn, with_python_names, write_columns, write_frame
from unicoord_atlas.loaders.graph_store import write_table
from unicoord_atlas.loaders.hdf5_file import Hdf5Output, write_h5ad
from unicoord_atlas.loaders.row_file import RowFile

from .workdir import finished_directory, finished_file, scratch_folder
from .write_counts import write_with_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from unicoord_atlas.coordinates import NamedColumns
    from unicoord_atlas.loaders.query_cells import QueryCells

_ROWS = 65_536
"""Of a table that is copied from one file into another."""


class TableFiles:
    """Tables of obsm that are written to files while cells are encoded, so that memory does not grow with them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tables: dict[str, RowFile] = {}

    def make(self, key: str, num_rows: int, width: int) -> RowFile:
        """A new table; see `coordinates.annotated`."""
        self.tables[key] = RowFile(self._folder / f"{key}.f32", num_rows, width, "float32", durable=False)
        return self.tables[key]


@contextmanager
def table_files(out: Path) -> Iterator[TableFiles]:
    """Files beside `out` that are gone at the end."""
    with scratch_folder(out) as folder:
        yield TableFiles(folder)


def write_output(
    out: Path,
    inputs: Sequence[Path],
    settings: Mapping[str, Any],
    obs: pd.DataFrame,
    named: Mapping[str, NamedColumns],
    tables: Mapping[str, RowFile],
    uns: Mapping[str, object],
    counts: QueryCells | None = None,
) -> None:
    """Write cells as .h5ad or .zarr, aside, and rename; see `finished_directory` and `write_cells`."""
    if out.suffix == ".zarr":
        with finished_directory(out, inputs, settings) as partial:
            write_cells(partial, obs, named, tables, uns, counts)
    else:
        with finished_file(out) as partial:
            if counts is None:
                write_anndata(anndata.AnnData(obs=with_python_names(obs), uns=dict(uns)), partial)
            else:
                write_with_counts(partial, counts, obs, uns)
            _add_to_hdf5(partial, named, tables)


def write_anndata(adata: anndata.AnnData, path: Path) -> None:
    """Write as .h5ad, or as Zarr v3 where the name ends in .zarr."""
    if path.suffix == ".h5ad":
        write_h5ad(adata, path, compression="gzip")
    else:
        with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata")  # as anndata itself writes and reads it
            adata.write_zarr(path)


def write_cells(
    path: Path,
    obs: pd.DataFrame,
    named: Mapping[str, NamedColumns],
    tables: Mapping[str, RowFile],
    uns: Mapping[str, object],
    counts: QueryCells | None = None,
) -> None:
    """Write an AnnData Zarr of cells, piece by piece: names may be held by Arrow, tables lie in files.

    Parameters
    ----------
    named, tables
        Of obsm, with named columns and without.
    counts
        The same cells, whose X and var are copied; without them there is none.
    """
    if counts is None:
        write_anndata(anndata.AnnData(obs=with_python_names(obs.iloc[:0]), uns=dict(uns)), path)
    else:
        write_with_counts(path, counts, obs, uns)
    group: Any = zarr.open_group(path, mode="r+", use_consolidated=False)
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True):
        if counts is None:
            write_frame(group, "obs", obs)
        for key, columns in named.items():
            write_columns(group["obsm"], key, TableByColumn(columns.cells, list(columns.places), columns))
    add_tables(path, tables)


def add_tables(path: Path, tables: Mapping[str, RowFile]) -> None:
    """Put tables into obsm of an AnnData that was written as Zarr."""
    if not tables:
        return
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    for key, table in tables.items():
        write_table(group["obsm"], key, table)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        warnings.filterwarnings("ignore", "Object at .* is not recognized")  # the job's own files lie beside the groups
        zarr.consolidate_metadata(str(path))


def _add_to_hdf5(path: Path, named: Mapping[str, NamedColumns], tables: Mapping[str, RowFile]) -> None:
    with Hdf5Output(path, fresh=False) as file:
        for key, columns in named.items():
            empty = pd.DataFrame(index=columns.cells[:0], columns=list(columns.places), dtype=float)
            anndata.io.write_elem(file["obsm"], key, empty)
            group = file[f"obsm/{key}"]
            for title, values in columns:
                anndata.io.write_elem(group, title, values, dataset_kwargs={"compression": "gzip"})
            anndata.io.write_elem(group, group.attrs["_index"], columns.cells.to_numpy(object))
        for key, table in tables.items():
            rows = min(_ROWS, table.shape[0])
            data = file["obsm"].create_dataset(
                key, table.shape, table.dtype, chunks=(min(rows, 4096), table.shape[1]), compression="gzip"
            )
            data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for start in range(0, table.shape[0], rows):
                data[start : start + rows] = table[start : start + rows]


def write_parquet(path: Path, obs: pd.DataFrame, dims: Sequence[str], coordinates: RowFile) -> None:
    """One row a cell: its name, obs, and every dimension of X_unicoord by name."""
    names = [f"unicoord_{name}" for name in dims]
    # Of all rows if there are texts, of which the first may lack what later ones have.
    texts = any(dtype.kind == "O" and not isinstance(dtype, pd.CategoricalDtype) for dtype in obs.dtypes)
    schema = pa.Schema.from_pandas(obs if texts else obs.iloc[:0], preserve_index=True)
    for name in names:
        schema = schema.append(pa.field(name, pa.float32()))
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(obs), _ROWS):
            part, values = obs.iloc[start : start + _ROWS], coordinates[slice(start, start + _ROWS)]
            table = pd.concat([part, pd.DataFrame(values, part.index, names)], axis=1)
            writer.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=True))
