"""How much of cells a model says: squared errors against the mean profile's, gene by gene and group by group.

Streams minibatches; what it keeps grows with genes, groups and cells, never with their product.
Source: the paper, Methods, "Loss functions" (reconstruction).
Shapes: n cells of a minibatch, N all cells, g genes of the model, c groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from unicoord_atlas.model.joint_vae import JointVAE

    from .batch import MiniBatch


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Sums over cells, of the genes that these measured."""

    error_n: NDArray[np.float64]
    """(N,) squared error of each decoded cell."""
    mean_error_n: NDArray[np.float64]
    """(N,) the same of the mean profile of the training cells."""
    error_g: NDArray[np.float64]
    """(g,) mean squared error of each gene."""
    mean_g: NDArray[np.float64]
    variance_g: NDArray[np.float64]
    """(g,) mean and variance (ddof 0) of the log-normalized values."""
    decoded_mean_g: NDArray[np.float64]
    correlation_g: NDArray[np.float64]
    """(g,) Pearson's, between values and decoded values; nan where either is the same in all cells."""

    def explained(self, rows: NDArray[np.intp] | slice = slice(None)) -> float:
        """1 - error / error of the mean profile, over some cells; nan if the mean profile has none."""
        whole = self.mean_error_n[rows].sum()
        return float(1 - self.error_n[rows].sum() / whole) if whole > 0 else float("nan")


@torch.no_grad()
def reconstruction(
    model: JointVAE, batches: Iterable[MiniBatch], mean_g: NDArray[np.float64], measured_g: NDArray[np.bool_]
) -> Reconstruction:
    """Encode and decode cells, deterministically, and compare.

    Parameters
    ----------
    mean_g
        Mean profile of the training cells, over the model's genes.
    measured_g
        (g,) genes that the cells measured; the others are left out.
    """
    model.eval()
    device = model.output_layer.weight.device
    profile_g, seen_g = torch.from_numpy(mean_g).to(device), torch.from_numpy(measured_g).to(device)
    errors: list[NDArray[np.float64]] = []
    mean_errors: list[NDArray[np.float64]] = []
    sums = torch.zeros(5, len(mean_g), dtype=torch.float64, device=device)
    for batch in batches:
        on_device = batch.to(device)
        rows = model.normalized(on_device)
        latent_nw = model.encode(rows, model.center(on_device)).mode()
        decoded_ng = model.decode(latent_nw).double() * seen_g
        values_ng = rows.to_dense().double() * seen_g
        errors.append(((values_ng - decoded_ng) ** 2).sum(dim=1).cpu().numpy())
        mean_errors.append(((values_ng - profile_g * seen_g) ** 2).sum(dim=1).cpu().numpy())
        each = (values_ng, decoded_ng, values_ng**2, decoded_ng**2, values_ng * decoded_ng)
        sums += torch.stack([part_ng.sum(dim=0) for part_ng in each])
    return _of_sums(np.concatenate(errors), np.concatenate(mean_errors), sums.cpu().numpy())


def _of_sums(
    error_n: NDArray[np.float64], mean_error_n: NDArray[np.float64], sums: NDArray[np.float64]
) -> Reconstruction:
    x_g, y_g, xx_g, yy_g, xy_g = sums / len(error_n)
    variance_g, decoded_g = np.maximum(xx_g - x_g**2, 0), np.maximum(yy_g - y_g**2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A variance of rounding errors alone is none.
        spread_g = np.sqrt(np.where(variance_g > 1e-12 * xx_g, variance_g, 0))
        spread_g = spread_g * np.sqrt(np.where(decoded_g > 1e-12 * yy_g, decoded_g, 0))
        correlation_g = np.where(spread_g > 0, (xy_g - x_g * y_g) / spread_g, np.nan)
    return Reconstruction(error_n, mean_error_n, xx_g - 2 * xy_g + yy_g, x_g, variance_g, y_g, correlation_g)
