"""Points: places in the coordinate system, from which cells are decoded.

Shapes: n cells, d continuous dimensions, k categories, w width of a decoder input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from unicoord_atlas.model.noise import Noise, Purpose

from .encode import FrozenEncoder, own_units

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from unicoord_atlas.model.joint_vae import JointVAE

    from .batch import MiniBatch
    from .encode import Encoded


@dataclass(frozen=True, slots=True)
class Points:
    """Where n cells are: a category of each discrete dimension, a distribution over the continuous ones."""

    rows: NDArray[np.int64]
    """(n,) position of the cell in the file, or among the seeds."""
    discrete: tuple[NDArray[np.float32], ...]
    """One (n, k) a discrete dimension: rows sum to 1, and are one-hot but between two categories."""
    mean: NDArray[np.float32]
    """(n, d) in the units of the labels."""
    variance: NDArray[np.float32]
    """(n, d) in the same units squared."""
    size_factors: NDArray[np.float32]
    """(n,) see `normalization`."""

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.rows)

    def take(self, chosen: NDArray[np.int64]) -> Points:
        """These of the cells, each as often as it is named."""
        return Points(
            self.rows[chosen],
            tuple(weights[chosen] for weights in self.discrete),
            self.mean[chosen],
            self.variance[chosen],
            self.size_factors[chosen],
        )

    def sampled(self, seed: int) -> Points:
        """A draw from each cell's distribution; it depends on the seed and the cell's row, and on nothing else."""
        normal = Noise(seed, 0, torch.from_numpy(self.rows)).normal(Purpose.GENERATE, self.mean.shape[1]).numpy()
        return replace(self, mean=self.mean + np.sqrt(self.variance) * normal)

    def decoder_input(self, model: JointVAE) -> NDArray[np.float32]:
        """(n, w): categories and means, as the decoder was trained on them."""
        offset, scale = own_units(model)
        return np.concatenate([*self.discrete, (self.mean - offset) / scale], axis=1, dtype=np.float32)


def encoded_points(encoded: Encoded, size_factors: NDArray[np.float32]) -> Points:
    """Where the encoder says the cells are: the arg-max of each discrete dimension."""
    discrete = tuple(one_hot(logits.argmax(axis=1), logits.shape[1]) for logits in encoded.logits)
    return Points(encoded.rows, discrete, encoded.mean, encoded.variance, size_factors)


def encode_points(model: JointVAE, batches: Iterable[MiniBatch], device: torch.device) -> Iterator[Points]:
    """Minibatches to points; cells that pad a batch are left out."""
    encoder = FrozenEncoder(model)
    for batch in batches:
        on_device, real = batch.to(device), batch.weights_n.numpy() > 0
        encoded = encoder.encode(on_device, model.normalized(on_device))
        yield encoded_points(encoded, batch.size_factors_n.numpy()[real])


def between(first: Points, last: Points, num_points: int) -> Points:
    """Points on the straight line from one cell to another, ends included; rows count from 0."""
    share = np.linspace(0, 1, num_points, dtype=np.float32)[:, None]

    def mixed(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        return (1 - share) * a[None] + share * b[None]

    return Points(
        np.arange(num_points, dtype=np.int64),
        tuple(mixed(a[0], b[0]) for a, b in zip(first.discrete, last.discrete, strict=True)),
        mixed(first.mean[0], last.mean[0]),
        mixed(first.variance[0], last.variance[0]),
        mixed(first.size_factors[:1], last.size_factors[:1])[:, 0],
    )


def one_hot(codes: NDArray[np.integer], num_categories: int) -> NDArray[np.float32]:
    """(n, k) with a 1 at each cell's code."""
    weights: NDArray[np.float32] = np.eye(num_categories, dtype=np.float32)[codes]
    return weights
