"""From trained weights to a ReferenceModel: calibration and the metrics of its model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from unicoord_atlas.calls import ParentShares
from unicoord_atlas.encode import Encoded, encode_batches, softmax
from unicoord_atlas.evaluation import calibration_bins, calibration_error, negative_log_likelihood
from unicoord_atlas.lineage import Tie, agreement, chain_above, hierarchical_f1
from unicoord_atlas.narrower import NarrowerBatches, ShallowerBatches, genes_that_carry
from unicoord_atlas.reference import ReferenceConfig, ReferenceModel

from .calibration import calibrate
from .novelty_fit import novelty_of
from .value_scale import fitted_lines, put_on_scale

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.model.joint_vae import JointVAE
    from unicoord_atlas.normalization import Normalization
    from unicoord_atlas.schema import AtlasSchema, LabelColumn

    from .calibration import Calibration
    from .preparation import Preparation

DECODED_CELLS = 2_000
_LISTED = 10
"""Values whose R2 is told one by one."""
COVERAGES = (0.1, 0.25, 0.5, 0.75)
"""Shares of the mean profile at which certainty and novelty are calibrated, beside the whole."""
DEPTHS = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Shares of a cell's molecules at which novelty is calibrated, beside the whole."""


def finished_model(
    model: JointVAE,
    config: RunConfig,
    prepared: Preparation,
    schema: AtlasSchema,
    normalization: Normalization,
    training: Iterable[MiniBatch],
    validation: Iterable[MiniBatch],
    sampled: Iterable[MiniBatch],
    reference_cells: Iterable[MiniBatch],
) -> ReferenceModel:
    """Calibrate and measure trained weights.

    Parameters
    ----------
    training
        Minibatches of training cells, in any order: the spread of the latents and the axes of novelty are taken from
        them.
    validation
        Minibatches of validation cells, perhaps none: temperatures and metrics are taken from them.
    sampled
        Of validation cells as many as are enough for what is measured several times: how sure and how strange cells
        are of which fewer genes are known.
    reference_cells
        Training cells that stand for what is known: see `novelty_fit.reference_rows`.
    """
    device = model.output_layer.weight.device
    names = tuple(label.name for label in prepared.labels)
    checked = list(encode_batches(model, validation, device))
    if config.latent.calibrate and model.spec.latent.num_supervised_continuous:
        put_on_scale(model, fitted_lines(checked, prepared.columns.values))
        checked = list(encode_batches(model, validation, device))
    trained = list(encode_batches(model, training, device))
    codes = prepared.columns.codes
    known_sg = schema.measured_sg() if model.spec.num_sources else np.ones((1, schema.num_genes), np.bool_)
    narrower = narrower_batches(sampled, normalization, known_sg, config.train.seed) if checked else {}
    encoded_narrower = {share: list(encode_batches(model, part, device)) for share, part in narrower.items()}
    calibration = calibrate(trained, checked, encoded_narrower, codes, names)
    metrics = label_metrics(checked, codes, names, calibration.temperatures)
    ties = tuple(Tie.of(tree.parent, tree.child, tree.parents_kp) for tree in prepared.hierarchies)
    metrics |= hierarchy_metrics(checked, codes, names, ties)
    metrics |= value_metrics(checked, prepared.columns.values, [each.name for each in model.spec.latent.continuous])
    metrics["genes_never_predicted"] = float(never_predicted(model, trained))
    facts = reference_config(model, config, prepared, schema, calibration, metrics)
    reference = ReferenceModel(model.eval(), facts, with_folded(schema, prepared.labels), normalization)
    if checked:
        shallower = shallower_batches(sampled, normalization, config.train.seed)
        reference.novelty = novelty_of(reference, training, reference_cells, sampled, narrower, shallower)
    return reference


def with_folded(schema: AtlasSchema, trained: Sequence[LabelColumn]) -> AtlasSchema:
    """The atlas's schema that also says which of its categories the run folded, with their counts."""
    folded = {label.name: label.folded for label in trained}
    labels = [label.model_copy(update={"folded": folded.get(label.name, {})}) for label in schema.labels]
    return schema.model_copy(update={"labels": tuple(labels)})


def narrower_batches(
    batches: Iterable[MiniBatch], normalization: Normalization, known_sg: NDArray[np.bool_], seed: int
) -> dict[float, NarrowerBatches]:
    """The same cells at each of the coverages, the genes drawn at random."""
    rng = np.random.default_rng(seed)
    return {
        share: NarrowerBatches(batches, genes_that_carry(share, normalization, rng), normalization, known_sg)
        for share in COVERAGES
    }


def shallower_batches(
    batches: Iterable[MiniBatch], normalization: Normalization, seed: int
) -> tuple[ShallowerBatches, ...]:
    """The same cells with fewer and fewer molecules; none of log-normalized input, of which they are not known."""
    shares = () if normalization.log_input else DEPTHS
    return tuple(ShallowerBatches(batches, share, normalization, seed) for share in shares)


def reference_config(
    model: JointVAE,
    config: RunConfig,
    prepared: Preparation,
    schema: AtlasSchema,
    calibration: Calibration,
    metrics: dict[str, float],
) -> ReferenceConfig:
    """What config.json will say."""
    return ReferenceConfig(
        network=model.spec,
        labels=prepared.labels,
        technical=config.latent.technical,
        parent_shares=tuple(
            ParentShares(parent=tree.parent, child=tree.child, shares=tuple(map(tuple, tree.parents_kp.tolist())))
            for tree in prepared.hierarchies
        ),
        tables=prepared.tables,
        calibration=calibration,
        metrics=metrics,
        atlas={
            "training_cells": len(prepared.training_rows),
            "validation_cells": len(prepared.validation_rows),
            "sources": {source.name: source.num_cells for source in schema.sources},
            "settings": config.model_dump(mode="json"),
        },
    )


def label_metrics(
    checked: list[Encoded], codes_nl: NDArray[np.int32], names: tuple[str, ...], temperatures: Mapping[str, float]
) -> dict[str, float]:
    """Accuracy, macro-F1, calibration error and likelihood of each label over the labelled validation cells."""
    metrics: dict[str, float] = {}
    for number, name in enumerate(names if checked else ()):
        codes = np.concatenate([codes_nl[encoded.rows, number] for encoded in checked])
        logits = np.concatenate([encoded.logits[number] for encoded in checked])[codes >= 0]
        probabilities = softmax(np.asarray(logits / temperatures[name], np.float32))
        codes = codes[codes >= 0]
        if len(codes):
            predicted = probabilities.argmax(axis=1)
            metrics[f"{name}_accuracy"] = float((predicted == codes).mean())
            metrics[f"{name}_macro_f1"] = macro_f1(codes, predicted)
            bins = calibration_bins(predicted == codes, probabilities.max(axis=1))
            metrics[f"{name}_ece"] = calibration_error(bins)
            metrics[f"{name}_nll"] = negative_log_likelihood(probabilities, codes)
    return metrics


def hierarchy_metrics(
    checked: list[Encoded], codes_nl: NDArray[np.int32], names: tuple[str, ...], ties: tuple[Tie, ...]
) -> dict[str, float]:
    """Of validation cells: how often raw arg-maxes of tied levels agree, and hierarchical F1 of the finest levels."""
    metrics: dict[str, float] = {}
    if not checked:
        return metrics
    rows = np.concatenate([encoded.rows for encoded in checked])
    predicted = {
        name: np.concatenate([encoded.logits[number].argmax(axis=1) for encoded in checked])
        for number, name in enumerate(names)
    }
    sizes = {name: checked[0].logits[number].shape[1] for number, name in enumerate(names)}
    for tie in ties:
        metrics[f"{tie.child}_agrees_with_{tie.parent}"] = agreement(predicted[tie.child], predicted[tie.parent], tie)
    for name in sorted({tie.child for tie in ties} - {tie.parent for tie in ties}):
        true = codes_nl[rows, names.index(name)]
        if (true >= 0).any():
            chain = chain_above(name, ties)
            metrics[f"{name}_hierarchical_f1"] = hierarchical_f1(
                true[true >= 0], predicted[name][true >= 0], chain, [sizes[tie.parent] for tie in chain]
            )
    return metrics


def value_metrics(checked: list[Encoded], values_nc: NDArray[np.float32], names: Sequence[str]) -> dict[str, float]:
    """R2 of each supervised continuous dimension over the validation cells that have a value, or the mean of many."""
    found: dict[str, float] = {}
    if not checked:
        return found
    values_nc = values_nc[np.concatenate([encoded.rows for encoded in checked])].astype(np.float64)
    said_nd = np.concatenate([encoded.mean for encoded in checked])
    for name, true_n, said_n in zip(names, values_nc.T, said_nd.T, strict=False):
        known_n = ~np.isnan(true_n)
        spread = ((true_n[known_n] - true_n[known_n].mean()) ** 2).sum() if known_n.any() else 0.0
        if spread > 0:
            found[f"{name}_r2"] = float(1 - ((true_n - said_n)[known_n] ** 2).sum() / spread)
    return found if len(found) <= _LISTED else {"mean_r2": float(np.mean(list(found.values())))}


def macro_f1(true_n: NDArray[np.integer], predicted_n: NDArray[np.integer]) -> float:
    """Unweighted mean of the F1 of all classes that occur in either."""
    scores = []
    for code in np.union1d(true_n, predicted_n):
        hits = int(((true_n == code) & (predicted_n == code)).sum())
        scores.append(2 * hits / int((true_n == code).sum() + (predicted_n == code).sum()))
    return float(np.mean(scores))


@torch.no_grad()
def never_predicted(model: JointVAE, encoded: list[Encoded]) -> int:
    """Number of genes decoded as 0 for each of up to 2,000 cells: what the last ReLU has killed."""
    from unicoord_atlas.generate import mode_latents

    alive = torch.zeros(model.spec.num_genes, dtype=torch.bool, device=model.output_layer.weight.device)
    cells = 0
    for part in encoded:
        if cells >= DECODED_CELLS:
            break
        for rows in torch.from_numpy(mode_latents(model, part)).to(alive.device).split(256):
            alive |= (model.decode(rows) > 0).any(dim=0)
        cells += len(part.rows)
    return int((~alive).sum())
