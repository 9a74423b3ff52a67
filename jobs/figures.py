"""Figures of a run: UMAP of the coordinates by label, and the losses."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata

from unicoord_atlas.training.metrics import read_metrics

from .plotting import plt

if TYPE_CHECKING:
    from pathlib import Path


def draw_demo(folder: Path) -> list[Path]:
    """Both figures of the demo."""
    latents = folder / "latents.zarr"
    return [
        draw_umap(anndata.read_zarr(latents), "cell_type", folder / "umap.png"),
        draw_losses(folder / "run" / "metrics.jsonl", folder / "losses.png"),
    ]


def draw_umap(adata: anndata.AnnData, label: str, path: Path) -> Path:
    """UMAP of X_unicoord_bio coloured by a label."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba and umap speak of their own parallel settings
        scanpy.pp.neighbors(adata, use_rep="X_unicoord_bio", random_state=0)
        scanpy.tl.umap(adata, random_state=0)
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    codes = adata.obs[label].astype("category").cat
    for number, name in enumerate(codes.categories):
        inside = (codes.codes == number).to_numpy()
        x, y = adata.obsm["X_umap"][inside].T
        axes.scatter(x, y, s=8, label=name, color=plt.get_cmap("tab20")(number % 20))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    axes.set(title=f"Latent coordinates by {label}", xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def draw_losses(metrics: Path, path: Path) -> Path:
    """Training and validation reconstruction, and validation accuracy, by epoch."""
    entries = read_metrics(metrics)
    epochs = [entry["epoch"] + 1 for entry in entries]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
    for key, name in (("reconstruction", "training"), ("validation_reconstruction", "validation")):
        if key in entries[-1]:
            left.plot(epochs, [entry[key] for entry in entries], label=name)
    for key in entries[-1]:
        if key.startswith("validation_accuracy_"):
            right.plot(epochs, [entry[key] for entry in entries], label=key.removeprefix("validation_accuracy_"))
    left.set(title="Squared error a cell", xlabel="epoch")
    right.set(title="Validation accuracy", xlabel="epoch", ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
