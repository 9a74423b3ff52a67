"""export-latents: coordinates of all cells of an atlas, by one process or by many."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unicoord_atlas.allocator import give_back_freed_memory
from unicoord_atlas.batch import CellColumns
from unicoord_atlas.coordinate_facts import facts_of
from unicoord_atlas.coordinates import annotated, named_columns
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.loaders.query_cells import StoreCells
from unicoord_atlas.loaders.stream import CellStream
from unicoord_atlas.reference import ReferenceModel

from .cached_store import open_cached
from .dask_parts import run_in_parts
from .export_reference import model_of_run
from .part_files import beside, copy_tables, table_maker, with_columns, write_columns
from .parts import Part, do_part
from .workdir import check_output, finished_directory
from .write_coordinates import TableFiles, table_files, write_cells, write_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.coordinates import Table
    from unicoord_atlas.loaders.byte_cache import ByteCache
    from unicoord_atlas.loaders.store import CellStore

BATCH = 1024
TITLE = "export-latents"


@dataclass(frozen=True)
class ExportLatentsOptions:
    """What `unicoord-atlas export-latents` is asked to do."""

    store: Path
    run: Path
    out: Path
    part: Part | None = None
    """Only this share of the cells; the last part to be done makes `out`."""
    dask: str | None = None
    cache: ByteCache | None = None
    """Keeps on this machine what is read of an atlas in an object store."""
    with_counts: bool = False
    """Copy X and var of the store, too."""


def run(options: ExportLatentsOptions) -> dict[str, Any]:
    """Encode the store in its order; writes an AnnData Zarr with latents.parquet inside.

    Raises
    ------
    AlreadyDone
        If `out` is finished from the same store and model.
    UnicoordError
        Naming the store or the option, and the way out.
    """
    if options.out.suffix != ".zarr":
        raise UsageError(f"--out {options.out}: it is a Zarr store; give it a name that ends in .zarr")
    store = open_cached(options.store, options.cache)
    folder = model_of_run(options.run)
    reference = ReferenceModel.load(folder)
    if store.schema.genes != reference.schema.genes:
        raise DataError(
            f"{store.uri}: its genes are not those that {options.run} was trained on; use map-query for other data"
        )
    inputs = [options.store, folder]
    settings = {"with_counts": True} if options.with_counts else {}
    counts = StoreCells(store) if options.with_counts else None
    if options.dask is not None:
        check_output(options.out, inputs, settings)
        return run_in_parts(options.dask, run, options, store.n_obs)
    result = {"cells": store.n_obs, "dims": list(reference.dims)}
    if options.part is None:
        with finished_directory(options.out, inputs, settings) as partial, table_files(options.out) as files:
            added = _encoded(store, reference, 0, store.n_obs, files.make)
            _write(partial, reference, beside(store.obs(arrow_names=True), added), files, counts)
        return {"latents": str(options.out), **result}
    check_output(options.out, inputs, settings)
    first, last = options.part.rows(store.n_obs)

    def write(partial: Path) -> None:
        _write_rows(store, reference, first, last, partial)

    def join(parts: Sequence[Path]) -> None:
        obs = with_columns(store.obs(arrow_names=True), parts)
        with finished_directory(options.out, inputs, settings) as partial, table_files(options.out) as files:
            copy_tables(parts, files.make)
            _write(partial, reference, obs, files, counts)

    whole = do_part(options.part, options.out, inputs, settings, write, join)
    return {"part": [first, last], **({"latents": str(options.out), **result} if whole else {})}


def _write(
    partial: Path, reference: ReferenceModel, obs: pd.DataFrame, files: TableFiles, counts: StoreCells | None
) -> None:
    """All of the output, of tables that lie in files: memory grows with obs alone."""
    give_back_freed_memory()
    coordinates = files.tables["X_unicoord"]
    named = named_columns(reference, coordinates, obs.index)
    write_cells(partial, obs, named, files.tables, {"unicoord": facts_of(reference)}, counts)
    write_parquet(partial / "latents.parquet", obs, reference.dims, coordinates)


def _write_rows(store: CellStore, reference: ReferenceModel, first: int, last: int, partial: Path) -> None:
    """What is added to obs and obsm for the cells first to last."""
    write_columns(partial, _encoded(store, reference, first, last, table_maker(partial)))


def _encoded(
    store: CellStore, reference: ReferenceModel, first: int, last: int, make_table: Callable[[str, int, int], Table]
) -> pd.DataFrame:
    """The columns that are added to obs for the cells first to last; obs itself is not in memory meanwhile."""
    bare = pd.DataFrame(index=pd.RangeIndex(last - first))
    return annotated(reference, _in_order(store, first, last), bare, make_table, TITLE, probabilities=True)


def _in_order(store: CellStore, first: int, last: int) -> Iterator[MiniBatch]:
    """Minibatches of consecutive cells, numbered from 0."""
    n = store.n_obs
    columns = CellColumns(
        store.size_factors.astype(np.float32),
        np.zeros(n, np.int32),
        np.zeros((n, 0), np.int32),
        np.zeros((n, 0), np.float32),
    )
    stream = CellStream(store, columns, batch_size=BATCH, order="stored", rows=np.arange(first, last))
    for batch in stream if first < last else ():
        yield replace(batch, rows_n=batch.rows_n - first)
