"""Discrete coordinates of a reference: its labels, and unsupervised dimensions, whose classes are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .schema import LabelColumn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .reference import ReferenceConfig


def unsupervised_discrete(config: ReferenceConfig) -> Mapping[int, LabelColumn]:
    """Discrete dimensions without labels, by their number among all discrete ones; classes are called 0, 1, ..."""
    return {
        number: LabelColumn(
            name=latent.name,
            categories=tuple(str(code) for code in range(latent.num_categories)),
            counts=(0,) * latent.num_categories,
        )
        for number, latent in enumerate(config.network.latent.discrete)
        if not latent.supervised
    }


def discrete_coordinates(config: ReferenceConfig) -> tuple[LabelColumn, ...]:
    """All discrete dimensions, in the order of the network: those of labels first."""
    return (*config.labels, *unsupervised_discrete(config).values())
