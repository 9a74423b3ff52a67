"""Supervised terms, one value a cell and 0 where the label is missing.

Shapes: n cells, c supervised continuous dimensions, k categories, p parent categories.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def regression(mean_nc: Tensor, label_nc: Tensor) -> Tensor:
    """Squared error between label and posterior mean, NaN labels masked.

    Returns
    -------
    Tensor, shape (n, c), in squared units of the label as it is learned.

    Source: the paper, Methods, "Loss functions".
    """
    known_nc = ~torch.isnan(label_nc)
    return torch.where(known_nc, mean_nc - torch.nan_to_num(label_nc), 0.0).square()


def classification(logits_nk: Tensor, codes_n: Tensor, class_weights_k: Tensor) -> Tensor:
    """Cross-entropy between label and logits times the label's class weight, codes < 0 masked.

    A weighted cross-entropy alone would learn probabilities in proportion to p_k w_k.  The logs of the weights are
    added to the logits here, so that the logits themselves speak of the classes as the atlas has them: rare classes
    are learned better without being predicted more often (compare Menon et al. 2021, "logit adjustment").

    Returns
    -------
    Tensor, shape (n,), in nats.

    Source: the paper, Methods, "Loss functions"; on logits, not on probabilities as its code.
    """
    weighted_nk = logits_nk + class_weights_k.log()
    losses_n = F.cross_entropy(weighted_nk, codes_n, ignore_index=-1, reduction="none")
    return losses_n * class_weights_k[codes_n.clamp(min=0)]


def hierarchical(child_logits_nk: Tensor, parent_logits_np: Tensor, parents_kp: Tensor) -> Tensor:
    """Cross-entropy between the children's probabilities summed to their parents and the parents' own.

    -sum_a agg(a) log p_parent(a).  A child with two parents gives half to each (`parents_kp` rows sum to 1).

    Returns
    -------
    Tensor, shape (n,), in nats.

    Source: the paper, Methods, "Loss functions".
    """
    aggregated_np = F.softmax(child_logits_nk, dim=1) @ parents_kp
    return -(aggregated_np * F.log_softmax(parent_logits_np, dim=1)).sum(dim=1)


def class_weights(counts_k: Tensor, kind: str) -> Tensor:
    """Weight of each class, with mean 1 over the labelled cells.

    Parameters
    ----------
    counts_k
        Labelled training cells of each class.
    kind
        "none": 1; "sqrt": in proportion to 1 / sqrt(count); "balanced": to 1 / count.
    """
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[kind]
    raw_k = counts_k.clamp(min=1).to(torch.float32) ** -power
    mean = (raw_k * counts_k).sum() / counts_k.sum().clamp(min=1)
    return raw_k / mean if mean > 0 else torch.ones_like(raw_k)
