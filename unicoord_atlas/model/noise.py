"""Counter-based noise: a pure function of (seed, purpose, step, cell, element), the same however cells are batched.

Two processes with half a minibatch each, or a resumed run, therefore draw what one uninterrupted process draws.
The mixer is SplitMix64's (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 18).
Shapes: n cells, m elements a cell, z non-zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


class Purpose(IntEnum):
    """What a draw is for: draws for different purposes are independent."""

    GAUSSIAN = 1
    GUMBEL = 2
    THINNING_SHARE = 3
    THINNING = 4
    DIFFUSION_SHARE = 5
    DIFFUSION_LIVE = 6
    DIFFUSION_GAUSSIAN = 7
    COUNTS = 8
    GENE_DROPOUT = 9
    PANEL = 10
    GENERATE = 11
    JITTER = 12
    DROPOUT = 64  # plus the layer's number


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer; int64 products wrap, and the masks make the arithmetic shifts logical."""
    x = (x ^ (x >> 30).bitwise_and_(0x3FFFFFFFF)).mul_(_MIX_1)
    x.bitwise_xor_((x >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(_MIX_2)
    return x.bitwise_xor_((x >> 31).bitwise_and_(0x1FFFFFFFF))


@dataclass(frozen=True, slots=True)
class Noise:
    """The draws of one step for the cells of one minibatch."""

    seed: int
    step: int
    rows_n: Tensor
    """(n,) int64: the cells' global positions."""

    def _keys(self, purpose: int) -> Tensor:
        start = torch.tensor((self.seed * 1_000_003 + self.step) * 4096 + purpose, device=self.rows_n.device)
        return _mix(_mix(start * _GOLDEN) + self.rows_n * _GOLDEN)

    def bits(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) int64 with uniformly random bits."""
        elements = torch.arange(1, num_elements + 1, device=self.rows_n.device) * _GOLDEN
        return _mix(self._keys(purpose)[:, None] + elements)

    def entry_bits(self, purpose: int, row_of_entry_z: Tensor, genes_z: Tensor) -> Tensor:
        """(z,) int64 with uniformly random bits, one draw a (cell, gene)."""
        counter_z = genes_z.to(torch.int64, copy=True).add_(1).mul_(_GOLDEN)
        return _mix(counter_z.add_(self._keys(purpose).index_select(0, row_of_entry_z)))

    def uniform(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) float32 in (0, 1)."""
        return to_uniform(self.bits(purpose, num_elements))

    def normal(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) float32 standard normal (Box-Muller)."""
        return to_normal(self.bits(purpose, num_elements))

    def gumbel(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) float32 standard Gumbel."""
        return -torch.log(-torch.log(self.uniform(purpose, num_elements)))


def to_uniform(bits: Tensor) -> Tensor:
    """Float32 in (0, 1) from the upper 24 bits: centred in their intervals, so never 0 or 1."""
    # 2^-25 would round 1 - 2^-25 up to 1 in float32, hence 23 bits and the half in between.
    return (((bits >> 41) & 0x7FFFFF).to(torch.float32) + 0.5) * 2.0**-23


def to_normal(bits: Tensor) -> Tensor:
    """Float32 standard normal: radius from the upper 23 bits, angle from the 23 below."""
    radius = torch.sqrt(-2.0 * torch.log(to_uniform(bits)))
    return radius * torch.cos(2.0 * math.pi * to_uniform(bits << 23))


def thin(counts_z: Tensor, keep_z: Tensor, bits_z: Tensor) -> Tensor:
    """Binomial thinning of counts: each molecule stays with its cell's keep probability.

    Exact (to 2^-16 in the probability) for counts up to 4, which are nearly all entries of a cell: one Bernoulli draw
    of 16 bits a molecule.  Larger counts take the normal approximation with the binomial's mean and variance.

    Parameters
    ----------
    counts_z, keep_z
        (z,) float32 counts and keep probabilities.
    bits_z
        (z,) int64 random bits.
    """
    kept_z = ((bits_z & 0xFFFF) < (keep_z * 65536.0).to(torch.int64)).to(counts_z.dtype)
    kept_z *= counts_z > 0
    several = (counts_z > 1).nonzero().squeeze(1)  # a third of a cell's entries: only they need more than one draw
    picked = [values_z.index_select(0, several) for values_z in (counts_z, keep_z, bits_z)]
    return kept_z.index_copy_(0, several, _thin_several(*picked))


def _thin_several(counts_z: Tensor, keep_z: Tensor, bits_z: Tensor) -> Tensor:
    threshold_z = (keep_z * 65536.0).to(torch.int64)
    kept_z = torch.zeros_like(counts_z)
    for molecule in range(4):
        survives = ((bits_z >> (16 * molecule)) & 0xFFFF) < threshold_z
        kept_z += survives & (counts_z > molecule)
    many = (counts_z > 4).nonzero().squeeze(1)
    counts_z, keep_z, bits_z = (values_z.index_select(0, many) for values_z in (counts_z, keep_z, bits_z))
    spread_z = torch.sqrt(counts_z * keep_z * (1 - keep_z))
    normal_z = torch.round(counts_z * keep_z + spread_z * to_normal(bits_z)).clamp_(min=0)
    return kept_z.index_copy_(0, many, torch.minimum(normal_z, counts_z))
