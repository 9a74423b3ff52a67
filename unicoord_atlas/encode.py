"""The only inference path: minibatches to coordinates, deterministic.

Shapes: n cells, d continuous dimensions, k categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from unicoord_atlas.model.center import Center
from unicoord_atlas.model.sparse_input import bag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from unicoord_atlas.model.joint_vae import JointVAE

    from .batch import MiniBatch, SparseRows


@dataclass(frozen=True, slots=True)
class Encoded:
    """Coordinates of the cells of one minibatch."""

    rows: NDArray[np.int64]
    """(n,) positions in the store."""
    mean: NDArray[np.float32]
    """(n, d) means of the continuous dimensions; supervised ones in the units of their labels."""
    variance: NDArray[np.float32]
    """(n, d) variances, in the same units squared."""
    logits: tuple[NDArray[np.float32], ...]
    """One (n, k) a discrete dimension."""


class FrozenEncoder:
    """The encoder of a finished model, its first layer in float16: half the bytes to fetch for every count of a cell.

    That layer is where the time goes.  float16 keeps three more bits than bfloat16 and is as fast; both are fetched
    twice as fast as float32, whether or not the processor computes in them.
    """

    def __init__(self, model: JointVAE) -> None:
        self.model = model.eval()
        with torch.no_grad():
            self._table_gh = (model.input_layer.weight * model.heard_g[:, None]).to(torch.float16)
        self._center: tuple[Tensor, Tensor] | None = None
        self._offset, self._scale = own_units(model)

    @torch.no_grad()
    def encode(self, batch: MiniBatch, rows: SparseRows) -> Encoded:
        """Coordinates of one minibatch, whose log-normalized `rows` are given; both on the model's device."""
        first_nh = bag(self._table_gh, rows.indices, rows.indptr, rows.data).float() + self._bias(batch)
        posterior = self.model.posterior_of(first_nh)
        real = batch.weights_n.cpu().numpy() > 0
        return Encoded(
            batch.rows_n.cpu().numpy()[real],
            posterior.mean_nd.cpu().numpy()[real] * self._scale + self._offset,
            posterior.logvar_nd.exp().cpu().numpy()[real] * self._scale**2,
            tuple(logits_nk.cpu().numpy()[real] for logits_nk in posterior.logits),
        )

    def _bias(self, batch: MiniBatch) -> Tensor:
        """(n or 1, h): the first layer's bias less the centre; products of the same panels are kept."""
        bias_h, center = self.model.input_layer.bias, self.model.center(batch)
        if center is None:
            return bias_h
        if self._center is None or not torch.equal(self._center[0], center.profiles_pg):
            self._center = center.profiles_pg, Center(center.profiles_pg).product(self.model.input_layer.weight)
        sums_ph = self._center[1]
        return bias_h - (sums_ph if center.panel_n is None else sums_ph.index_select(0, center.panel_n))


@torch.no_grad()
def encode_batches(model: JointVAE, batches: Iterable[MiniBatch], device: torch.device) -> Iterator[Encoded]:
    """Encode minibatches one by one; cells that pad a batch (weight 0) are left out."""
    encoder = FrozenEncoder(model)
    for batch in batches:
        on_device = batch.to(device)
        yield encoder.encode(on_device, model.normalized(on_device))


def own_units(model: JointVAE) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(d,) offset and (d,) scale that turn learned values into the units of the labels."""
    continuous = model.spec.latent.continuous
    return (
        np.array([latent.offset for latent in continuous], np.float32),
        np.array([latent.scale for latent in continuous], np.float32),
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows to probabilities."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return result
