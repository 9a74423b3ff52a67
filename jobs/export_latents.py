"""export-latents: coordinates of all cells of an atlas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unicoord_atlas.batch import CellColumns
from unicoord_atlas.coordinates import coordinates
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.loaders.store import CellStore, open_store
from unicoord_atlas.loaders.stream import CellStream
from unicoord_atlas.reference import ReferenceModel

from .export_reference import model_of_run
from .workdir import finished_directory
from .write_coordinates import write_anndata, write_parquet

if TYPE_CHECKING:
    from pathlib import Path

BATCH = 1024


@dataclass(frozen=True)
class ExportLatentsOptions:
    """What `unicoord-atlas export-latents` is asked to do."""

    store: Path
    run: Path
    out: Path


def run(options: ExportLatentsOptions) -> dict[str, Any]:
    """Encode the store in its order; writes an AnnData Zarr with latents.parquet inside."""
    if options.out.suffix != ".zarr":
        raise UsageError(f"--out {options.out}: it is a Zarr store; give it a name that ends in .zarr")
    store = open_store(options.store)
    folder = model_of_run(options.run)
    reference = ReferenceModel.load(folder)
    if store.schema.genes != reference.schema.genes:
        raise DataError(
            f"{options.store}: its genes are not those that {options.run} was trained on; use map-query for other data"
        )
    with finished_directory(options.out, [options.store, folder], {}) as partial:
        adata = coordinates(reference, _in_order(store), store.obs(), probabilities=True, title="export-latents")
        write_anndata(adata, partial)
        write_parquet(adata, partial / "latents.parquet")
    return {"latents": str(options.out), "cells": store.n_obs, "dims": list(reference.dims)}


def _in_order(store: CellStore) -> CellStream:
    n = store.n_obs
    columns = CellColumns(
        store.size_factors.astype(np.float32),
        np.zeros(n, np.int32),
        np.zeros((n, 0), np.int32),
        np.zeros((n, 0), np.float32),
    )
    return CellStream(store, columns, batch_size=BATCH, order="stored")
