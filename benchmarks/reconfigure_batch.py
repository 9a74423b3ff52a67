"""Batches: whether three blood data sets mix in X_unicoord_bio, and types stay as far apart as in PCA.

Both are told from cells that were held out: neither the model, but for the choice of its epoch and its temperatures,
nor the components were fitted on them.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import anndata
import numpy as np
import scanpy
from reconfigure_bars import Bar

from unicoord_atlas.config import RunConfig
from unicoord_atlas.jobs import export_latents, ingest, train
from unicoord_atlas.jobs.evaluate_mixing import mixing
from unicoord_atlas.loaders.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from unicoord_atlas.loaders.store import CellStore

SOURCES = ("pbmc8k_raw_labelled", "pbmc4k_soupx", "pbmc3k_raw_labelled")
LABEL, BATCH = "cell_type", "dataset"
WORSE_SILHOUETTE = 0.02
HELD_OUT = "data.validation_fraction=0.3"


def measure(data: Path, folder: Path, settings: list[str]) -> tuple[dict[str, object], list[Bar]]:
    """Figures and bars."""
    atlas, run, out = folder / "atlas.zarr", folder / "run", folder / "latents.zarr"
    files = [str(data / name / f"{name}.h5ad") for name in SOURCES]
    config = RunConfig.load(None, [f'latent.discrete=["{LABEL}", "{BATCH}"]', HELD_OUT, *settings])
    with contextlib.redirect_stderr(io.StringIO()):
        ingest.run(ingest.IngestOptions(files, atlas, labels=[LABEL, BATCH], label_map=data / "pbmc_labels.csv"))
        train.run(train.TrainOptions(atlas, run, config))
        export_latents.run(export_latents.ExportLatentsOptions(atlas, run, out))
    store, latents = open_store(atlas), anndata.read_zarr(out)
    prepared = train.prepare_store(store, config)
    rows = prepared.validation_rows
    points = {
        "X_unicoord_bio": np.asarray(latents.obsm["X_unicoord_bio"], np.float32)[rows],
        "PCA": _components(store, prepared.training_rows, rows),
    }
    obs = latents.obs.iloc[rows]
    found = {name: mixing(each, obs[LABEL], obs[BATCH]) for name, each in points.items()}
    ours, pca = found["X_unicoord_bio"], found["PCA"]
    return {"held_out_cells": len(rows), "mixing": found}, [
        Bar("batch_ilisi_above_pca", ours["ilisi"] - pca["ilisi"], 0.0),
        Bar("batch_silhouette_over_pca", ours["silhouette_label"] - pca["silhouette_label"], -WORSE_SILHOUETTE),
    ]


def _components(store: CellStore, training: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """(v, 50) principal components of held-out cells, as most people would take them: scanpy's, of training cells."""
    shared_g = np.asarray(store.schema.measured_sg().all(axis=0))
    cells = store.to_anndata(lazy=False)[:, shared_g].copy()
    cells.X = cells.X.astype(np.float32)
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    fitted = cells[training].copy()
    scanpy.pp.highly_variable_genes(fitted, n_top_genes=2000)
    scanpy.pp.pca(fitted, n_comps=50)
    loadings_gd = fitted.varm["PCs"]  # 0 for genes that are not highly variable
    centre_1d = np.asarray(fitted.X.mean(axis=0)).reshape(1, -1) @ loadings_gd
    return np.asarray(cells.X[held_out] @ loadings_gd - centre_1d, np.float32)
