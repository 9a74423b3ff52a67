"""Coordinates of cells as an AnnData without X: what export-latents and map-query write."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from tqdm import tqdm

from .version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from .batch import MiniBatch
    from .reference import Annotation, ReferenceModel


def coordinates(
    reference: ReferenceModel, batches: Iterable[MiniBatch], obs: pd.DataFrame, probabilities: bool, title: str
) -> anndata.AnnData:
    """Encode all cells of `batches`, which come in the order of `obs`.

    Returns
    -------
    AnnData without X: obs with ``<label>_predicted`` and ``<label>_confidence``, obsm X_unicoord, X_unicoord_bio and,
    on request, X_unicoord_<label>; uns["unicoord"] names the dimensions.
    """
    names = [label.name for label in reference.config.labels]
    n = len(obs)
    tables: dict[str, NDArray[np.float32]] = {}
    codes = {name: np.zeros(n, np.int32) for name in names}
    confidence = {name: np.zeros(n, np.float32) for name in names}
    with tqdm(total=n, desc=title, unit="cell", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for part in reference.annotate(batches):
            rows = part.encoded.rows
            for key, values in _tables(part, probabilities).items():
                if key not in tables:
                    tables[key] = np.zeros((n, values.shape[1]), np.float32)
                tables[key][rows] = values
            for name in names:
                codes[name][rows] = part.predicted(name)
                confidence[name][rows] = part.probabilities[name].max(axis=1)
            bar.update(len(rows))
    table = obs.copy()
    for label in reference.config.labels:
        table[f"{label.name}_predicted"] = pd.Categorical.from_codes(
            codes[label.name], categories=list(label.categories)
        )
        table[f"{label.name}_confidence"] = confidence[label.name]
    return anndata.AnnData(obs=table, obsm=tables, uns={"unicoord": _uns(reference)})


def _tables(part: Annotation, probabilities: bool) -> dict[str, NDArray[np.float32]]:
    tables = {"X_unicoord": part.encoded.mean.astype(np.float32), "X_unicoord_bio": part.bio}
    if probabilities:
        tables |= {f"X_unicoord_{name}": values for name, values in part.probabilities.items()}
    return tables


def _uns(reference: ReferenceModel) -> dict[str, object]:
    return {
        "dims": list(reference.dims),
        "categories": {label.name: list(label.categories) for label in reference.config.labels},
        "technical": list(reference.config.technical),
        "version": __version__,
    }
