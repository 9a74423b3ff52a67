"""Counter-based noise: a pure function of (seed, purpose, step, cell, element), the same however cells are batched.

Two processes with half a minibatch each, or a resumed run, therefore draw what one uninterrupted process draws.
The mixer is SplitMix64's (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 18); where
every non-zero or every hidden unit of a minibatch takes a draw, one of half its width, with the constants of Wellons'
"lowbias32".
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
_ALL_64 = (1 << 64) - 1
_GOLDEN_32 = -1640531527  # 0x9E3779B9 as a signed 32-bit integer
_MIX_32_1 = 2146121005  # 0x7FEB352D
_MIX_32_2 = -2073254261  # 0x846CA68B


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
    PANEL = 10
    GENERATE = 11
    JITTER = 12
    THINNING_SECOND = 13
    THINNING_MANY = 14
    PAIRS = 15
    PANEL_OF_STEP = 16
    DROPOUT = 64  # plus the layer's number


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer; int64 products wrap, and the masks make the arithmetic shifts logical."""
    x = (x ^ (x >> 30).bitwise_and_(0x3FFFFFFFF)).mul_(_MIX_1)
    x.bitwise_xor_((x >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(_MIX_2)
    return x.bitwise_xor_((x >> 31).bitwise_and_(0x1FFFFFFFF))


def _mix_int(x: int) -> int:
    """The same of one number, on the host: sending it to a device would make the host wait for the device."""
    x &= _ALL_64
    x = (x ^ (x >> 30)) * (_MIX_1 & _ALL_64) & _ALL_64
    x = (x ^ (x >> 27)) * (_MIX_2 & _ALL_64) & _ALL_64
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x


def _mix_32(x: Tensor) -> Tensor:
    """The same with 32 bits, in place: a third of the time."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_MIX_32_1)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_MIX_32_2)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


@dataclass(frozen=True, slots=True)
class Noise:
    """The draws of one step for the cells of one minibatch."""

    seed: int
    step: int
    rows_n: Tensor
    """(n,) int64: the cells' global positions."""

    def keys(self, purpose: int) -> Tensor:
        """(n,) int64: random bits of each cell."""
        start = _mix_int(((self.seed * 1_000_003 + self.step) * 4096 + purpose) * _GOLDEN)
        return _mix(self.rows_n * _GOLDEN + start)

    def bits(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) int64 with uniformly random bits."""
        elements = torch.arange(1, num_elements + 1, device=self.rows_n.device) * _GOLDEN
        return _mix(self.keys(purpose)[:, None] + elements)

    def draws(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) int32, uniform on 0..65535: what `below` compares; two a counter, an eighth of the cost of `bits`."""
        keys_n = (self.keys(purpose) >> 32).to(torch.int32)
        counter_m = torch.arange(1, (num_elements + 1) // 2 + 1, dtype=torch.int32, device=keys_n.device)
        bits = _mix_32(keys_n[:, None] ^ counter_m.mul_(_GOLDEN_32))
        return torch.cat([bits & 0xFFFF, (bits >> 16).bitwise_and_(0xFFFF)], dim=1)[:, :num_elements]

    def entry_bits(self, purpose: int, row_of_entry_z: Tensor, columns_z: Tensor) -> Tensor:
        """(z,) int64 with uniformly random bits, one draw a (cell, column)."""
        counter_z = columns_z.to(torch.int64, copy=True).add_(1).mul_(_GOLDEN)
        return _mix(counter_z.add_(self.keys(purpose).index_select(0, row_of_entry_z)))

    def uniform(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) float32 in (0, 1)."""
        return to_uniform(self.bits(purpose, num_elements))

    def normal(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) float32 standard normal (Box-Muller)."""
        return to_normal(self.bits(purpose, num_elements))

    def gumbel(self, purpose: int, num_elements: int) -> Tensor:
        """(n, m) float32 standard Gumbel."""
        return -torch.log(-torch.log(self.uniform(purpose, num_elements)))


@dataclass(frozen=True, slots=True)
class EntryNoise:
    """The draws of one step for the non-zeros of one minibatch."""

    noise: Noise
    row_of_entry_z: Tensor
    """(z,) int64: position of each entry's cell in the minibatch."""
    genes_z: Tensor
    """(z,) gene of each entry."""

    def draws(self, purpose: int) -> tuple[Tensor, Tensor]:
        """Two (z,) int32 draws a (cell, gene), uniform on 0..65535 and independent of each other."""
        keys_n = (self.noise.keys(purpose) >> 32).to(torch.int32)
        counter_z = self.genes_z.to(torch.int32, copy=True).add_(1).mul_(_GOLDEN_32)
        bits_z = _mix_32(counter_z.bitwise_xor_(keys_n.index_select(0, self.row_of_entry_z)))
        return bits_z & 0xFFFF, (bits_z >> 16).bitwise_and_(0xFFFF)

    def of(self, entries_m: Tensor) -> EntryNoise:
        """That of some of the entries."""
        rows_m, genes_m = (values_z.index_select(0, entries_m) for values_z in (self.row_of_entry_z, self.genes_z))
        return EntryNoise(self.noise, rows_m, genes_m)


def to_uniform(bits: Tensor) -> Tensor:
    """Float32 in (0, 1) from the upper 24 bits: centred in their intervals, so never 0 or 1."""
    # 2^-25 would round 1 - 2^-25 up to 1 in float32, hence 23 bits and the half in between.
    return (((bits >> 41) & 0x7FFFFF).to(torch.float32) + 0.5) * 2.0**-23


def to_normal(bits: Tensor) -> Tensor:
    """Float32 standard normal: radius from the upper 23 bits, angle from the 23 below."""
    radius = torch.sqrt(-2.0 * torch.log(to_uniform(bits)))
    return radius * torch.cos(2.0 * math.pi * to_uniform(bits << 23))


def below(draws_z: Tensor, share: Tensor | float) -> Tensor:
    """Bool: whether draws on 0..65535 fall into a share of all, exact to 2^-16."""
    return draws_z < (share * 65536.0).to(draws_z.dtype) if isinstance(share, Tensor) else draws_z < share * 65536.0


def box_muller(radius_z: Tensor, angle_z: Tensor) -> Tensor:
    """Standard normal of two draws of 16 bits."""
    radius_z, angle_z = ((draws_z + 0.5) / 65536.0 for draws_z in (radius_z, angle_z))
    return torch.sqrt(-2.0 * torch.log(radius_z)) * torch.cos(2.0 * math.pi * angle_z)


@dataclass(frozen=True, slots=True)
class Dropout:
    """What hides units of layers; nothing without noise."""

    rate: float
    noise: Noise | None

    def __call__(self, hidden_nh: Tensor, layer: int) -> Tensor:
        """The units of a layer of this number, the rest of them larger."""
        if self.noise is None or self.rate == 0:
            return hidden_nh
        lost_nh = below(self.noise.draws(Purpose.DROPOUT + layer, hidden_nh.shape[1]), self.rate)
        return hidden_nh * lost_nh.logical_not_().to(hidden_nh.dtype).div_(1 - self.rate)
