"""What a finished model must know of its own outputs: spread of latents, and how sure its probabilities may be.

Shapes: n cells, d continuous dimensions, k categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
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
    coverages: tuple[float, ...] = ()
    """Ascending shares of the mean profile that a query's genes may carry, 1 left out."""
    coverage_temperatures: Mapping[str, tuple[float, ...]] = Field(default_factory=dict)
    """Temperatures at these coverages: fewer genes, less certainty."""

    def temperature(self, name: str, coverage: float | NDArray[np.float64] = 1.0) -> NDArray[np.float32]:
        """What the logits are divided by where the genes measured carry this share of the mean profile.

        (1, 1) for one share, (n, 1) for one of each cell.
        """
        full, shares = self.temperatures.get(name, 1.0), np.reshape(coverage, (-1, 1))
        if name not in self.coverage_temperatures:
            return np.full((1, 1), full, np.float32)
        known = np.log([*self.coverage_temperatures[name], full])
        found: NDArray[np.float32] = np.exp(np.interp(shares, [*self.coverages, 1.0], known)).astype(np.float32)
        return found


def calibrate(
    training: Iterable[Encoded],
    validation: Sequence[Encoded],
    narrower: Mapping[float, Sequence[Encoded]],
    codes_nl: NDArray[np.int32],
    names: tuple[str, ...],
) -> Calibration:
    """Spread of the latents over training cells, and temperatures fitted on validation cells.

    Parameters
    ----------
    training, validation
        Encoded cells.
    narrower
        Validation cells encoded with fewer genes, by the share of the mean profile that these carry.
    codes_nl
        Codes of ALL cells of the store, -1 where unlabelled.
    names
        Names of the supervised discrete dimensions, in the order of the codes.
    """
    means = np.concatenate([encoded.mean for encoded in training])
    full = fitted_temperatures(validation, codes_nl, names)
    coverages = tuple(sorted(narrower))
    fitted = [fitted_temperatures(narrower[share], codes_nl, names) for share in coverages]
    return Calibration(
        latent_mean=tuple(means.mean(axis=0, dtype=np.float64).tolist()),
        latent_sd=tuple(means.std(axis=0, dtype=np.float64).tolist()),
        temperatures=full,
        coverages=coverages,
        coverage_temperatures={name: tuple(at[name] for at in fitted) for name in names} if coverages else {},
    )


def fitted_temperatures(
    encoded: Sequence[Encoded], codes_nl: NDArray[np.int32], names: tuple[str, ...]
) -> dict[str, float]:
    """Temperature of each supervised discrete dimension; 1 without labelled cells."""
    temperatures = dict.fromkeys(names, 1.0)
    for number, name in enumerate(names if encoded else ()):
        logits = np.concatenate([part.logits[number] for part in encoded])
        codes = np.concatenate([codes_nl[part.rows, number] for part in encoded])
        temperatures[name] = fit_temperature(logits[codes >= 0], codes[codes >= 0])
    return temperatures


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
