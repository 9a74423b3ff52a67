"""What a finished model must know of its own outputs: spread of latents, and how sure its probabilities may be.

Shapes: n cells, d continuous dimensions, k categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize_scalar

from unicoord_atlas.encode import Encoded, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Calibration(BaseModel):
    """Facts of a finished model's outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    latent_mean: tuple[float, ...]
    """Mean of each continuous dimension over training cells, in its own units."""
    latent_sd: tuple[float, ...]
    """Standard deviation of each continuous dimension over training cells."""
    temperatures: Mapping[str, float]
    """For each supervised discrete dimension, what its logits are divided by before the softmax."""


def calibrate(
    training: Iterable[Encoded], validation: Iterable[Encoded], codes_nl: NDArray[np.int32], names: tuple[str, ...]
) -> Calibration:
    """Spread of the latents over training cells, and temperatures fitted on validation cells.

    Parameters
    ----------
    training, validation
        Encoded cells.
    codes_nl
        Codes of ALL cells of the store, -1 where unlabelled.
    names
        Names of the supervised discrete dimensions, in the order of the codes.
    """
    means = np.concatenate([encoded.mean for encoded in training])
    checked = list(validation)
    temperatures = {}
    for number, name in enumerate(names):
        if checked:
            logits = np.concatenate([encoded.logits[number] for encoded in checked])
            codes = np.concatenate([codes_nl[encoded.rows, number] for encoded in checked])
            temperatures[name] = fit_temperature(logits[codes >= 0], codes[codes >= 0])
        else:
            temperatures[name] = 1.0
    return Calibration(
        latent_mean=tuple(means.mean(axis=0, dtype=np.float64).tolist()),
        latent_sd=tuple(means.std(axis=0, dtype=np.float64).tolist()),
        temperatures=temperatures,
    )


def fit_temperature(logits_nk: NDArray[np.float32], codes_n: NDArray[np.int32]) -> float:
    """The temperature in [0.05, 20] with the least cross-entropy; 1 without labelled cells.

    Source: Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
    """
    if not len(codes_n):
        return 1.0

    def cross_entropy(log_temperature: float) -> float:
        probabilities = softmax(logits_nk / np.float32(np.exp(log_temperature)))
        return float(-np.log(np.maximum(probabilities[np.arange(len(codes_n)), codes_n], 1e-30)).mean())

    found = minimize_scalar(cross_entropy, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))
