"""Novelty of a finished model: fitted on training cells, scored on validation cells.

Shapes: n cells, b biological coordinates, f genes that the error is taken over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.novelty import NUM_GENES, Novelty, cell_errors, fit_novelty

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.narrower import NarrowerBatches
    from unicoord_atlas.reference import ReferenceModel


@dataclass(frozen=True)
class ChosenGenes:
    """The genes whose errors are summed; see `novelty.ErrorGenes`."""

    genes_f: NDArray[np.int64]
    variance_f: NDArray[np.float64]


def novelty_of(
    reference: ReferenceModel,
    training: Iterable[MiniBatch],
    validation: Iterable[MiniBatch],
    narrower: Mapping[float, NarrowerBatches],
) -> Novelty | None:
    """Fit on training cells; score validation cells as they are and with fewer genes.

    None if all coordinates are technical: nothing is left to be near in.
    """
    genes = chosen_genes(reference)
    points = _gathered(reference, genes, training)
    if not points[0].shape[1]:
        return None
    scored = {1.0: _gathered(reference, genes, validation)}
    for share, batches in narrower.items():
        scored[share] = _gathered(reference, genes, batches, batches.measured_g)
    return fit_novelty(genes.genes_f, genes.variance_f, *points, scored)


def chosen_genes(reference: ReferenceModel) -> ChosenGenes:
    """The genes of the model that vary most, of those that all sources measured if these are not too few."""
    own_g = np.flatnonzero(np.isin(reference.schema.genes, reference.own_genes))
    variance_g = reference.normalization.variance_g[own_g]
    everywhere_g = reference.schema.measured_sg()[:, own_g].all(axis=0)
    if everywhere_g.sum() > min(NUM_GENES, len(own_g)) // 2:
        variance_g = np.where(everywhere_g, variance_g, 0.0)
    genes_f = np.sort(np.argsort(-variance_g, kind="stable")[:NUM_GENES])
    return ChosenGenes(genes_f, np.maximum(variance_g[genes_f], 1e-12))


def _gathered(
    reference: ReferenceModel,
    genes: ChosenGenes,
    batches: Iterable[MiniBatch],
    measured_g: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """(n, b) biological coordinates, (n,) errors and (n, 4) depth terms of all cells."""
    coverage = 1.0 if measured_g is None else reference.normalization.profile_share(measured_g)
    bio, errors, terms = [], [], []
    for batch in batches:
        annotation, rows, size_factors_n = reference.annotate_batch(batch, coverage)
        found = cell_errors(reference.model, genes, rows, annotation.encoded, size_factors_n, measured_g)
        bio.append(annotation.bio)
        errors.append(found[0])
        terms.append(found[1])
    return np.concatenate(bio), np.concatenate(errors), np.concatenate(terms)
