"""Labels of two levels: the finer one's probabilities are those of its classes given their parents.

    p(k) = sum_a p(a) s_ka exp(c_k) / sum_j s_ja exp(c_j)

p(a) is the probability of a parent, c the finer level's own logits, s the share of a class that belongs to a parent.
So the probabilities of a parent's children sum to its own: both heads agree wherever a cell's parent is clear, and the
finer one has to learn only what tells siblings apart.
Shapes: n cells, p parents, k children, e pairs of a child and a parent that it belongs to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


class Refinement(BaseModel):
    """Two discrete dimensions of which one refines the other, by their numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parent: int
    child: int
    shares: tuple[tuple[tuple[int, float], ...], ...]
    """Of each class of the child: the parents that it belongs to, and how much of it to each."""

    def fits(self, sizes: tuple[int, ...]) -> bool:
        """Whether dimensions of so many classes can be tied like this."""
        numbers = range(len(sizes))
        if self.parent not in numbers or self.child not in numbers or self.parent == self.child:
            return False
        known = all(0 <= code < sizes[self.parent] and 0 < share <= 1 for row in self.shares for code, share in row)
        return known and len(self.shares) == sizes[self.child]


class GivenParents(nn.Module):
    """The formula above; it has no weights."""

    child_e: Tensor
    parent_e: Tensor
    log_share_e: Tensor

    def __init__(self, refinement: Refinement) -> None:
        super().__init__()
        pairs = [(k, code, share) for k, row in enumerate(refinement.shares) for code, share in row]
        children, parents, shares = (list(column) for column in zip(*pairs, strict=True)) if pairs else ([], [], [])
        self.register_buffer("child_e", torch.tensor(children, dtype=torch.int64), persistent=False)
        self.register_buffer("parent_e", torch.tensor(parents, dtype=torch.int64), persistent=False)
        self.register_buffer("log_share_e", torch.tensor(shares).log(), persistent=False)

    def forward(self, child_nk: Tensor, parent_np: Tensor) -> Tensor:
        """(n, k) log-probabilities of the finer level from its own logits and the parents'."""
        dtype = torch.promote_types(child_nk.dtype, torch.float32)
        pair_ne = child_nk.to(dtype)[:, self.child_e] + self.log_share_e
        siblings_np = log_sum_exp(pair_ne, self.parent_e, parent_np.shape[1])
        given_np = F.log_softmax(parent_np.to(dtype), dim=1) - siblings_np
        found_nk = log_sum_exp(pair_ne + given_np[:, self.parent_e], self.child_e, child_nk.shape[1])
        return found_nk.to(child_nk.dtype)


def log_sum_exp(values_ne: Tensor, group_e: Tensor, num_groups: int) -> Tensor:
    """(n, num_groups): log of the sum of exp over the columns of each group; of none, the least number there is."""
    shape, least = (len(values_ne), num_groups), torch.finfo(values_ne.dtype).min / 4
    top = values_ne.detach().new_full(shape, least)
    top = top.scatter_reduce(1, group_e.expand(len(values_ne), -1), values_ne.detach(), "amax")
    sums = torch.zeros_like(top).index_add(1, group_e, (values_ne - top[:, group_e]).exp())
    return top + sums.clamp(min=torch.finfo(sums.dtype).tiny).log()
