"""What the encoder takes off cells: the mean profile, of the genes that each cell's source measured.

A gene that was not measured is then as in the average cell: it says nothing, where a zero would say that it is off.
Shapes: n cells, g genes, h hidden units, p panels (lists of genes that were measured).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .sparse_input import bag

if TYPE_CHECKING:
    from torch import Tensor

_GENES = 2048
"""That are added up together: threads share them out, and it does not matter how."""


@dataclass(frozen=True, slots=True)
class Center:
    """What is taken off the cells of one minibatch."""

    profiles_pg: Tensor
    """(p, g) the mean profile, 0 where a panel has no gene."""
    panel_n: Tensor | None = None
    """(n,) int64: the panel of each cell; None: the one that there is."""

    @classmethod
    def of(cls, mean_g: Tensor, panels_pg: Tensor, panel_n: Tensor) -> Center:
        """Of cells of these panels, (p, g) bool."""
        return cls(panels_pg * mean_g, panel_n if len(panels_pg) > 1 else None)

    def product(self, weight_gh: Tensor) -> Tensor:
        """(n or 1, h): what it adds up to behind a linear layer; without gradient."""
        sums_ph = _product(self.profiles_pg, weight_gh.detach())
        return sums_ph if self.panel_n is None else sums_ph.index_select(0, self.panel_n)

    def take_off_gradient(self, grad_gh: Tensor, grad_nh: Tensor) -> Tensor:
        """The gradient of the weights less the centre's part of it, in place; `grad_nh` is that of the layer's sums."""
        if self.panel_n is None:
            return grad_gh.addr_(self.profiles_pg[0], grad_nh.sum(dim=0), alpha=-1)
        grad_ph = grad_nh.new_zeros((len(self.profiles_pg), grad_nh.shape[1])).index_add_(0, self.panel_n, grad_nh)
        return grad_gh.addmm_(self.profiles_pg.t(), grad_ph, alpha=-1)


def _product(profiles_pg: Tensor, weight_gh: Tensor) -> Tensor:
    if len(profiles_pg) > 1 or profiles_pg.device.type != "cpu":
        return profiles_pg @ weight_gh
    # A BLAS's product of a vector may depend on where the table lies in memory: a run that goes on after a kill would
    # end with other bits.
    num_genes = profiles_pg.shape[1]
    starts = torch.arange(0, num_genes, _GENES)
    ends = torch.cat([starts, torch.tensor([num_genes])])
    return bag(weight_gh, torch.arange(num_genes), ends, profiles_pg[0]).sum(dim=0, keepdim=True)


def distinct(measured_sg: Tensor) -> tuple[Tensor, Tensor]:
    """(p, g) the panels that differ, and (s,) int64 which of them each source has."""
    panels_pg, panel_of_source_s = torch.unique(measured_sg, dim=0, return_inverse=True)
    return panels_pg, panel_of_source_s
