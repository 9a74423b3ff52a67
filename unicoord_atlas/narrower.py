"""Minibatches as they would be had their source measured fewer genes, or fewer molecules: for calibration on such.

Shapes: n cells, g genes, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from .batch import MiniBatch
    from .normalization import Normalization


@dataclass(frozen=True)
class NarrowerBatches:
    """The same cells with some genes only, normalized by the rule for queries."""

    batches: Iterable[MiniBatch]
    measured_g: NDArray[np.bool_]
    normalization: Normalization
    sources_sg: NDArray[np.bool_]
    """(s, g) what each source measured before."""

    def __iter__(self) -> Iterator[MiniBatch]:
        kept_g, left_sg = torch.from_numpy(self.measured_g), torch.from_numpy(self.sources_sg & self.measured_g)
        for batch in self.batches:
            counts = batch.counts.take(kept_g[batch.counts.indices.to(torch.int64)].nonzero().squeeze(1))
            sums = self.normalization.kept_sums(counts.indptr.numpy(), counts.indices.numpy(), counts.data.numpy())
            sizes = self.normalization.query_size_factors(sums, self.measured_g)
            size_factors_n = torch.from_numpy(sizes.astype(np.float32))
            yield replace(batch, counts=counts, size_factors_n=size_factors_n, measured_sg=left_sg)


@dataclass(frozen=True)
class ShallowerBatches:
    """The same cells with a share of their molecules, drawn at random, the same ones each time."""

    batches: Iterable[MiniBatch]
    share: float
    normalization: Normalization
    seed: int

    def __iter__(self) -> Iterator[MiniBatch]:
        rng = np.random.default_rng(self.seed)
        for batch in self.batches:
            drawn = rng.binomial(np.rint(batch.counts.data.numpy()).astype(np.int64), self.share)
            counts = replace(batch.counts, data=torch.from_numpy(drawn.astype(np.float32)))
            counts = counts.take(counts.data.nonzero().squeeze(1))
            sizes = self.normalization.kept_sums(counts.indptr.numpy(), counts.indices.numpy(), counts.data.numpy())
            yield replace(batch, counts=counts, size_factors_n=torch.from_numpy(sizes.astype(np.float32)))


def genes_that_carry(share: float, normalization: Normalization, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(g,) genes drawn at random until they carry this share of the mean profile."""
    profile_g = normalization.profile_g
    order = rng.permutation(len(profile_g))
    before = np.cumsum(profile_g[order]) - profile_g[order]
    measured_g = np.zeros(len(profile_g), np.bool_)
    measured_g[order[before < share * profile_g.sum()]] = True
    return measured_g
