"""Counts as another experiment might have seen them: genes hidden, molecules lost.

On CPU the entries that are left are gathered: half of them or fewer, and all that follows is theirs.  On another device
all entries stay, 0 where nothing is left: to find how many are left, the host would have to wait for the device.
Shapes: n cells, z non-zeros.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .noise import EntryNoise, Purpose, below, box_muller

if TYPE_CHECKING:
    from unicoord_atlas.batch import SparseRows


def left_over(
    counts: SparseRows, seen_z: Tensor, keep_n: Tensor | None, first_z: Tensor, noise: EntryNoise, gathered: bool
) -> SparseRows:
    """Counts of which some entries are hidden and, if each cell has a keep probability, molecules are lost.

    Parameters
    ----------
    seen_z
        (z,) bool: entries that are not hidden.
    keep_n
        (n,) share of each cell's molecules that stay.
    first_z
        (z,) int32: one of the draws for `Purpose.THINNING`.
    noise
        Of all entries.
    gathered
        Leave out entries with nothing left; else they are 0.
    """
    if not gathered:
        counts_z = counts.data.to(torch.float32)
        if keep_n is not None:
            counts_z = thin_at_once(counts_z, keep_n.index_select(0, noise.row_of_entry_z), first_z, noise)
        return replace(counts, data=torch.where(seen_z, counts_z, 0.0))
    seen = seen_z.nonzero().squeeze(1)
    counts = counts.take(seen)
    if keep_n is None:
        return counts
    noise, first_m = noise.of(seen), first_z.index_select(0, seen)
    keep_m = keep_n.index_select(0, noise.row_of_entry_z)
    kept_m = thin(counts.data.to(torch.float32), keep_m, first_m, noise)
    return replace(counts, data=kept_m).take(kept_m.nonzero().squeeze(1))


def thin(counts_z: Tensor, keep_z: Tensor, first_z: Tensor, noise: EntryNoise) -> Tensor:
    """Binomial thinning of counts: each molecule stays with its cell's keep probability.

    Exact (to 2^-16 in the probability) for counts up to 4, which are nearly all entries of a cell: one Bernoulli draw a
    molecule.  Larger counts take the normal approximation with the binomial's mean and variance.

    Parameters
    ----------
    counts_z, keep_z
        (z,) float32 counts, all above 0, and keep probabilities.
    first_z
        (z,) int32: one of the draws for `Purpose.THINNING`.
    noise
        Of the same entries.
    """
    kept_z = below(first_z, keep_z).to(counts_z.dtype)
    several = (counts_z > 1).nonzero().squeeze(1)  # a third of a cell's entries: only they need more than one draw
    counts_m, keep_m, kept_m = (values_z.index_select(0, several) for values_z in (counts_z, keep_z, kept_z))
    noise_m = noise.of(several)
    second_m, third_m = (below(draws_m, keep_m) for draws_m in noise_m.draws(Purpose.THINNING_SECOND))
    kept_m += second_m
    kept_m += third_m.logical_and_(counts_m > 2)
    many = (counts_m > 3).nonzero().squeeze(1)
    counts_k, keep_k, kept_k = (values_m.index_select(0, many) for values_m in (counts_m, keep_m, kept_m))
    radius_k, angle_k = noise_m.of(many).draws(Purpose.THINNING_MANY)
    kept_k = torch.where(counts_k > 4, _many(counts_k, keep_k, radius_k, angle_k), kept_k + below(radius_k, keep_k))
    return kept_z.index_copy_(0, several, kept_m.index_copy_(0, many, kept_k))


def thin_at_once(counts_z: Tensor, keep_z: Tensor, first_z: Tensor, noise: EntryNoise) -> Tensor:
    """The same as `thin`, with all draws for all entries: the host need not know how many want a second one."""
    second_z, third_z = (below(draws_z, keep_z) for draws_z in noise.draws(Purpose.THINNING_SECOND))
    radius_z, angle_z = noise.draws(Purpose.THINNING_MANY)
    kept_z = below(first_z, keep_z).to(counts_z.dtype)
    for number, stays_z in enumerate((second_z, third_z, below(radius_z, keep_z)), 1):
        kept_z += stays_z.logical_and_(counts_z > number)
    return torch.where(counts_z > 4, _many(counts_z, keep_z, radius_z, angle_z), kept_z)


def _many(counts_z: Tensor, keep_z: Tensor, radius_z: Tensor, angle_z: Tensor) -> Tensor:
    """What is left of more than a handful of molecules."""
    spread_z = torch.sqrt(counts_z * keep_z * (1 - keep_z))
    normal_z = torch.round(counts_z * keep_z + spread_z * box_muller(radius_z, angle_z)).clamp_(min=0)
    return torch.minimum(normal_z, counts_z)
