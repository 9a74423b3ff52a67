"""Novelty of a finished model: fitted on training cells, scored on validation cells.

Shapes: n cells, b biological coordinates, f genes that the error is taken over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from unicoord_atlas.cell_facts import CellFacts, cell_facts, values_of
from unicoord_atlas.novelty import Novelty, fit_novelty

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.narrower import NarrowerBatches, ShallowerBatches
    from unicoord_atlas.reference import ReferenceModel

    from .preparation import Preparation


MAX_POINTS = 10_000
NUM_GENES = 2_000
NUM_AXES = 20


@dataclass(frozen=True)
class ChosenGenes:
    """See `cell_facts.VariableGenes`."""

    genes_f: NDArray[np.int64]
    variance_f: NDArray[np.float64]
    axes_fp: NDArray[np.float32]


def novelty_of(
    reference: ReferenceModel,
    training: Iterable[MiniBatch],
    reference_cells: Iterable[MiniBatch],
    validation: Iterable[MiniBatch],
    narrower: Mapping[float, NarrowerBatches],
    shallower: Iterable[ShallowerBatches],
) -> Novelty | None:
    """Fit on training cells, and score validation cells as they are, with fewer genes and with fewer molecules.

    Parameters
    ----------
    training
        Cells of all kinds, unlabelled ones too: axes of the labelled alone would know fewer directions.
    reference_cells
        Those that stand for what is known; see `reference_rows`.

    Returns
    -------
    None if all coordinates are technical: nothing is left to be near in.
    """
    genes_f, variance_f = chosen_genes(reference)
    genes = ChosenGenes(genes_f, variance_f, principal_axes(reference, genes_f, training))
    points = _gathered(reference, genes, reference_cells)
    if not points.bio_nb.shape[1]:
        return None
    scored = {1.0: _gathered(reference, genes, validation)}
    for share, batches in narrower.items():
        scored[share] = _gathered(reference, genes, batches, batches.measured_g)
    return fit_novelty(genes, points, scored, [_gathered(reference, genes, batches) for batches in shallower])


def reference_rows(prepared: Preparation, technical: Collection[str]) -> NDArray[np.int64]:
    """Training cells that stand for what the reference knows: labelled ones, rare classes as whole as possible.

    Unlabelled cells may be of any type: near them says nothing.  Without labels all training cells are taken.
    """
    rows = prepared.training_rows
    names = [label.name for label in prepared.labels]
    biological = [number for number, name in enumerate(names) if name not in technical]
    if not biological:
        return rows[:: max(len(rows) // MAX_POINTS, 1)]
    finest = max(biological, key=lambda number: len(prepared.labels[number].categories))
    codes = prepared.columns.codes[rows, finest]
    chosen: list[NDArray[np.int64]] = []
    left = MAX_POINTS
    classes = sorted((rows[codes == code] for code in np.unique(codes[codes >= 0])), key=len)
    for number, members in enumerate(classes):
        share = left // (len(classes) - number)
        taken = members if len(members) <= share else members[np.linspace(0, len(members) - 1, share).astype(np.int64)]
        chosen.append(taken)
        left -= len(taken)
    return np.sort(np.concatenate(chosen))


def chosen_genes(reference: ReferenceModel) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The genes of the model that vary most, of those that all sources measured if these are not too few; variances."""
    own_g = np.flatnonzero(np.isin(reference.schema.genes, reference.own_genes))
    variance_g = reference.normalization.variance_g[own_g]
    everywhere_g = reference.schema.measured_sg()[:, own_g].all(axis=0)
    if everywhere_g.sum() > min(NUM_GENES, len(own_g)) // 2:
        variance_g = np.where(everywhere_g, variance_g, 0.0)
    genes_f = np.sort(np.argsort(-variance_g, kind="stable")[:NUM_GENES])
    return genes_f, np.maximum(variance_g[genes_f], 1e-12)


@torch.no_grad()
def principal_axes(
    reference: ReferenceModel, genes_f: NDArray[np.int64], batches: Iterable[MiniBatch]
) -> NDArray[np.float32]:
    """(f, p) first right singular vectors of the cells' log-normalized values; see `cell_facts.VariableGenes`."""
    gram_ff = torch.zeros((len(genes_f), len(genes_f)), dtype=torch.float64)
    for batch in batches:
        x_nf = values_of(reference.model, genes_f, reference.model.normalized(batch.to(reference.device)))
        gram_ff += (x_nf.T @ x_nf).cpu()
    axes_fp: NDArray[np.float32] = torch.linalg.eigh(gram_ff)[1].flip(1)[:, :NUM_AXES].float().contiguous().numpy()
    return axes_fp


def _gathered(
    reference: ReferenceModel,
    genes: ChosenGenes,
    batches: Iterable[MiniBatch],
    measured_g: NDArray[np.bool_] | None = None,
) -> CellFacts:
    coverage = 1.0 if measured_g is None else reference.normalization.profile_share(measured_g)
    parts = []
    for batch in batches:
        annotation, rows, size_factors_n = reference.annotate_batch(batch, coverage)
        facts = (annotation.encoded, annotation.bio, size_factors_n, measured_g)
        parts.append(cell_facts(reference.model, genes, rows, *facts))
    return CellFacts.joined(parts)
