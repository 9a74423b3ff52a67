"""Unsupervised dimensions that do not tell a label: cells of several batches mix, and setting the label changes all.

The paper's losses leave the unsupervised dimensions free to tell the platform once more.  Then cells of each platform
lie by themselves in them; and a decoder that can read the platform off them need not look at the platform's own
coordinate, so that setting it changes next to nothing.  The penalty is the squared distance correlation of the
unsupervised means, each in units of its standard deviation, with the label, among cells that are alike in their other
labels:

    R = <A, B> / sqrt(<A, A> <B, B>),   <A, B> = sum over strata of n / (n (n - 3)) sum_ij A_ij B_ij

A and B are the U-centred distances of the means and of the labels: 0 or 1 between classes, |a - b| between values.
It is 0 on average where both are independent, and at most 1, whatever the units.  Pairs are those of a whole minibatch,
of all processes together, so that several learn what one does; of more than 512 cells so many are drawn, the same
whatever process has them.  Of a step's accumulated parts each has its own pairs.
Source: Szekely & Rizzo 2014, "Partial distance correlation with methods for dissimilarities", equations 3.1 to 3.3.
Shapes: n cells, d unsupervised dimensions, l labels, c continuous labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from unicoord_atlas.errors import ConfigError
from unicoord_atlas.model.noise import Noise, Purpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.model.latent import LatentSpec

_FEWEST = 4
"""Cells that a U-centred matrix needs."""
_MOST = 512
"""Cells of a minibatch that are compared: they tell enough, and the n x n tensors of more would be felt."""


@dataclass(frozen=True, slots=True)
class Told:
    """One label that unsupervised dimensions should not tell."""

    column: int
    """Of the batch's codes, or of its values."""
    is_value: bool
    within: tuple[tuple[int, int], ...]
    """Columns of codes and their numbers of classes: cells are compared with those that have the same of all these."""


def labels_to_hide(names: Sequence[str], spec: LatentSpec) -> tuple[Told, ...]:
    """The named labels; each is looked at among cells of the same other classes.

    Raises
    ------
    ConfigError
        If one is not supervised.
    """
    discrete = {latent.name: latent.num_categories for latent in spec.discrete[: spec.num_supervised_discrete]}
    continuous = [latent.name for latent in spec.continuous[: spec.num_supervised_continuous]]
    if any(name not in [*discrete, *continuous] for name in names):
        raise ConfigError(
            f"loss.independent_of = {list(names)}: name the labels that loss.independence is about; "
            f"supervised are: {', '.join([*discrete, *continuous]) or 'none'}"
        )
    within = tuple((at, size) for at, (name, size) in enumerate(discrete.items()) if name not in names)
    return tuple(
        Told(list(discrete).index(name), False, within)
        if name in discrete
        else Told(continuous.index(name), True, within)
        for name in names
    )


def independence(z_nd: Tensor, batch: MiniBatch, told: Sequence[Told], step: int = 0) -> Tensor:
    """Scalar: sum of the squared distance correlations with each of the labels, over cells that have all labels.

    Parameters
    ----------
    step
        Of the run: each draws others of its cells, where they are too many to compare.
    """
    drawn = drawn_cells(of_all_processes(batch.rows_n), step)
    terms, everyones_nd = [], of_all_processes(z_nd)[drawn]
    for label in told:
        labels_n = batch.values_nc[:, label.column] if label.is_value else batch.codes_nl[:, label.column]
        known_n = ~labels_n.isnan() if label.is_value else labels_n >= 0
        known_n = known_n & (batch.weights_n > 0)
        strata_n = torch.zeros_like(batch.rows_n)
        for column, size in label.within:
            codes_n = batch.codes_nl[:, column]
            known_n = known_n & (codes_n >= 0)
            strata_n = strata_n * size + codes_n.clamp(min=0)
        labels_n = of_all_processes(torch.nan_to_num(labels_n))[drawn]
        strata_n = of_all_processes(torch.where(known_n, strata_n, -1))[drawn]
        gap_nn = labels_n[:, None] - labels_n
        apart_nn = (gap_nn.abs() if label.is_value else gap_nn != 0).to(z_nd.dtype)
        places_nd = everyones_nd / spread(everyones_nd, strata_n >= 0)
        terms.append(distance_correlation(places_nd, apart_nn, strata_n))
    return torch.stack(terms).sum()


def drawn_cells(rows_n: Tensor, step: int) -> Tensor | slice:
    """Which cells are compared: all, or 512 by the random bits of the cell and the step."""
    if len(rows_n) <= _MOST:
        return slice(None)
    return Noise(0, step, rows_n).keys(Purpose.PAIRS).topk(_MOST, largest=False).indices


def spread(z_nd: Tensor, counted_n: Tensor) -> Tensor:
    """(d,) standard deviations over the cells that count, without gradient: X_unicoord_bio is in units of these.

    A dimension that hardly varies would otherwise be free to tell the label.
    """
    z_nd, share_n = z_nd.detach(), counted_n.to(z_nd.dtype) / counted_n.sum().clamp(min=1)
    return (share_n @ (z_nd - share_n @ z_nd).square()).sqrt().clamp(min=1e-6)


def of_all_processes(mine: Tensor) -> Tensor:
    """The tensors of all processes one behind the other; the gradient of each comes back to its own."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return mine
    return torch.cat(all_gather(mine.contiguous()))


def distance_correlation(z_nd: Tensor, apart_nn: Tensor, strata_n: Tensor) -> Tensor:
    """Squared distance correlation of places and labels within strata; 0 where no stratum has two different labels.

    Parameters
    ----------
    z_nd
        Places, which the gradient reaches.
    apart_nn
        Distances between the cells' labels.
    strata_n
        Stratum of each cell, < 0 for none; those with fewer than 4 cells, or with one label only, say nothing.
    """
    same_nn = ((strata_n[:, None] == strata_n) & (strata_n >= 0)).to(z_nd.dtype)
    sizes_n = same_nn.sum(dim=1)
    says_n = (sizes_n >= _FEWEST) & ((apart_nn * same_nn).sum(dim=1) > 0)
    share_n = says_n / (sizes_n - 3).clamp(min=1)
    a_nn, b_nn = u_centred(distances(z_nd), same_nn), u_centred(apart_nn, same_nn)
    ab, aa, bb = ((share_n * (x * y).sum(dim=1)).sum() for x, y in ((a_nn, b_nn), (a_nn, a_nn), (b_nn, b_nn)))
    return ab / (aa * bb).clamp(min=1e-12).sqrt()


def u_centred(distance_nn: Tensor, same_nn: Tensor) -> Tensor:
    """(n, n): distances less the means of their rows, columns and stratum, so that products are unbiased.

    0 on the diagonal and, by `same_nn`, between cells of two strata.
    """
    sizes_n, distance_nn = same_nn.sum(dim=1), distance_nn * same_nn
    sums_n = distance_nn.sum(dim=1)
    rows_n = sums_n / (sizes_n - 2).clamp(min=1)
    whole_n = (same_nn @ sums_n) / ((sizes_n - 1) * (sizes_n - 2)).clamp(min=1)
    off_diagonal_nn = 1 - torch.eye(len(sizes_n), dtype=distance_nn.dtype, device=distance_nn.device)
    return (distance_nn - rows_n[:, None] - rows_n + whole_n) * (same_nn * off_diagonal_nn)


def distances(z_nd: Tensor) -> Tensor:
    """(n, n) Euclidean distances, 0.01 at least: the root has no gradient at 0."""
    squares_n = z_nd.square().sum(dim=1)
    return ((squares_n[:, None] + squares_n - 2 * z_nd @ z_nd.t()).clamp(min=0) + 1e-4).sqrt()
