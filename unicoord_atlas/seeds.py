"""Seeds: latent distributions of training cells that travel with a reference, so that it generates without a file.

Shapes: s seeds, d continuous dimensions, l labels, c supervised continuous dimensions, q discrete dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .errors import DataError, UsageError
from .points import Points, one_hot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from .batch import CellColumns
    from .reference import ReferenceModel

SEEDS = "seeds.safetensors"
MAX_SEEDS = 20_000
"""8 MB at 50 dimensions."""
OF_EACH_CLASS = 100
"""So many cells of each class are taken first, or all there are; the rest at random."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """Where training cells are, and their labels."""

    mean: NDArray[np.float32]
    """(s, d) in the units of the labels."""
    variance: NDArray[np.float32]
    """(s, d)"""
    categories: NDArray[np.int32]
    """(s, q) arg-max of each discrete dimension."""
    size_factors: NDArray[np.float32]
    """(s,)"""
    codes: NDArray[np.int32]
    """(s, l) labels, -1 where unlabelled."""
    values: NDArray[np.float32]
    """(s, c) continuous labels, NaN where missing."""

    def __len__(self) -> int:
        """Number of seeds."""
        return len(self.mean)

    @classmethod
    def of(cls, points: Iterable[Points], columns: CellColumns) -> Seeds:
        """Of encoded training cells, whose rows count the cells of `columns`."""
        parts = list(points)
        rows = np.concatenate([part.rows for part in parts])
        discrete = [
            np.stack([weights.argmax(axis=1) for weights in part.discrete], axis=1) for part in parts if part.discrete
        ]
        return cls(
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.variance for part in parts]),
            np.concatenate(discrete).astype(np.int32) if discrete else np.zeros((len(rows), 0), np.int32),
            np.concatenate([part.size_factors for part in parts]),
            columns.codes[rows],
            columns.values[rows],
        )

    def points(self, chosen: NDArray[np.int64], sizes: tuple[int, ...]) -> Points:
        """These seeds, numbered from 0; `sizes` are the numbers of categories of the discrete dimensions."""
        discrete = tuple(one_hot(self.categories[chosen, number], size) for number, size in enumerate(sizes))
        rows = np.arange(len(chosen), dtype=np.int64)
        return Points(rows, discrete, self.mean[chosen], self.variance[chosen], self.size_factors[chosen])

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file({each.name: np.ascontiguousarray(getattr(self, each.name)) for each in fields(self)}, path)
        path.chmod(0o644)  # safetensors makes it private, and this is to be shared

    @classmethod
    def load(cls, path: Path) -> Seeds:
        """Read what `save` wrote; DataError names the file."""
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as seeds ({error}); export the reference again") from error


def seed_rows(rows: NDArray[np.int64], codes_nl: NDArray[np.int32], seed: int) -> NDArray[np.int64]:
    """Up to 20,000 of the training rows, ascending: some of each class, then others at random."""
    if len(rows) <= MAX_SEEDS:
        return rows
    order = rows[np.random.default_rng([seed, 0x5EED]).permutation(len(rows))]
    first = np.zeros(len(order), np.bool_)
    for codes in codes_nl.T:
        of_class = pd.Series(codes[order]).groupby(codes[order]).cumcount().to_numpy()
        first |= (of_class < OF_EACH_CLASS) & (codes[order] >= 0)
    chosen = np.concatenate([order[first], order[~first]])[:MAX_SEEDS]
    return np.sort(chosen)


def choose_seeds(
    reference: ReferenceModel, like: Mapping[str, str], num: int, seed: int
) -> tuple[Points, pd.DataFrame]:
    """Points of `num` seeds with these labels, and their labels as obs.

    Each is taken once as long as there are enough, in an order that depends on the seed only.

    Raises
    ------
    UsageError
        For a label or class that is not there, with a list of those that are; or if no seed is like that.
    DataError
        If the reference has no seeds.
    """
    if num < 1:
        raise UsageError(f"--num {num}: ask for 1 cell or more")
    if reference.seeds is None:
        raise DataError("the reference bundles no seeds; train and export it again, or give a file of cells")
    names = [label.name for label in reference.config.labels]
    unknown = [name for name in like if name not in names]
    if unknown:
        raise UsageError(f"--like {unknown[0]}=...: no such label; it can be one of: {', '.join(names) or 'none'}")
    seeds, fits = reference.seeds, np.ones(len(reference.seeds), np.bool_)
    for name, category in like.items():
        fits &= seeds.codes[:, names.index(name)] == reference.label(name).code(category)
    found = np.flatnonzero(fits)
    if not len(found):
        asked = ", ".join(f"{name}={category}" for name, category in like.items())
        raise UsageError(f"--like {asked}: none of the reference's {len(seeds):,} seeds is like that; ask for less")
    order = found[np.random.default_rng(seed).permutation(len(found))]
    chosen = np.resize(order, num)
    sizes = tuple(latent.num_categories for latent in reference.config.network.latent.discrete)
    return seeds.points(chosen, sizes), seed_labels(reference, seeds, chosen)


def seed_labels(reference: ReferenceModel, seeds: Seeds, chosen: NDArray[np.int64]) -> pd.DataFrame:
    """Labels and supervised values of these seeds, as obs."""
    table: dict[str, object] = {
        label.name: pd.Categorical.from_codes(seeds.codes[chosen, number], categories=list(label.categories))
        for number, label in enumerate(reference.config.labels)
    }
    table |= {reference.dims[number]: values[chosen] for number, values in enumerate(seeds.values.T)}
    return pd.DataFrame(table, index=[f"seed-{number}" for number in range(len(chosen))])
