"""A way of their own from the genes to labels: what tells them apart is not what reconstructs cells best.

Its units of the first layer lie beside the encoder's, so both are one product.  The continuous dimensions are told what
it knows, as in q(z | x, y), but have no say in it: their gradient ends there.
Source: Kingma et al. 2014, "Semi-supervised learning with deep generative models", equation 4 (M2), for q(y | x) and
q(z | x, y) as two networks; the paper has one, which `model.label_path = []` sets.
Shapes: n cells, h units, d continuous dimensions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_DROPOUT = 16
"""Its layers are numbered from here on, behind those of encoder and decoder."""


class LabelPath(nn.Module):
    """The layers behind its units of the first one.

    Parameters
    ----------
    widths
        Of its layers; the first is that of its units.
    num_continuous
        Dimensions that are told what it knows.
    """

    def __init__(self, widths: Sequence[int], num_continuous: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.mean = nn.Linear(widths[-1], num_continuous, bias=False)
        self.logvar = nn.Linear(widths[-1], num_continuous, bias=False)

    def forward(self, first_nh: Tensor, dropout: Callable[[Tensor, int], Tensor]) -> Tensor:
        """(n, h): its last layer's units; `dropout` takes units and the number of their layer."""
        hidden_nh = torch.relu(first_nh)
        for number, layer in enumerate(self.layers):
            hidden_nh = torch.relu(layer(dropout(hidden_nh, _DROPOUT + number)))
        return hidden_nh

    def tell(self, hidden_nh: Tensor, mean_nd: Tensor, logvar_nd: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances of the encoder with what this path adds to them."""
        known_nh = hidden_nh.detach()
        return mean_nd + self.mean(known_nh), logvar_nd + self.logvar(known_nh)
