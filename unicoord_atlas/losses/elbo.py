"""Kullback-Leibler terms of the joint-VAE.  Shapes: n cells, d continuous dimensions, k categories."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_kl(mean_nd: Tensor, logvar_nd: Tensor) -> Tensor:
    """KL divergence of each cell's posterior from a standard normal.

    Returns
    -------
    Tensor, shape (n,), in nats, summed over the d dimensions.

    Source: Kingma & Welling 2013, appendix B; the paper, Methods, "Loss functions".
    """
    return 0.5 * (mean_nd.square() + logvar_nd.exp() - 1 - logvar_nd).sum(dim=1)


def categorical_kl(logits_nk: Tensor) -> Tensor:
    """KL divergence of each cell's categories from uniform: log k - H(p).

    Returns
    -------
    Tensor, shape (n,), in nats.

    Source: Dupont 2018, equation 4; the paper, Methods, "Loss functions".
    """
    log_p_nk = F.log_softmax(logits_nk, dim=1)
    return math.log(logits_nk.shape[1]) + (log_p_nk.exp() * log_p_nk).sum(dim=1)


def capacity_weight_step(step: int, capacity_nats: float, capacity_steps: int) -> float:
    """Nats that the KL may have at this step: a straight line from 0 to `capacity_nats` (the released code)."""
    return capacity_nats * min(step / capacity_steps, 1.0)


def clustering(expression_distance_nn: Tensor, probabilities_nk: Tensor, margin: float = 0.1) -> Tensor:
    """Released code's seventh loss: cells of one cluster should be near in expression.

    mean_ij d_ij^2 (q_ij (1 + r) - r) with q = p p^T, r the margin; a scalar.
    """
    together_nn = probabilities_nk @ probabilities_nk.t()
    return torch.mean(expression_distance_nn.square() * (together_nn * (1 + margin) - margin))
