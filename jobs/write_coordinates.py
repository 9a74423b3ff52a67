"""AnnData files and tables of coordinates."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata

if TYPE_CHECKING:
    from pathlib import Path


def write_anndata(adata: anndata.AnnData, path: Path) -> None:
    """Write as .h5ad, or as Zarr v3 where the name ends in .zarr."""
    if path.suffix == ".h5ad":
        adata.write_h5ad(path, compression="gzip")
    else:
        with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata")  # as anndata itself writes and reads it
            adata.write_zarr(path)


def write_parquet(adata: anndata.AnnData, path: Path) -> None:
    """One row a cell: its name, obs, and every dimension of X_unicoord by name."""
    table = adata.obs.copy()
    for number, name in enumerate(adata.uns["unicoord"]["dims"]):
        table[f"unicoord_{name}"] = adata.obsm["X_unicoord"][:, number]
    table.to_parquet(path, index=True)
