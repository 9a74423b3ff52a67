"""How well batches mix and types stay apart, by scib-metrics.

Source: Luecken et al. 2022, "Benchmarking atlas-level data integration in single-cell genomics".
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unicoord_atlas.errors import ConfigError
from unicoord_atlas.neighbors.query_knn import query_nearest, search_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_NEIGHBORS = 90
"""Three times the perplexity that the published figures use."""


def mixing(points_nd: NDArray[np.float32], labels: pd.Series, batches: pd.Series) -> dict[str, float]:
    """ILISI and cLISI (0 to 1, higher is better) and silhouettes of types and batches, over the labelled cells."""
    try:
        import scib_metrics
        from scib_metrics.nearest_neighbors import NeighborsResults
    except ImportError:
        raise ConfigError(
            "--batch needs scib-metrics, which is not installed: pip install 'unicoord-atlas[scib]'"
        ) from None
    known = (labels.notna() & batches.notna()).to_numpy()
    points_nd = np.ascontiguousarray(points_nd[known])
    label_codes, batch_codes = (pd.Categorical(column[known]).codes for column in (labels, batches))
    count = min(NUM_NEIGHBORS, len(points_nd))
    rows, distances = query_nearest(points_nd, points_nd, search_all(points_nd, len(points_nd)), count)
    near = NeighborsResults(indices=rows, distances=distances)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax speaks of its devices
        return {
            "ilisi": float(scib_metrics.ilisi_knn(near, batch_codes)),
            "clisi": float(scib_metrics.clisi_knn(near, label_codes)),
            "silhouette_label": float(scib_metrics.silhouette_label(points_nd, label_codes)),
            "silhouette_batch": float(scib_metrics.silhouette_batch(points_nd, label_codes, batch_codes)),
        }
