"""From a preparation to a model and an objective that are ready to train."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from unicoord_atlas.losses.objective import Objective
from unicoord_atlas.model.joint_vae import JointVAE, NetworkSpec
from unicoord_atlas.normalization import log_normalize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.normalization import Normalization
    from unicoord_atlas.schema import AtlasSchema

    from .preparation import Preparation

PROFILE_CELLS = 20_000


def num_epochs(config: RunConfig, num_cells: int) -> int:
    """The epochs asked for; "auto" shows some 200,000 cells in all, at least one epoch and at most 100."""
    if config.train.epochs == "auto":
        return min(max(round(200_000 / num_cells), 1), 100)
    return config.train.epochs


def own_genes(
    config: RunConfig, schema: AtlasSchema, normalization: Normalization, listed: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """Atlas genes that the model looks at, ascending; None for all of them.

    "highly_variable" takes, among genes measured everywhere, those with the highest variance over mean of the
    log-normalized values within bins of the mean, as scanpy's default flavour does.
    """
    if config.data.genes == "all":
        return None
    if config.data.genes != "highly_variable":
        return listed
    measured = schema.measured_sg().all(axis=0) if schema.sources else np.ones(schema.num_genes, np.bool_)
    scores = dispersion_scores(normalization.mean_g, normalization.variance_g)
    scores[~measured | (normalization.mean_g <= 0)] = -np.inf
    best = np.argsort(-scores, kind="stable")[: config.data.num_highly_variable]
    return np.sort(best[np.isfinite(scores[best])]).astype(np.int64)


def dispersion_scores(
    mean_g: NDArray[np.float64], variance_g: NDArray[np.float64], num_bins: int = 20
) -> NDArray[np.float64]:
    """(g,) dispersion (variance / mean) standardized within bins of the mean.

    Source: Satija et al. 2015, as in scanpy's `highly_variable_genes`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion_g = np.where(mean_g > 0, variance_g / mean_g, np.nan)
    edges = np.linspace(mean_g.min(), mean_g.max(), num_bins + 1)[1:-1]
    bin_g = np.digitize(mean_g, edges)
    scores_g = np.full(len(mean_g), -np.inf)
    for number in np.unique(bin_g):
        inside = (bin_g == number) & np.isfinite(dispersion_g)
        spread = dispersion_g[inside].std(ddof=1) if inside.sum() > 1 else 0.0
        centre = dispersion_g[inside].mean() if spread > 0 else 0.0
        scores_g[inside] = (dispersion_g[inside] - centre) / (
            spread if spread > 0 else np.maximum(dispersion_g[inside], 1e-12)
        )
    return scores_g


def mean_profile(
    batches: Iterable[MiniBatch],
    measured_sg: NDArray[np.bool_],
    normalization: Normalization,
    num_cells: int = PROFILE_CELLS,
) -> NDArray[np.float32]:
    """(g,) mean log-normalized expression of the first `num_cells` training cells, over those that measured each gene.

    Training cells only: the whole atlas's mean would tell of cells that are held out.
    """
    sums_g = np.zeros(len(normalization.mean_g))
    cells_s = np.zeros(max(len(measured_sg), 1))
    for batch in batches:
        rows = log_normalize(batch.counts, batch.size_factors_n, normalization.target_sum, normalization.log_input)
        sums_g += np.bincount(rows.indices.numpy(), rows.data.numpy(), minlength=len(sums_g))
        cells_s += np.bincount(batch.sources_n.numpy(), minlength=len(cells_s))
        if cells_s.sum() >= num_cells:
            break
    cells_g = cells_s @ measured_sg if len(measured_sg) else np.full(len(sums_g), cells_s.sum())
    result: NDArray[np.float32] = (sums_g / np.maximum(cells_g, 1)).astype(np.float32)
    return result


def build_model(
    config: RunConfig,
    schema: AtlasSchema,
    normalization: Normalization,
    preparation: Preparation,
    genes: NDArray[np.int64] | None,
    profile_g: NDArray[np.float32] | None,
) -> JointVAE:
    """A model with seeded weights; `profile_g` (over atlas genes) starts the output bias, if given."""
    chosen = genes if genes is not None else np.arange(schema.num_genes)
    measured_sg = schema.measured_sg()[:, chosen]
    masked = config.data.mask_unmeasured and not measured_sg.all()
    spec = NetworkSpec(
        num_genes=len(chosen),
        latent=preparation.latent,
        model=config.model,
        temperature=config.latent.temperature,
        thinning=0.0 if normalization.log_input else config.augment.thinning,
        gene_dropout=config.augment.gene_dropout,
        gene_panels=config.augment.gene_panels,
        target_sum=normalization.target_sum,
        log_input=normalization.log_input,
        num_sources=len(measured_sg) if masked else 0,
        num_atlas_genes=schema.num_genes if genes is not None else 0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = JointVAE(spec)
    model.start_from(
        torch.from_numpy(profile_g[chosen]) if profile_g is not None else None,
        torch.from_numpy(measured_sg) if masked else None,
        torch.from_numpy(genes) if genes is not None else None,
    )
    return model


def build_objective(config: RunConfig, model: JointVAE, preparation: Preparation, device: torch.device) -> Objective:
    """The run's losses on the device."""
    return Objective(
        config.loss, model.spec.latent, preparation.facts, preparation.hierarchies, model.spec.num_genes, device
    )
