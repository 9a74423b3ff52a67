"""What a figure of generated cells shows: some real cells, and what was made of them, in the same genes.

Of each cell only that is kept which the figure needs: a sweep has too many cells to keep all of their genes.
Shapes: n cells, g genes of the model, p points of a sweep, c principal components, m numbers kept of a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .errors import UsageError
from .gene_names import without_version
from .generate import generate
from .points import encode_points
from .query import QueryBatches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from .generate import Generation
    from .query import Cells
    from .reference import ReferenceModel

    View = Callable[[sp.csr_matrix], NDArray[np.float32]]
    """(n, g) log-normalized cells to (n, m) what is kept of them."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Real cells and, for each point of the sweep, the cells made of them, as a view sees them."""

    real_nm: NDArray[np.float32]
    """(n, m)"""
    made_pnm: NDArray[np.float32]
    """(p, n, m); one point where nothing is swept."""
    titles: tuple[float | str, ...]
    """(p,) where on the sweep."""
    obs: pd.DataFrame


def make_scene(
    reference: ReferenceModel,
    cells: Cells,
    obs: pd.DataFrame,
    how: Generation,
    view_of: Callable[[sp.csr_matrix], View],
) -> Scene:
    """Encode, change and decode some cells; memory is that of the real ones and of what is kept.

    Parameters
    ----------
    view_of
        From the (n, g) real cells to what is kept of any: `every_gene`, `these_genes` or `plane`.

    Raises
    ------
    UsageError
        For more than one sweep, and as `generate.generate`.
    """
    if len(how.changes.sweeps) > 1:
        raise UsageError("a figure shows one sweep; leave the others out")
    batches = QueryBatches(cells, reference.schema, reference.normalization)
    parts = generate(reference, encode_points(reference.model, batches, reference.device), how, obs)
    real = sp.vstack([reference.model.normalized(batch).to_scipy() for batch in batches], format="csr")
    view = view_of(real)
    made: list[NDArray[np.float32]] = []
    titles: list[float | str] = []
    for part in parts:
        block, shape = part.block, (len(part.rows), real.shape[1])
        made.append(view(sp.csr_matrix((block.data, block.indices, block.indptr), shape=shape)))
        titles += next(iter(part.titles.values()), [])
    made_npm = np.concatenate(made).reshape(real.shape[0], -1, made[0].shape[1])
    return Scene(view(real), made_npm.transpose(1, 0, 2), tuple(titles[: made_npm.shape[1]]), obs)


def every_gene(real: sp.csr_matrix) -> View:
    """Keeps all genes, whatever the real cells are: m = g."""
    return lambda rows: rows.toarray()


def these_genes(columns: Sequence[int]) -> Callable[[sp.csr_matrix], View]:
    """Keeps the genes in these columns, in this order; see `gene_columns`."""
    return lambda real: lambda rows: rows[:, columns].toarray()


def plane(real: sp.csr_matrix) -> View:
    """Keeps places on the two principal components of the real cells: m = 2."""
    centre, directions = principal_components(real.toarray(), 2)
    precise = directions.astype(np.float64)  # the centre is taken off sums that may be far larger than what is left
    origin = centre @ precise
    return lambda rows: (rows @ precise - origin).astype(np.float32)


def gene_columns(reference: ReferenceModel, genes: Sequence[str]) -> list[int]:
    """Which of the model's genes these are, by their names or aliases; UsageError for one that it lacks."""
    schema = reference.schema
    index = {**schema.aliases, **{gene: number for number, gene in enumerate(schema.genes)}}
    column = {position: number for number, position in enumerate(reference.own_positions.tolist())}
    found = {gene: column.get(index.get(without_version(gene), -1)) for gene in genes}
    unknown = [gene for gene, at in found.items() if at is None]
    if unknown or not genes:
        raise UsageError(f"--genes {','.join(genes)}: the model knows no gene {unknown[0] if unknown else ''!r}")
    return [at for gene in genes if (at := found[gene]) is not None]


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
