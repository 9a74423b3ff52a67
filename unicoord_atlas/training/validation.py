"""Losses and accuracies over the validation cells, those of all ranks together.  Shapes: n cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from unicoord_atlas.allocator import give_back_freed_memory

from .metrics import RunningMeans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.model.joint_vae import JointVAE, StepOutput

    from .run import Training

_WARMED_UP = 10**9
"""A step at which every loss has its final weight."""


_LOOK_EVERY = 20
"""Batches between looks at whether to stop: the same on all ranks, which have equally many."""


@torch.no_grad()
def validate(run: Training, told: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Mean deterministic losses and accuracies over the validation cells, if there are any; None if told to stop."""
    if run.validation is None:
        return {}
    run.model.eval()
    give_back_freed_memory()  # what is free after an epoch is in pieces that batches of another kind do not fit in
    means = RunningMeans()
    for number, batch in enumerate(run.bar(run.validation, len(run.validation), "validation")):
        if number % _LOOK_EVERY == 0 and told():
            return None
        on_device = batch.to(run.accelerator.device)
        cells = on_device.weights_n.sum()
        # A batch of nothing but a padding cell, as a rank's last may be, has no mean of its own; it counts 0 times.
        counted = on_device if cells > 0 else replace(on_device, weights_n=torch.ones_like(on_device.weights_n))
        output = run.model(counted)
        # Cells come as they are stored, often of one kind: not what losses between the cells of a batch are about.
        terms = run.objective(output, counted, step=_WARMED_UP, between_cells=False).terms
        means.add({"loss": torch.stack(list(terms.values())).sum(), **terms}, cells)
        for name, hits, labelled in accuracy_counts(run.model, output, on_device):
            means.add({f"accuracy_{name}": hits.double() / labelled.clamp(min=1)}, labelled)
    return {f"validation_{name}": value for name, value in means.over_ranks(run.accelerator).items()}


def accuracy_counts(
    model: JointVAE, output: StepOutput, batch: MiniBatch
) -> Iterable[tuple[str, torch.Tensor, torch.Tensor]]:
    """For each supervised discrete dimension: name, cells right, cells labelled."""
    for number, latent in enumerate(model.spec.latent.discrete[: model.spec.latent.num_supervised_discrete]):
        codes_n = batch.codes_nl[:, number]
        labelled_n = (codes_n >= 0) & (batch.weights_n > 0)
        right_n = (output.posterior.logits[number].argmax(dim=1) == codes_n) & labelled_n
        yield latent.name, right_n.sum(), labelled_n.sum()
