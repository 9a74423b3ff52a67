"""A query's batch as a new class of a technical label: one column of the decoder is learned, all else stays.

The class can be set (cells are decoded as that batch would show them); the encoder never predicts it, for it was never
shown what tells that batch from the others.  Shapes: n cells, g genes, w width of a decoder input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unicoord_atlas.errors import UsageError
from unicoord_atlas.generate import mode_latents
from unicoord_atlas.model.fused_decode import Target, partly_measured
from unicoord_atlas.model.gene_order import GeneOrder, tile_size
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.reference import ReferenceModel

if TYPE_CHECKING:
    from torch import Tensor

    from unicoord_atlas.batch import SparseRows
    from unicoord_atlas.calls import ParentShares
    from unicoord_atlas.model.refinement import Refinement
    from unicoord_atlas.query import QueryBatches
    from unicoord_atlas.schema import LabelColumn

_NEVER = -1e4
"""Logit of the new class."""
_FIRST = "decoder.0.weight"
LEARNING_RATE = 1e-2


def with_class(reference: ReferenceModel, label: str, name: str, num_cells: int) -> ReferenceModel:
    """A copy of a reference whose technical label has one more class, for now the mean of the others.

    Raises
    ------
    UsageError
        If the label is not technical, or has that class.
    """
    config = reference.config
    column = reference.label(label)
    if label not in config.technical:
        technical = ", ".join(each.name for each in config.labels if each.name in config.technical) or "none"
        raise UsageError(f"--label {label}: a batch is a class of a technical label; the reference has: {technical}")
    if name in column.categories:
        raise UsageError(f"--name {name}: {label} has this class already; choose another name")
    number = [each.name for each in config.labels].index(label)
    discrete = list(config.network.latent.discrete)
    discrete[number] = discrete[number].model_copy(update={"num_categories": len(column.categories) + 1})
    ties = tuple(_with_child(tie) if tie.child == number else tie for tie in config.network.latent.refinements)
    latent = config.network.latent.model_copy(update={"discrete": tuple(discrete), "refinements": ties})
    network = config.network.model_copy(update={"latent": latent})
    wider = JointVAE(network)
    wider.load_state_dict(_with_entry(reference.model, number))
    labels = tuple(_with_category(each, name, num_cells) if each.name == label else each for each in config.labels)
    shares = tuple(_with_share(tree, label) for tree in config.parent_shares)
    return ReferenceModel(
        wider.to(reference.device).eval(),
        config.model_copy(update={"network": network, "labels": labels, "parent_shares": shares}),
        reference.schema,
        reference.normalization,
        reference.novelty,
        reference.seeds,
    )


def fit_class(reference: ReferenceModel, label: str, batches: QueryBatches, epochs: int) -> list[float]:
    """Learn the decoder's column of the last class of a label; the mean squared error of each epoch.

    Each cell is decoded from its own coordinates, with the label set to the new class, and compared in the genes that
    its source measured.
    """
    model = reference.model
    number = [each.name for each in reference.config.labels].index(label)
    code = len(reference.config.labels[number].categories) - 1
    column = _column(model, number, code)
    weight = model.get_parameter(_FIRST)
    model.requires_grad_(False)
    weight.requires_grad_(True)
    weight.register_hook(lambda grad: torch.where(torch.arange(grad.shape[1]) == column, grad.cpu(), 0).to(grad))
    optimizer = torch.optim.Adam([weight], lr=LEARNING_RATE)  # without decay: where the gradient is 0 nothing moves
    own = model.own_index_g >= 0 if model.spec.num_atlas_genes else slice(None)
    measured_sg = torch.from_numpy(batches.measured_sg).to(reference.device)[:, own]
    history = []
    for _ in range(epochs):
        total, cells = 0.0, 0
        for batch in batches:
            on_device = batch.to(reference.device)
            rows = model.normalized(on_device)
            latents = mode_latents(model, reference.encoder.encode(on_device, rows), {label: code})
            latent_nw = torch.from_numpy(latents).to(reference.device)
            shares_n = torch.full((len(batch),), 1 / len(batch), device=reference.device)
            target = _target(rows, measured_sg, on_device.sources_n)
            error, _ = model.reconstruction_error(latent_nw, target, shares_n, None)
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            total, cells = total + float(error.detach()) * len(batch), cells + len(batch)
        history.append(total / cells)
    weight.requires_grad_(False)
    return history


def changed_tensors(before: ReferenceModel, after: ReferenceModel, label: str) -> list[str]:
    """Names of weights that differ in any bit, the new class's own left out."""
    number = [each.name for each in before.config.labels].index(label)
    own = {name: tensor.clone() for name, tensor in after.model.state_dict().items()}
    column = _column(after.model, number, len(before.config.labels[number].categories))
    own[_FIRST] = torch.cat([own[_FIRST][:, :column], own[_FIRST][:, column + 1 :]], dim=1)
    for part in ("weight", "bias"):
        own[f"logits.{number}.{part}"] = own[f"logits.{number}.{part}"][:-1]
    return [name for name, tensor in before.model.state_dict().items() if not torch.equal(tensor, own[name])]


def _with_entry(model: JointVAE, number: int) -> dict[str, Tensor]:
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    size = model.spec.latent.discrete[number].num_categories
    end = _column(model, number, size)
    first = state[_FIRST]
    mean = first[:, end - size : end].mean(dim=1, keepdim=True)
    state[_FIRST] = torch.cat([first[:, :end], mean, first[:, end:]], dim=1)
    weight, bias = f"logits.{number}.weight", f"logits.{number}.bias"
    state[weight] = torch.cat([state[weight], torch.zeros_like(state[weight][:1])])
    state[bias] = torch.cat([state[bias], torch.full_like(state[bias][:1], _NEVER)])
    return state


def _with_child(tie: Refinement) -> Refinement:
    """The new class belongs to no parent, so that it is none of any cell's."""
    return tie.model_copy(update={"shares": (*tie.shares, ())})


def _with_share(tree: ParentShares, label: str) -> ParentShares:
    """The new class belongs to no parent, and no child to it."""
    rows = tree.shares
    if tree.child == label:
        rows = (*rows, (0.0,) * len(rows[0]))
    if tree.parent == label:
        rows = tuple((*row, 0.0) for row in rows)
    return tree.model_copy(update={"shares": rows})


def _column(model: JointVAE, number: int, code: int) -> int:
    """Where a class stands in a decoder input."""
    return sum(latent.num_categories for latent in model.spec.latent.discrete[:number]) + code


def _with_category(label: LabelColumn, name: str, num_cells: int) -> LabelColumn:
    return label.model_copy(update={"categories": (*label.categories, name), "counts": (*label.counts, num_cells)})


def _target(rows: SparseRows, measured_sg: Tensor, sources_n: Tensor) -> Target:
    order = GeneOrder.of(rows)
    partly = partly_measured(measured_sg, tile_size(rows.data.device, rows.num_rows))
    return Target(order, rows.data.index_select(0, order.entries_z), sources_n, measured_sg, partly)
