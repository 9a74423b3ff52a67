"""Latent dimensions, their posterior, and how it is drawn from.

Shapes: n cells, d continuous dimensions, k categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from unicoord_atlas.errors import ConfigError

from .noise import Noise, Purpose
from .refinement import Refinement


class DiscreteLatent(BaseModel):
    """A discrete dimension; one without labels is unsupervised."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    num_categories: int
    supervised: bool = True


class ContinuousLatent(BaseModel):
    """A continuous dimension; a supervised one is learned as (label - offset) / scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    supervised: bool = True
    offset: float = 0.0
    scale: float = 1.0


class LatentSpec(BaseModel):
    """All dimensions in the order of the tensors: supervised ones first."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))
    discrete: tuple[DiscreteLatent, ...] = ()
    continuous: tuple[ContinuousLatent, ...] = ()
    num_diffusion: int = 0
    """The first so many of the unsupervised continuous dimensions."""
    refinements: tuple[Refinement, ...] = ()
    """Discrete dimensions that refine others, coarse ones first (of two above one, the last has its sums)."""

    @model_validator(mode="after")
    def _check(self) -> LatentSpec:
        for flags in ([d.supervised for d in self.discrete], [c.supervised for c in self.continuous]):
            if flags != sorted(flags, reverse=True):
                raise ValueError("supervised dimensions come before unsupervised ones")
        names = [*(latent.name for latent in self.discrete), *(latent.name for latent in self.continuous)]
        if len(set(names)) != len(names):
            raise ConfigError(f"latent: a name is used twice among {names}")
        if not names:
            raise ConfigError("latent: no dimension at all; set latent.discrete or latent.unsupervised_continuous")
        sizes = tuple(latent.num_categories for latent in self.discrete)
        for tie in self.refinements:
            if not tie.fits(sizes):
                raise ConfigError(f"latent: dimensions {tie.parent} and {tie.child} of {len(sizes)} cannot be tied so")
        if self.num_diffusion > self.num_continuous - self.num_supervised_continuous:
            raise ConfigError(
                f"latent.diffusion = {self.num_diffusion} is more than the unsupervised continuous dimensions"
            )
        return self

    @property
    def num_continuous(self) -> int:
        """Number of continuous dimensions d."""
        return len(self.continuous)

    @property
    def num_supervised_continuous(self) -> int:
        """Number of supervised continuous dimensions, which come first."""
        return sum(latent.supervised for latent in self.continuous)

    @property
    def num_supervised_discrete(self) -> int:
        """Number of supervised discrete dimensions, which come first."""
        return sum(latent.supervised for latent in self.discrete)

    @property
    def width(self) -> int:
        """Length of a decoder input: all categories, then all continuous dimensions."""
        return sum(latent.num_categories for latent in self.discrete) + self.num_continuous

    @property
    def diffusion_dims(self) -> slice:
        """The diffusion dimensions among the continuous ones."""
        start = self.num_supervised_continuous
        return slice(start, start + self.num_diffusion)


@dataclass(frozen=True, slots=True)
class Posterior:
    """What the encoder says of n cells."""

    mean_nd: Tensor
    logvar_nd: Tensor
    logits: tuple[Tensor, ...]
    """One (n, k) a discrete dimension."""
    helpers: tuple[tuple[int, Tensor], ...] = ()
    """Second answers, (n, k), of discrete dimensions by their numbers: they are trained, and nothing else."""

    def probabilities(self) -> tuple[Tensor, ...]:
        """One (n, k) a discrete dimension, rows sum to 1."""
        return tuple(F.softmax(logits_nk, dim=1) for logits_nk in self.logits)

    def mode(self) -> Tensor:
        """(n, width): one-hot arg-max categories and means: the deterministic decoder input."""
        return join([one_hot(logits_nk.argmax(dim=1), logits_nk) for logits_nk in self.logits], self.mean_nd)

    def sample(self, noise: Noise, temperature: float) -> Tensor:
        """(n, width): soft Gumbel sample of the predicted categories and reparameterized continuous values.

        Source: Jang et al. 2017 (Gumbel-softmax); Kingma & Welling 2013; the paper, Methods, "Model structure".
        """
        widths = [logits_nk.shape[1] for logits_nk in self.logits]
        gumbel = noise.gumbel(Purpose.GUMBEL, sum(widths)).to(self.mean_nd.dtype) if widths else self.mean_nd[:, :0]
        soft = [
            F.softmax((logits_nk + gumbel_nk) / temperature, dim=1)
            for logits_nk, gumbel_nk in zip(self.logits, gumbel.split(widths, dim=1) if widths else (), strict=True)
        ]
        normal_nd = noise.normal(Purpose.GAUSSIAN, self.mean_nd.shape[1]).to(self.mean_nd.dtype)
        return join(soft, self.mean_nd + torch.exp(0.5 * self.logvar_nd) * normal_nd)


def join(discrete: list[Tensor], continuous_nd: Tensor) -> Tensor:
    """(n, width): the decoder's input from (n, k) blocks of categories and (n, d) continuous values."""
    return torch.cat([*discrete, continuous_nd], dim=1)


def one_hot(codes_n: Tensor, like_nk: Tensor) -> Tensor:
    """(n, k) with a 1 at each cell's code, in the dtype and on the device of `like_nk`."""
    return torch.zeros_like(like_nk).scatter_(1, codes_n[:, None], 1.0)


def with_labels(latent_nw: Tensor, codes_nl: Tensor, known_nc: Tensor, spec: LatentSpec) -> Tensor:
    """(n, width): decoder inputs in which each supervised dimension is the cell's label, where that is known.

    Continuous labels are given in the units of the dimensions, NaN where there is none.

    What the encoder says of a label is less than the label: a decoder that learns from it makes too little of it.
    """
    parts = list(latent_nw.split([*(d.num_categories for d in spec.discrete), spec.num_continuous], dim=1))
    for number in range(spec.num_supervised_discrete):
        codes_n = codes_nl[:, number]
        known_nk = one_hot(codes_n.clamp(min=0), parts[number])
        parts[number] = torch.where(codes_n[:, None] >= 0, known_nk, parts[number])
    said_nc, free_nd = parts[-1].tensor_split((spec.num_supervised_continuous,), dim=1)
    told_nc = torch.where(known_nc.isnan(), said_nc, known_nc.to(said_nc.dtype))
    return join(parts[:-1], torch.cat([told_nc, free_nd], dim=1))
