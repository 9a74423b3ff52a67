"""The paper's training loop in plain PyTorch: what bench_train compares with.  Knows nothing of our model.

Dense float32 input, nn.Linear everywhere, Adam; three encoder layers with dropout after the first two, four decoder
layers with ReLU after each and dropout after the second and third.  Source: the paper, Methods, "Model structure".
Shapes: n cells, g genes, d continuous dimensions, k categories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gumbel_softmax, one_hot

if TYPE_CHECKING:
    from collections.abc import Sequence

DIMENSIONS, HIDDEN = 50, (512, 256, 128)
DROPOUT, TEMPERATURE, CLASSIFICATION, LEARNING_RATE = 0.1, 0.67, 100.0, 5e-4


class PaperNetwork(nn.Module):
    """The joint-VAE as the paper describes it."""

    def __init__(self, num_genes: int, categories: Sequence[int]) -> None:
        super().__init__()
        (a, b, c), self.categories = HIDDEN, list(categories)
        self.encoder = nn.Sequential(
            nn.Linear(num_genes, a), nn.ReLU(), nn.Dropout(DROPOUT),
            nn.Linear(a, b), nn.ReLU(), nn.Dropout(DROPOUT),
            nn.Linear(b, c), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.Linear(c, 2 * DIMENSIONS + sum(categories))
        self.decoder = nn.Sequential(
            nn.Linear(DIMENSIONS + sum(categories), c), nn.ReLU(),
            nn.Linear(c, b), nn.ReLU(), nn.Dropout(DROPOUT),
            nn.Linear(b, a), nn.ReLU(), nn.Dropout(DROPOUT),
            nn.Linear(a, num_genes), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x_ng: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Decoded cells, means, log-variances, logits; in eval mode mean and arg-max are decoded."""
        sizes = [DIMENSIONS, DIMENSIONS, *self.categories]
        mean_nd, logvar_nd, *logits = self.heads(self.encoder(x_ng)).split(sizes, dim=1)
        if self.training:
            z_nd = mean_nd + torch.exp(0.5 * logvar_nd) * torch.randn_like(mean_nd)
            soft = [gumbel_softmax(logits_nk, tau=TEMPERATURE) for logits_nk in logits]
        else:
            z_nd, soft = mean_nd, [one_hot(l_nk.argmax(dim=1), l_nk.shape[1]).float() for l_nk in logits]
        return self.decoder(torch.cat([*soft, z_nd], dim=1)), mean_nd, logvar_nd, logits


def make_adam(network: nn.Module) -> torch.optim.Adam:
    """PyTorch's default Adam at the paper's rate."""
    return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)


def paper_step(network: PaperNetwork, optimizer: torch.optim.Optimizer, x_ng: Tensor, codes_nl: Tensor) -> float:
    """One step; unlabelled cells (code -1) carry no classification loss."""
    decoded_ng, mean_nd, logvar_nd, logits = network(x_ng)
    error = torch.nn.functional.mse_loss(decoded_ng, x_ng, reduction="sum") / len(x_ng)
    kl = 0.5 * (mean_nd.square() + logvar_nd.exp() - 1 - logvar_nd).sum() / len(x_ng)
    probabilities = [logits_nk.softmax(dim=1) for logits_nk in logits]
    kl = kl + sum((p_nk * torch.log(p_nk * p_nk.shape[1] + 1e-12)).sum() for p_nk in probabilities) / len(x_ng)
    known = [
        (logits_nk, codes_n) for logits_nk, codes_n in zip(logits, codes_nl.T, strict=True) if (codes_n >= 0).any()
    ]
    loss = error + kl + CLASSIFICATION * sum(cross_entropy(l_nk, codes_n, ignore_index=-1) for l_nk, codes_n in known)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
