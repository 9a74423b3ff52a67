"""From a preparation to a model and an objective that are ready to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.log_normalize import log_normalize
from unicoord_atlas.losses.objective import Objective
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.neighbors.highly_variable import highly_variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.normalization import Normalization
    from unicoord_atlas.schema import AtlasSchema

    from .preparation import Preparation

    AmountMoments = Callable[[], tuple[NDArray[np.float64], NDArray[np.float64]]]

PROFILE_CELLS = 20_000


def num_epochs(config: RunConfig, num_cells: int) -> int:
    """The epochs asked for; "auto" shows some 200,000 cells in all, at least one epoch and at most 100."""
    if config.train.epochs == "auto":
        return min(max(round(200_000 / num_cells), 1), 100)
    return config.train.epochs


def own_genes(
    config: RunConfig, schema: AtlasSchema, moments: AmountMoments, listed: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """Atlas genes that the model looks at, ascending; None for all of them.

    Parameters
    ----------
    moments
        Gives the mean and variance of the normalized counts of all genes, which only "highly_variable" asks for.
    listed
        The genes of the file that `data.genes` names.
    """
    if config.data.genes == "all":
        return None
    if config.data.genes != "highly_variable":
        return listed
    measured_g = np.asarray(schema.measured_sg().all(axis=0))
    return highly_variable(*moments(), measured_g, config.data.num_highly_variable)


def listed_genes(config: RunConfig, schema: AtlasSchema, where: str) -> NDArray[np.int64] | None:
    """Atlas genes of the file that `data.genes` names, ascending; None if it names none.

    Raises
    ------
    UsageError
        If there is no such file.
    DataError
        If none of its genes is in the atlas, which is called `where`.
    """
    if config.data.genes in ("all", "highly_variable"):
        return None
    path = Path(config.data.genes)
    if not path.exists():
        raise UsageError(
            f"data.genes = {config.data.genes!r}: all, highly_variable, or a file with a gene a line; "
            "there is no such file"
        )
    wanted = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
    found = np.array([i for i, gene in enumerate(schema.genes) if gene in wanted], np.int64)
    if not len(found):
        raise DataError(f"{path}: none of its genes is in {where}; it wants one gene a line, like {schema.genes[0]}")
    return found


@dataclass(frozen=True, slots=True)
class Profile:
    """What a sample of training cells expresses: held-out cells have no say in how a model starts."""

    mean_g: NDArray[np.float32]
    """(g,) mean log-normalized value over the cells whose source measured the gene."""
    detected_g: NDArray[np.int64]
    """(g,) cells of the sample that express the gene."""


def profile_of(batches: Iterable[MiniBatch], measured_sg: NDArray[np.bool_], normalization: Normalization) -> Profile:
    """Profile of the first 20,000 cells, fewer if there are fewer."""
    num_genes = len(normalization.mean_g)
    sums_g, detected_g = np.zeros(num_genes), np.zeros(num_genes, np.int64)
    cells_s = np.zeros(max(len(measured_sg), 1))
    for batch in batches:
        rows = log_normalize(batch.counts, batch.size_factors_n, normalization.target_sum, normalization.log_input)
        sums_g += np.bincount(rows.indices.numpy(), rows.data.numpy(), minlength=num_genes)
        detected_g += np.bincount(rows.indices.numpy(), minlength=num_genes)
        cells_s += np.bincount(batch.sources_n.numpy(), minlength=len(cells_s))
        if cells_s.sum() >= PROFILE_CELLS:
            break
    cells_g = cells_s @ measured_sg if len(measured_sg) else np.full(num_genes, cells_s.sum())
    return Profile((sums_g / np.maximum(cells_g, 1)).astype(np.float32), detected_g)


def build_model(
    config: RunConfig,
    schema: AtlasSchema,
    normalization: Normalization,
    preparation: Preparation,
    genes: NDArray[np.int64] | None,
    profile: Profile,
) -> JointVAE:
    """A model with seeded weights that starts from the profile of the training cells."""
    chosen = genes if genes is not None else np.arange(schema.num_genes)
    measured_sg = schema.measured_sg()[:, chosen]
    masked = config.data.mask_unmeasured and not measured_sg.all()
    path_labels = tuple(
        number
        for number, each in enumerate(preparation.latent.discrete)
        if config.model.label_path and each.supervised and each.name not in config.latent.technical
    )
    spec = NetworkSpec(
        num_genes=len(chosen),
        latent=preparation.latent,
        model=config.model,
        temperature=config.latent.temperature,
        thinning=0.0 if normalization.log_input else config.augment.thinning,
        gene_dropout=config.augment.gene_dropout,
        gene_panels=config.augment.gene_panels,
        decode_labels=config.latent.decode_labels,
        target_sum=normalization.target_sum,
        log_input=normalization.log_input,
        num_sources=len(measured_sg) if masked else 0,
        num_atlas_genes=schema.num_genes if genes is not None else 0,
        centered=config.model.center_input,
        label_path=config.model.label_path if path_labels else (),
        path_labels=path_labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = JointVAE(spec)
    heard_g = profile.detected_g[chosen] >= config.model.encoder_min_cells
    mean_g = torch.from_numpy(profile.mean_g[chosen])
    model.start_from(
        mean_g if config.model.output_bias == "mean" else None,
        torch.from_numpy(measured_sg) if masked else None,
        torch.from_numpy(genes) if genes is not None else None,
        torch.from_numpy(heard_g) if heard_g.any() else None,  # a handful of cells: all genes rather than none
        mean_g,
    )
    return model


def build_objective(config: RunConfig, model: JointVAE, preparation: Preparation, device: torch.device) -> Objective:
    """The run's losses on the device."""
    technical = tuple(name for name in config.latent.discrete if name in config.latent.technical)
    loss = config.loss.model_copy(update={"independent_of": config.loss.independent_of or technical})
    return Objective(loss, model.spec.latent, preparation.facts, preparation.hierarchies, model.spec.num_genes, device)
