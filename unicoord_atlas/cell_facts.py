"""What the novelty of cells is computed from: coordinates, profiles, errors and depths.

Shapes: n cells, b biological coordinates, f genes that varied most, p axes, g genes of the model or atlas.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from .generate import mode_latents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from unicoord_atlas.model.joint_vae import JointVAE

    from .batch import SparseRows
    from .encode import Encoded

_SMALLEST = 1e-6
_LEAST_VARIANCE = 0.01
"""Added to the variance of a gene, so that one that hardly varies does not decide alone."""
_RIDGE = 0.01
"""Of the least squares: an axis that the measured genes hardly see is not made up."""


class VariableGenes(Protocol):
    """Which genes errors and profiles are taken over."""

    @property
    def genes_f(self) -> NDArray[np.int64]:
        """Positions among the model's genes."""
        ...

    @property
    def variance_f(self) -> NDArray[np.float64]:
        """Of their log-normalized values in the atlas."""
        ...

    @property
    def axes_fp(self) -> NDArray[np.float32]:
        """Orthonormal principal axes of the atlas's cells, not centred."""
        ...


@dataclass(frozen=True, slots=True)
class CellFacts:
    """What novelty is computed from."""

    bio_nb: NDArray[np.float32]
    """Biological coordinates."""
    profiles_np: NDArray[np.float32]
    """Directions in the space of the axes: of length 1, or 0 of a cell without counts."""
    errors_n: NDArray[np.float64]
    """Mean of squared error / variance over the genes."""
    terms_n2: NDArray[np.float64]
    """1 and the log of the size factor."""

    @classmethod
    def joined(cls, parts: Sequence[CellFacts]) -> CellFacts:
        """Of all cells, one after the other."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))


@torch.no_grad()
def cell_facts(
    model: JointVAE,
    genes: VariableGenes,
    rows: SparseRows,
    encoded: Encoded,
    bio_nb: NDArray[np.float32],
    size_factors_n: Tensor,
    measured_g: NDArray[np.bool_] | None,
) -> CellFacts:
    """What the novelty of cells is computed from.

    Parameters
    ----------
    rows, encoded, bio_nb, size_factors_n
        Log-normalized cells in the model's genes, their coordinates and size factors.
    measured_g
        Which genes of the atlas the cells' source measured; None = all.
    """
    device = model.output_layer.weight.device
    x_nf = values_of(model, genes.genes_f, rows)
    genes_f = torch.from_numpy(genes.genes_f).to(device)
    hidden_nh = model.decode_hidden(torch.from_numpy(mode_latents(model, encoded)).to(device))
    layer = model.output_layer
    decoded_nf = torch.relu(F.linear(hidden_nh, layer.weight[genes_f], layer.bias[genes_f]))
    seen_f = torch.from_numpy(_measured(model, genes, measured_g)).to(device)
    squares_nf = torch.where(seen_f, (decoded_nf - x_nf).square(), 0.0)
    weight_f = torch.from_numpy(1 / (genes.variance_f + _LEAST_VARIANCE)).to(device, torch.float32)
    errors_n = (squares_nf @ weight_f).double().cpu().numpy() / len(weight_f)
    depth_n = np.log(np.maximum(size_factors_n.double().cpu().numpy(), 1.0))
    terms_n2 = np.stack([np.ones_like(depth_n), depth_n], axis=1)
    profiles_np = _directions(x_nf, torch.from_numpy(genes.axes_fp).to(device), seen_f)
    return CellFacts(bio_nb, profiles_np.cpu().numpy(), np.maximum(errors_n, _SMALLEST), terms_n2)


def values_of(model: JointVAE, genes_f: NDArray[np.int64], rows: SparseRows) -> Tensor:
    """(n, f) values of some of the model's genes."""
    position_g = torch.full((model.spec.num_genes,), -1, device=rows.data.device)
    position_g[torch.from_numpy(genes_f).to(position_g.device)] = torch.arange(len(genes_f), device=position_g.device)
    return rows.select(position_g, len(genes_f)).to_dense()


def _directions(x_nf: Tensor, axes_fp: Tensor, seen_f: Tensor) -> Tensor:
    """(n, p) of length 1: along the axes, by (almost) least squares over the genes that were measured."""
    axes_fp = axes_fp * seen_f[:, None]
    ridge_pp = _RIDGE * torch.eye(axes_fp.shape[1], device=axes_fp.device)
    return F.normalize(torch.linalg.solve(axes_fp.T @ axes_fp + ridge_pp, (x_nf @ axes_fp).T).T, dim=1)


def _measured(model: JointVAE, genes: VariableGenes, measured_g: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """(f,) which of the genes a source measured."""
    if measured_g is None:
        return np.ones(len(genes.genes_f), np.bool_)
    own_g = measured_g[model.own_index_g.cpu().numpy() >= 0] if model.spec.num_atlas_genes else measured_g
    measured_f: NDArray[np.bool_] = own_g[genes.genes_f]
    return measured_f
