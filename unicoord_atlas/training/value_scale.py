"""Continuous labels on the scale that validation cells have: what temperatures are to discrete ones.

What a model has learned by heart of its training cells is missing where others are encoded: it says too little of their
values, and the slope of the labels over what it says is above 1 (1.2 for mixtures of cell lines).
Shapes: n cells, d continuous dimensions, c of them with labels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from unicoord_atlas.encode import Encoded
    from unicoord_atlas.model.joint_vae import JointVAE

_FEWEST = 20
"""Validation cells that a line may be fitted to."""
_SLOPE_SD = 0.5

Line = tuple[float, float]
"""Slope and intercept."""


def fitted_lines(said: Sequence[Encoded], values_nc: NDArray[np.float32]) -> list[Line]:
    """A line for each continuous dimension with labels, from what is said of validation cells to their labels.

    Parameters
    ----------
    said
        The validation cells, encoded.
    values_nc
        Labels of ALL cells of the store, NaN where there is none.
    """
    if not said:
        return [(1.0, 0.0)] * values_nc.shape[1]
    true_nc = values_nc[np.concatenate([part.rows for part in said])].astype(np.float64)
    said_nd = np.concatenate([part.mean for part in said]).astype(np.float64)
    known_nc = ~np.isnan(true_nc)
    return [fit_line(said_nd[known_nc[:, c], c], true_nc[known_nc[:, c], c]) for c in range(true_nc.shape[1])]


def fit_line(said_n: NDArray[np.float64], true_n: NDArray[np.float64]) -> Line:
    """The line from what is said to the labels; (1, 0) of a few cells, or if the labels do not rise.

    Least squares, the slope as if it were known beforehand to be 1, give or take a half: so it is that where the cells
    tell little.  Source: Copas 1983, "Regression, prediction and shrinkage", on the slope of labels over predictions.
    """
    if len(said_n) < _FEWEST:
        return 1.0, 0.0
    x_n, y_n = said_n - said_n.mean(), true_n - true_n.mean()
    spread = float(x_n @ x_n)
    if not spread > 0:
        return 1.0, 0.0
    noise = float(((y_n - x_n * (x_n @ y_n) / spread) ** 2).sum()) / (len(x_n) - 2)
    known = noise / _SLOPE_SD**2
    slope = (float(x_n @ y_n) + known) / (spread + known)
    return (slope, float(true_n.mean() - slope * said_n.mean())) if slope > 0 else (1.0, 0.0)


@torch.no_grad()
def put_on_scale(model: JointVAE, lines: Sequence[Line]) -> None:
    """Have a trained encoder say values by these lines.

    The units stay: the decoder has learned from training cells, of which the encoder says values in full.
    """
    for number, (slope, start) in enumerate(lines):
        own = model.spec.latent.continuous[number]
        moved = (start + (slope - 1) * own.offset) / own.scale
        model.mean.weight[number] *= slope
        model.mean.bias[number] = slope * model.mean.bias[number] + moved
        model.logvar.bias[number] += 2 * math.log(slope)
