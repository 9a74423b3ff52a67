"""A way of their own from the genes to labels: what tells them apart is not what reconstructs cells best.

Its units of the first layer lie beside the encoder's, so both are one product.  The encoder keeps heads for the same
labels, which are trained as without a path: they shape its coordinates, and nobody else looks at them.
Source: Ilse et al. 2020, "DIVA: domain invariant variational autoencoders", section 2, has an encoder for each factor;
the paper has one for all, which `model.label_path = []` sets.
Shapes: n cells, h units, k categories.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_DROPOUT = 16
"""Its layers are numbered from here on, behind those of encoder and decoder."""


class LabelPath(nn.Module):
    """The layers behind its units of the first one.

    Parameters
    ----------
    widths
        Of its layers; the first is that of its units.
    num_categories
        Of its labels, by their numbers among the discrete dimensions.
    """

    def __init__(self, widths: Sequence[int], num_categories: Mapping[int, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.heads = nn.ModuleDict({str(each): nn.Linear(widths[-1], size) for each, size in num_categories.items()})

    def forward(self, first_nh: Tensor, dropout: Callable[[Tensor, int], Tensor]) -> dict[int, Tensor]:
        """(n, k) logits of each of its labels; `dropout` takes units and the number of their layer."""
        hidden_nh = torch.relu(first_nh)
        for number, layer in enumerate(self.layers):
            hidden_nh = torch.relu(layer(dropout(hidden_nh, _DROPOUT + number)))
        return {int(name): head(hidden_nh) for name, head in self.heads.items()}
