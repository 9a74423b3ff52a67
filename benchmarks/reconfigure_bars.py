"""What the parts of bench_reconfigure share: bars, dense cells, nearest cells."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.generate import Generation
from unicoord_atlas.jobs.fit import fit
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.query import QueryBatches

if TYPE_CHECKING:
    import anndata

    from unicoord_atlas.reference import ReferenceModel


@dataclass(frozen=True)
class Bar:
    """A figure and what it must reach."""

    name: str
    value: float
    limit: float
    at_least: bool = True

    @property
    def ok(self) -> bool:
        """Whether it is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def line(self) -> str:
        """As every benchmark prints it."""
        sign = ">=" if self.at_least else "<="
        return f"bar {self.name} {self.value:.4f} {sign} {self.limit} {'ok' if self.ok else 'SHORT'}"


def quiet_fit(cells: anndata.AnnData, discrete: list[str], settings: list[str]) -> ReferenceModel:
    """A reference trained on these cells, without its progress on stderr."""
    with contextlib.redirect_stderr(io.StringIO()):
        return fit(cells, discrete=discrete, settings=settings)


def dense(reference: ReferenceModel, cells: anndata.AnnData, how: Generation) -> np.ndarray:
    """(n, g) generated log-normalized cells."""
    return reference.generate(cells, how).X.toarray()


def reconstructed(reference: ReferenceModel, cells: anndata.AnnData, sample: str = "mode") -> np.ndarray:
    """(n, g) the cells as the model has them."""
    return dense(reference, cells, Generation(reconstruct=True, sample=sample, min_value=0))


def real(reference: ReferenceModel, cells: anndata.AnnData) -> np.ndarray:
    """(n, g) log-normalized cells over the model's genes."""
    batches = QueryBatches(AnnDataCells(cells), reference.schema, reference.normalization)
    return np.concatenate([reference.model.normalized(batch).to_dense().numpy() for batch in batches])


def nearest(query: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Row of the cell with the largest cosine to each of the query's."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (query, cells)]
    return (unit[0] @ unit[1].T).argmax(axis=1)


def movable(labels: list[str]) -> list[str]:
    """Settings under which these coordinates, and no unsupervised dimension, tell these labels."""
    return [
        "train.batch_size=64",
        "train.learning_rate=2e-3",  # some thousand cells: the default would still be far from its end
        "latent.decode_labels=true",
        f"loss.independent_of={json.dumps(labels)}",
    ]
