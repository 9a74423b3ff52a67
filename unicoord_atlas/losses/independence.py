"""Unsupervised dimensions that do not tell a label: then setting the label changes all that depends on it.

A decoder that can read the platform off the unsupervised dimensions need not look at the platform's own coordinate,
and setting that coordinate changes next to nothing.  The penalty is the squared distance correlation of the
unsupervised means with the label, among cells that are alike in their other labels:

    R = <A, B> / sqrt(<A, A> <B, B>),   <A, B> = sum over strata of n / (n (n - 3)) sum_ij A_ij B_ij

A and B are the U-centred distances of the means and of the labels: 0 or 1 between classes, |a - b| between values.
It is 0 on average where both are independent, and at most 1, whatever the units.
Source: Szekely & Rizzo 2014, "Partial distance correlation with methods for dissimilarities", equations 3.1 to 3.3.
Shapes: n cells, d unsupervised dimensions, l labels, c continuous labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unicoord_atlas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.model.latent import LatentSpec

_FEWEST = 4
"""Cells that a U-centred matrix needs."""


@dataclass(frozen=True, slots=True)
class Told:
    """One label that unsupervised dimensions should not tell."""

    column: int
    """Of the batch's codes, or of its values."""
    is_value: bool
    within: tuple[int, ...]
    """Columns of codes: cells are compared with those that have the same of all these."""


def labels_to_hide(names: Sequence[str], spec: LatentSpec) -> tuple[Told, ...]:
    """The named labels; each is looked at among cells of the same other classes.

    Raises
    ------
    ConfigError
        If none is named, or one is not supervised.
    """
    discrete = [latent.name for latent in spec.discrete[: spec.num_supervised_discrete]]
    continuous = [latent.name for latent in spec.continuous[: spec.num_supervised_continuous]]
    unknown = [name for name in names if name not in [*discrete, *continuous]]
    if unknown or not names:
        raise ConfigError(
            f"loss.independent_of = {list(names)}: name the labels that loss.independence is about; "
            f"supervised are: {', '.join([*discrete, *continuous]) or 'none'}"
        )
    within = tuple(number for number, name in enumerate(discrete) if name not in names)
    return tuple(
        Told(discrete.index(name), False, within) if name in discrete else Told(continuous.index(name), True, within)
        for name in names
    )


def independence(z_nd: Tensor, batch: MiniBatch, told: Sequence[Told]) -> Tensor:
    """Scalar: sum of the squared distance correlations with each of the labels, over cells that have all labels."""
    terms = []
    for label in told:
        labels_n = batch.values_nc[:, label.column] if label.is_value else batch.codes_nl[:, label.column]
        known_n = ~labels_n.isnan() if label.is_value else labels_n >= 0
        known_n = known_n & (batch.weights_n > 0)
        strata_n = torch.zeros_like(batch.rows_n)
        for column in label.within:
            codes_n = batch.codes_nl[:, column]
            known_n = known_n & (codes_n >= 0)
            strata_n = torch.unique(strata_n * (codes_n.max() + 2) + codes_n + 1, return_inverse=True)[1]
        cells = known_n.nonzero().squeeze(1)
        gap_nn = labels_n[cells, None] - labels_n[cells]
        apart_nn = gap_nn.abs() if label.is_value else (gap_nn != 0).to(z_nd.dtype)
        terms.append(distance_correlation(z_nd[cells], apart_nn, strata_n[cells]))
    return torch.stack(terms).sum()


def distance_correlation(z_nd: Tensor, apart_nn: Tensor, strata_n: Tensor) -> Tensor:
    """Squared distance correlation of places and labels within strata; 0 where no stratum has two different labels.

    Parameters
    ----------
    z_nd
        Places, which the gradient reaches.
    apart_nn
        Distances between the cells' labels.
    strata_n
        Stratum of each cell; those with fewer than 4 cells, or with one label only, say nothing.
    """
    products = z_nd.new_zeros(3)
    for stratum in torch.unique(strata_n).tolist():
        cells = (strata_n == stratum).nonzero().squeeze(1)
        labels_nn = apart_nn[cells[:, None], cells]
        if len(cells) < _FEWEST or not labels_nn.any():
            continue
        a_nn, b_nn = u_centred(distances(z_nd[cells])), u_centred(labels_nn)
        each = torch.stack([(a_nn * b_nn).sum(), (a_nn * a_nn).sum(), (b_nn * b_nn).sum()])
        products = products + each / (len(cells) - 3)
    return products[0] / (products[1] * products[2]).clamp(min=1e-12).sqrt()


def u_centred(distance_nn: Tensor) -> Tensor:
    """(n, n): distances less their row and column means, so that products are unbiased; the diagonal is 0."""
    n = distance_nn.shape[0]
    rows_n = distance_nn.sum(dim=1)
    centred_nn = distance_nn - (rows_n[:, None] + rows_n) / (n - 2) + distance_nn.sum() / ((n - 1) * (n - 2))
    return centred_nn * (1 - torch.eye(n, dtype=distance_nn.dtype, device=distance_nn.device))


def distances(z_nd: Tensor) -> Tensor:
    """(n, n) Euclidean distances, 0.01 at least: the root has no gradient at 0."""
    squares_n = z_nd.square().sum(dim=1)
    return ((squares_n[:, None] + squares_n - 2 * z_nd @ z_nd.t()).clamp(min=0) + 1e-4).sqrt()
