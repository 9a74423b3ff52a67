"""fit: train on an AnnData in memory, by the same jobs that files go through."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import anndata

from unicoord_atlas.config import RunConfig
from unicoord_atlas.loaders.hdf5_file import write_h5ad
from unicoord_atlas.reference import ReferenceModel

from . import build_graph, ingest, train
from .export_reference import model_of_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unicoord_atlas.loaders.sources import InputKind


def fit(
    adata: anndata.AnnData,
    discrete: Sequence[str] = (),
    continuous: Sequence[str] = (),
    *,
    settings: Sequence[str] = (),
    layer: str | None = None,
    input: InputKind = "counts",
) -> ReferenceModel:
    """Train a reference on an AnnData.

    Parameters
    ----------
    adata
        Cells with raw counts in X or in a layer.
    discrete, continuous
        obs columns to supervise: labels, and numbers.
    settings
        Any other setting as on the command line: ``["train.epochs=20"]``.
    layer, input
        Which matrix is read and what it holds, as in ``unicoord-atlas ingest``.

    Returns
    -------
    A ReferenceModel; ``.map(other)`` gives another AnnData coordinates, ``.save(folder)`` keeps it.
    """
    asked = [
        f"latent.{name}={list(map(str, values))!r}"
        for name, values in (("discrete", discrete), ("continuous", continuous))
    ]
    config = RunConfig.load(None, [*asked, *settings])
    with tempfile.TemporaryDirectory(prefix="unicoord-atlas-") as name:
        folder = Path(name)
        lean = anndata.AnnData(
            adata.X, obs=adata.obs, var=adata.var, layers={layer: adata.layers[layer]} if layer else None
        )
        write_h5ad(lean, folder / "cells.h5ad")
        ingest.run(
            ingest.IngestOptions(
                [str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=list(discrete), layer=layer, input=input
            )
        )
        if config.needs_graph:
            build_graph.run(build_graph.BuildGraphOptions(folder / "atlas.zarr"))
        train.run(train.TrainOptions(folder / "atlas.zarr", folder / "run", config))
        return ReferenceModel.load(model_of_run(folder / "run"))
