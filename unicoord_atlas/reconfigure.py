"""In-silico reconfiguration: what changes in cells when a coordinate is set, and where they are then.

Cells are decoded as they are and as they would be; both are encoded again, as a real cell with these values would be.
Shapes: n cells, g genes of the model, b columns of the biological representation, s seeds, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .batch import MiniBatch, SparseRows
from .encode import Encoded, softmax
from .errors import DataError, UsageError
from .generate import Generation, generate
from .points import one_hot

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from .coordinate_changes import Changes
    from .csr_block import CsrBlock
    from .points import Points
    from .reference import ReferenceModel


@dataclass(frozen=True, slots=True)
class Made:
    """Decoded cells."""

    values_g: NDArray[np.float32]
    """(g,) mean log-normalized values."""
    bio_nb: NDArray[np.float32]
    """(n, b) where the encoder sees them."""
    shares: dict[str, dict[str, float]]
    """Mean calibrated probability of each class of each label."""


def reconfigured(reference: ReferenceModel, points: Points, obs: pd.DataFrame, changes: Changes | None) -> Made:
    """These cells with their means decoded, after the changes, or as they are if there are none.

    Raises
    ------
    UsageError
        For a label, class or dimension that is not there; it lists what can be set.
    """
    how = Generation(changes, sample="mode", min_value=0) if changes else Generation(reconstruct=True, sample="mode")
    values, bio, probabilities = [], [], []
    for part in generate(reference, [points], how, obs):
        values.append(_dense(part.block, len(reference.own_genes)))
        bio_nb, probs = _encoded_again(reference, part.block)
        bio.append(bio_nb)
        probabilities.append(probs)
    shares = {
        label.name: dict(
            zip(
                label.categories,
                np.concatenate([each[label.name] for each in probabilities]).mean(axis=0).tolist(),
                strict=True,
            )
        )
        for label in reference.config.labels
    }
    return Made(np.concatenate(values).mean(axis=0), np.concatenate(bio), shares)


def bio_of_seeds(reference: ReferenceModel) -> NDArray[np.float32]:
    """(s, b) the biological representation of the cells that a reference carries; DataError if it carries none."""
    seeds = reference.seeds
    if seeds is None:
        raise DataError("the reference bundles no seeds; train and export it again")
    probabilities = {
        label.name: one_hot(seeds.categories[:, number], len(label.categories))
        for number, label in enumerate(reference.config.labels)
    }
    return reference.bio(Encoded(np.arange(len(seeds)), seeds.mean, seeds.variance, ()), probabilities)


def seed_points(reference: ReferenceModel, chosen: NDArray[np.int64]) -> Points:
    """Points of these seeds; UsageError for a number that there is not."""
    seeds = reference.seeds
    if seeds is None or not len(chosen) or chosen.min() < 0 or chosen.max() >= len(seeds):
        raise UsageError(f"seed {chosen.tolist()[:1]}: must be in 0..{len(seeds or ()) - 1}")
    sizes = tuple(latent.num_categories for latent in reference.config.network.latent.discrete)
    return seeds.points(chosen, sizes)


def _dense(block: CsrBlock, num_genes: int) -> NDArray[np.float32]:
    dense = np.zeros((block.num_rows, num_genes), np.float32)
    dense[np.repeat(np.arange(block.num_rows), np.diff(block.indptr)), block.indices] = block.data
    return dense


def _encoded_again(
    reference: ReferenceModel, block: CsrBlock
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Biological representation and probabilities of cells whose log-normalized values are given."""
    n, device = block.num_rows, reference.device
    rows = SparseRows(
        torch.from_numpy(block.indptr),
        torch.from_numpy(block.indices.astype(np.int32)),
        torch.from_numpy(block.data.astype(np.float32)),
        len(reference.own_genes),
    ).to(device)
    ones, none = torch.ones(n), torch.zeros((n, 0))
    every_sg = torch.ones((1, reference.schema.num_genes), dtype=torch.bool)
    sources_n = torch.zeros(n, dtype=torch.int64)
    batch = MiniBatch(rows, torch.arange(n), ones, sources_n, none.long(), none, ones, measured_sg=every_sg)
    encoded = reference.encoder.encode(batch.to(device), rows)
    temperature = reference.config.calibration.temperature
    probabilities = {
        label.name: softmax(encoded.logits[number] / np.float32(temperature(label.name, 1.0)))
        for number, label in enumerate(reference.config.labels)
    }
    return reference.bio(encoded, probabilities), probabilities
