"""The weighted sum of all loss terms.  Source: the paper, Methods, "Loss functions".

Shapes: n cells, l supervised discrete dimensions, c supervised continuous dimensions, k categories, p parents.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .elbo import capacity_weight_step, categorical_kl, clustering, gaussian_kl
from .independence import independence, labels_to_hide
from .supervised import class_weights, classification, hierarchical, regression

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.config import LossConfig
    from unicoord_atlas.hierarchy import Hierarchy
    from unicoord_atlas.model.joint_vae import StepOutput
    from unicoord_atlas.model.latent import LatentSpec


@dataclass(frozen=True, slots=True)
class LossTerms:
    """One step's loss: the total with gradient, and each weighted term for the log."""

    total: Tensor
    terms: Mapping[str, Tensor]


def warmed_up(step: int, steps: int) -> float:
    """Share of a weight at a step, counted from 0, that is warmed up linearly over so many steps."""
    return min((step + 1) / steps, 1.0) if steps else 1.0


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """What the losses must know of the training cells; frozen at the start of a run."""

    class_counts: tuple[Tensor, ...]
    """One (k,) a supervised discrete dimension: labelled training cells of each class."""
    labelled_shares: tuple[float, ...]
    """Share of training cells, as they are drawn, with a label, one a supervised discrete dimension."""
    known_shares_c: Tensor
    """(c,) share of training cells, as they are drawn, with a value, one a supervised continuous dimension."""


class Objective:
    """LossConfig applied to the output of a step.

    Each supervised term is its sum over labelled cells / (cells of the batch x labelled share of the training set), so
    that the terms of ranks and of accumulated batches add up exactly.
    """

    def __init__(
        self,
        config: LossConfig,
        spec: LatentSpec,
        facts: LabelFacts,
        hierarchies: tuple[Hierarchy, ...],
        num_genes: int,
        device: torch.device,
    ) -> None:
        self.config, self.spec, self.num_genes = config, spec, num_genes
        self.labelled_shares = tuple(max(share, 1e-12) for share in facts.labelled_shares)
        self.known_shares_c = facts.known_shares_c.clamp(min=1e-12).to(device)
        self.class_weights = [class_weights(counts, config.class_weights).to(device) for counts in facts.class_counts]
        position = {latent.name: number for number, latent in enumerate(spec.discrete)}
        self.hierarchies = [
            (position[h.child], position[h.parent], torch.from_numpy(h.parents_kp).to(device)) for h in hierarchies
        ]
        self.hidden = labels_to_hide(config.independent_of, spec) if config.independence > 0 else ()
        self.offset_c = torch.tensor([c.offset for c in spec.continuous if c.supervised], device=device)
        self.scale_c = torch.tensor([c.scale for c in spec.continuous if c.supervised], device=device)

    def beta(self, step: int) -> float:
        """Weight of the KL at a step."""
        return self.config.beta * warmed_up(step, self.config.beta_warmup_steps)

    def __call__(self, output: StepOutput, batch: MiniBatch, step: int, between_cells: bool = True) -> LossTerms:
        """Total and terms, each the mean over the cells of the batch (padding weighs nothing).

        Without `between_cells` those are left out that compare a batch's cells, which must be of all kinds for that.
        """
        shares_n = batch.weights_n / batch.weights_n.sum()
        config, posterior = self.config, output.posterior
        kl = self._kl(output, shares_n)
        if config.capacity_nats > 0:
            kl = (capacity_weight_step(step, config.capacity_nats, config.capacity_steps) - kl).abs()
        terms = {"reconstruction": config.reconstruction * output.mean_error, "kl": self.beta(step) * kl}
        if self.spec.num_supervised_continuous:
            terms["regression"] = config.regression * self._regression(output, batch, shares_n)
        if self.spec.num_supervised_discrete:
            supervised = enumerate(posterior.logits[: self.spec.num_supervised_discrete])
            terms["classification"] = config.classification * self._classification(supervised, batch, shares_n)
        if posterior.helpers:
            terms["helpers"] = config.classification * self._classification(posterior.helpers, batch, shares_n)
        if self.hierarchies and config.hierarchical > 0:
            pairs = (
                (posterior.logits[child], posterior.logits[parent], table) for child, parent, table in self.hierarchies
            )
            each = torch.stack([(shares_n * loss_n).sum() for loss_n in starmap(hierarchical, pairs)])
            terms["hierarchical"] = config.hierarchical * each.sum()
        if output.diffusion_error is not None:
            terms["diffusion"] = config.diffusion * output.diffusion_error
        if self.hidden and between_cells:
            unsupervised_nd = posterior.mean_nd[:, self.spec.num_supervised_continuous :]
            unsupervised_nd = unsupervised_nd.to(torch.promote_types(unsupervised_nd.dtype, torch.float32))
            weight = config.independence * warmed_up(step, config.independence_warmup_steps)
            terms["independence"] = weight * independence(unsupervised_nd, batch, self.hidden, step)
        if config.clustering > 0 and between_cells and len(self.spec.discrete) > self.spec.num_supervised_discrete:
            terms["clustering"] = config.clustering * self._clustering(output)
        total = torch.stack(list(terms.values())).sum()
        return LossTerms(
            total / self.num_genes if config.per_gene else total, {k: v.detach() for k, v in terms.items()}
        )

    def _kl(self, output: StepOutput, shares_n: Tensor) -> Tensor:
        posterior = output.posterior
        each = [gaussian_kl(posterior.mean_nd.float(), posterior.logvar_nd.float())]
        each += [categorical_kl(logits_nk.float()) for logits_nk in posterior.logits]
        return (shares_n * torch.stack(each).sum(dim=0)).sum()

    def _regression(self, output: StepOutput, batch: MiniBatch, shares_n: Tensor) -> Tensor:
        label_nc = (batch.values_nc - self.offset_c) / self.scale_c
        error_nc = regression(output.posterior.mean_nd[:, : label_nc.shape[1]], label_nc)
        return (shares_n[:, None] * error_nc / self.known_shares_c).sum()

    def _classification(self, logits_of: Iterable[tuple[int, Tensor]], batch: MiniBatch, shares_n: Tensor) -> Tensor:
        each = [
            (shares_n * classification(logits_nk.float(), batch.codes_nl[:, label], self.class_weights[label])).sum()
            / self.labelled_shares[label]
            for label, logits_nk in logits_of
        ]
        return torch.stack(each).sum()

    def _clustering(self, output: StepOutput) -> Tensor:
        """Over the cells of the minibatch, with the distance between their log-normalized expressions."""
        x_ng = output.rows.to_dense()
        distance_nn = torch.cdist(x_ng, x_ng)
        unsupervised = output.posterior.probabilities()[self.spec.num_supervised_discrete :]
        return torch.stack([clustering(distance_nn, probabilities_nk) for probabilities_nk in unsupervised]).sum()
