"""Batches: whether three blood data sets mix in X_unicoord_bio, and types stay as far apart as in PCA."""

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

SOURCES = ("pbmc8k_raw_labelled", "pbmc4k_soupx", "pbmc3k_raw_labelled")
LABEL, BATCH = "cell_type", "dataset"
WORSE_SILHOUETTE = 0.02


def measure(data: Path, folder: Path, settings: list[str]) -> tuple[dict[str, object], list[Bar]]:
    """Figures and bars."""
    atlas, run, out = folder / "atlas.zarr", folder / "run", folder / "latents.zarr"
    files = [str(data / name / f"{name}.h5ad") for name in SOURCES]
    config = RunConfig.load(None, [f'latent.discrete=["{LABEL}", "{BATCH}"]', *settings])
    with contextlib.redirect_stderr(io.StringIO()):
        ingest.run(ingest.IngestOptions(files, atlas, labels=[LABEL, BATCH], label_map=data / "pbmc_labels.csv"))
        train.run(train.TrainOptions(atlas, run, config))
        export_latents.run(export_latents.ExportLatentsOptions(atlas, run, out))
    latents = anndata.read_zarr(out)
    points = {
        "X_unicoord_bio": np.asarray(latents.obsm["X_unicoord_bio"], np.float32),
        "PCA": _components(atlas),
    }
    found = {name: mixing(each, latents.obs[LABEL], latents.obs[BATCH]) for name, each in points.items()}
    ours, pca = found["X_unicoord_bio"], found["PCA"]
    return {"mixing": found}, [
        Bar("batch_ilisi_above_pca", ours["ilisi"] - pca["ilisi"], 0.0),
        Bar("batch_silhouette_over_pca", ours["silhouette_label"] - pca["silhouette_label"], -WORSE_SILHOUETTE),
    ]


def _components(atlas: Path) -> np.ndarray:
    """(n, 50) principal components of log-normalized counts, as most people would take them: scanpy's."""
    store = open_store(atlas)
    shared_g = np.asarray(store.schema.measured_sg().all(axis=0))
    cells = store.to_anndata(lazy=False)[:, shared_g].copy()
    cells.X = cells.X.astype(np.float32)
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    scanpy.pp.highly_variable_genes(cells, n_top_genes=2000)
    scanpy.pp.pca(cells, n_comps=50)
    return np.asarray(cells.obsm["X_pca"], np.float32)
