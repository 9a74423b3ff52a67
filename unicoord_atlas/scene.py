"""What a figure of generated cells shows: some real cells, and what was made of them, in the same genes.

Shapes: n cells, g genes, p points of a sweep, c principal components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import UsageError
from .generate import generate
from .points import encode_points
from .query import QueryBatches

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from .generate import Generation
    from .query import Cells
    from .reference import ReferenceModel


@dataclass(frozen=True, slots=True)
class Scene:
    """Real cells and, for each point of the sweep, the cells made of them."""

    real_ng: NDArray[np.float32]
    """(n, g) log-normalized."""
    made_png: NDArray[np.float32]
    """(p, n, g); one point where nothing is swept."""
    titles: tuple[float | str, ...]
    """(p,) where on the sweep."""
    obs: pd.DataFrame
    genes: tuple[str, ...]

    def columns(self, genes: list[str]) -> list[int]:
        """Where these genes are; UsageError for one that is not there."""
        unknown = [gene for gene in genes if gene not in self.genes]
        if unknown or not genes:
            raise UsageError(f"--genes {','.join(genes)}: the model knows no gene {unknown[0] if unknown else ''!r}")
        return [self.genes.index(gene) for gene in genes]


def make_scene(reference: ReferenceModel, cells: Cells, obs: pd.DataFrame, how: Generation) -> Scene:
    """Encode, change and decode some cells, all in memory; UsageError for more than one sweep."""
    if len(how.changes.sweeps) > 1:
        raise UsageError("a figure shows one sweep; leave the others out")
    batches = QueryBatches(cells, reference.schema, reference.normalization)
    real = np.concatenate([reference.model.normalized(batch).to_dense().numpy() for batch in batches])
    rows: list[NDArray[np.float32]] = []
    titles: list[float | str] = []
    for part in generate(reference, encode_points(reference.model, batches, reference.device), how, obs):
        dense = np.zeros((len(part.rows), real.shape[1]), np.float32)
        dense[np.repeat(np.arange(len(dense)), np.diff(part.block.indptr)), part.block.indices] = part.block.data
        rows.append(dense)
        titles += next(iter(part.titles.values()), [])
    made = np.concatenate(rows).reshape(len(real), -1, real.shape[1]).transpose(1, 0, 2)
    return Scene(real, made, tuple(titles[: len(made)]), obs, reference.own_genes)


def principal_components(real_ng: NDArray[np.float32], num: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(g,) centre and (g, c) directions in which the real cells differ most."""
    centre: NDArray[np.float32] = real_ng.mean(axis=0)
    centred = real_ng - centre
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))  # few cells, many genes
    largest = np.argsort(values)[::-1][:num]
    directions = centred.T @ (vectors[:, largest] / np.sqrt(np.maximum(values[largest], 1e-12))).astype(np.float32)
    return centre, directions


def nearest_cells(made_ng: NDArray[np.float32], real_ng: NDArray[np.float32]) -> NDArray[np.intp]:
    """(n,) the real cell with the largest cosine to each made one."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (made_ng, real_ng)]
    found: NDArray[np.intp] = (unit[0] @ unit[1].T).argmax(axis=1)
    return found
