"""Answers of the page for in-silico reconfiguration.  Shapes: n made cells, g genes, r cells of the map."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.errors import UsageError
from unicoord_atlas.neighbors.query_knn import query_nearest, search_all
from unicoord_atlas.points import Points, one_hot
from unicoord_atlas.reconfigure import reconfigured, seed_points
from unicoord_atlas.seeds import choose_seeds, seed_labels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from unicoord_atlas.neighbors.knn import Search
    from unicoord_atlas.reconfigure import Made
    from unicoord_atlas.reference import ReferenceModel

    from .browse_cells import BrowsedCells

_OF_A_TYPE = 20
"""So many seeds stand for a type."""
_GENES = 20
_NEAREST = 15


class _Asked(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    like: dict[str, str] = {}
    """Labels of the cells to start from."""
    seed: int | None = None
    """Or the number of one seed."""
    cell: int | None = None
    """Or the row of a cell of the map, if that shows cells of a file."""
    labels: dict[str, str] = {}
    values: dict[str, float] = {}


@dataclass(frozen=True)
class Reconfiguration:
    """A reference, and the map that its cells are shown on."""

    reference: ReferenceModel
    bio_rb: NDArray[np.float32]
    places_r2: NDArray[np.float32]
    cells: BrowsedCells
    """Those of the map."""
    search: Callable[[int], Search] | None = None
    """By an index that the reference has; by comparing with all cells if None."""

    one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """A question decodes and encodes with all cores."""

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What can be chosen, and between which values a slider goes."""
        reference, seeds = self.reference, self.reference.seeds
        if seeds is None or not len(seeds):
            raise UsageError("the reference bundles no seeds; train and export it again")
        low, high = np.quantile(seeds.mean, [0.001, 0.999], axis=0)
        continuous = [
            {"name": each.name, "supervised": each.supervised, "low": float(low[at]), "high": float(high[at])}
            for at, each in enumerate(reference.config.network.latent.continuous)
        ]
        labels = [{"name": each.name, "categories": each.categories} for each in reference.config.labels]
        return {
            "labels": labels,
            "continuous": continuous,
            "seeds": len(seeds),
            "picks_cells": self._picks_cells,
        }

    def answer(self, body: object) -> dict[str, Any]:
        """Genes that change most, where the cells are before and after, and what the encoder says they are.

        Raises
        ------
        UsageError
            For anything that is not there to be chosen; it lists what is.
        """
        try:
            asked = _Asked.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None
        reference = self.reference
        if asked.seed is not None:
            chosen = np.array([asked.seed], np.int64)
            points = seed_points(reference, chosen)
            assert reference.seeds is not None
            obs = seed_labels(reference, reference.seeds, chosen)
        elif asked.cell is not None:
            points, obs = self._of_cell(asked.cell)
        else:
            points, obs = choose_seeds(reference, asked.like, _OF_A_TYPE, 0)
        as_is = Changes(labels=asked.like)
        changes = Changes(labels={**asked.like, **asked.labels}, values=asked.values)
        with self.one_at_a_time:
            before = reconfigured(reference, points, obs, as_is)
            after = reconfigured(reference, points, obs, changes)
        return {"cells": len(points), "genes": self._genes(before, after)} | {
            name: self._place(made) for name, made in (("before", before), ("after", after))
        }

    @property
    def _picks_cells(self) -> bool:
        """Whether the cells of the map have a value of every dimension of this reference."""
        reference, cells = self.reference, self.cells
        labels = [label.name for label in reference.config.labels]
        supervised = labels == [latent.name for latent in reference.config.network.latent.discrete]
        return cells.means is not None and supervised and all(f"{name}_predicted" in cells.obs for name in labels)

    def _of_cell(self, row: int) -> tuple[Points, pd.DataFrame]:
        """A cell of the map where its coordinates say, and what was predicted for it as its labels."""
        cells, reference = self.cells, self.reference
        if cells.means is None or not self._picks_cells:
            raise UsageError(f"cell {row}: the map does not show all coordinates of its cells; choose a seed or a type")
        if not 0 <= row < len(cells.obs):
            raise UsageError(f"cell {row}: must be in 0..{len(cells.obs) - 1}")
        mean_1d = cells.means(row)[None]
        if mean_1d.shape[1] != len(reference.dims):
            raise UsageError(f"cell {row}: has {mean_1d.shape[1]} coordinates, the reference {len(reference.dims)}")
        labels = reference.config.labels
        predicted = {label.name: str(cells.obs[f"{label.name}_predicted"].iloc[row]) for label in labels}
        discrete = tuple(
            one_hot(np.array([label.code(predicted[label.name])]), len(label.categories)) for label in labels
        )
        points = Points(np.zeros(1, np.int64), discrete, mean_1d, np.zeros_like(mean_1d), np.ones(1, np.float32))
        return points, pd.DataFrame(predicted, index=[str(cells.obs.index[row])])

    def _genes(self, before: Made, after: Made) -> list[dict[str, Any]]:
        change = after.values_g - before.values_g
        order = np.argsort(-np.abs(change), kind="stable")[:_GENES]
        names = self.reference.own_genes
        return [
            {
                "gene": names[gene],
                "before": float(before.values_g[gene]),
                "after": float(after.values_g[gene]),
                "change": float(change[gene]),
            }
            for gene in order[np.argsort(-change[order], kind="stable")]
            if change[gene]
        ]

    def _place(self, made: Made) -> dict[str, Any]:
        centre = made.bio_nb.mean(axis=0, keepdims=True)
        search = self.search(1) if self.search else search_all(self.bio_rb, 1)
        rows = query_nearest(self.bio_rb, centre, search, _NEAREST)[0][0]
        place = np.median(self.places_r2[rows], axis=0)
        return {"place": place.tolist(), "nearest": rows.tolist(), "shares": made.shares}
