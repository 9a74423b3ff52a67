"""The cells of one organ of an invented atlas: obs, and counts in blocks.

Shapes: n cells, g genes, t types of the atlas, k types and d donors of the organ, p programmes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .blueprint import (
    CLASSES,
    LEAK,
    NUM_COMMON_CLASSES,
    NUM_DATASETS,
    NUM_STATES,
    NUM_STEPS,
    ORGANS,
    PLATFORMS,
    Blueprint,
    datasets_of,
    state_of,
)
from .count_model import CellStates, CountModels, count_models, depth_of_genes, draw_counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_BLOCK_CELLS = 1024
_FEW_CELLS = 64
"""Enough to know means over cells of a kind."""
_DONORS_PER_DATASET = 4
_LINEAGES_PER_ORGAN = 7
_RARELY = 0.15
_UNLABELLED_CELLS = 0.04
_FIRMNESS, _FIRMNESS_SPREAD = (5.0, -0.4), (0.2, 1.7)
"""Logit of how much of a cell's identity is its own type's, not its sibling's; of sharp types and of their siblings.
The second mean sets how hard types are to tell apart, the difference of the spreads how much worse centroids do."""
_COMPOSITION_SPREAD, _DONOR_SPREAD, _SEEN_AT_MOST = 0.4, 0.15, 0.2
_DEPTH_SPREAD, _FEWEST, _MOST = 0.5, 0.05, 0.4
_STEP_WIDTH = 0.2


@dataclass(frozen=True, slots=True)
class Cells:
    """What is drawn of each cell before its counts."""

    types_n: NDArray[np.intp]
    datasets_n: NDArray[np.intp]
    donors_n: NDArray[np.intp]
    """Numbered through the organ."""
    own_n: NDArray[np.float64]
    """0..1: share of the cell's identity that is its own type's; the rest is the sibling's."""
    gradients_n2: NDArray[np.float64]
    genes_n: NDArray[np.float64]
    """Genes to detect, on average over cells like this."""


class Organ:
    """An organ of the atlas; its content is a function of blueprint, seed and the arguments given here."""

    def __init__(
        self, blueprint: Blueprint, seed: int, organ: int, num_organs: int, num_cells: int, median_genes: float
    ):
        self.num_cells, self.name = num_cells, ORGANS[organ].replace(" ", "_")
        self._blueprint, self._organ, self._key = blueprint, organ, (seed, organ + 1)
        rng = np.random.default_rng([*self._key, 0])
        self._types_k = _types_of(blueprint, organ, num_organs, rng)
        self._cells = _draw_cells(blueprint, organ, self._types_k, num_cells, median_genes, rng)

    def obs(self) -> pd.DataFrame:
        """Obs as an atlas has it: some cells, and all cells of some datasets, lack their labels."""
        blueprint, cells = self._blueprint, self._cells
        num_cells = len(cells.types_n)
        unlabelled = blueprint.unlabelled_datasets[cells.datasets_n]
        hidden = unlabelled | (np.random.default_rng([*self._key, 1]).random(num_cells) < _UNLABELLED_CELLS)
        datasets = [f"D{number + 1:03d}" for number in range(NUM_DATASETS)]
        donors = [f"{datasets[d]}-{i + 1}" for d in datasets_of(self._organ) for i in range(_DONORS_PER_DATASET)]
        platforms_n = blueprint.platforms[cells.datasets_n]
        columns = {
            "cell_type": _categorical(np.where(hidden, -1, cells.types_n), blueprint.types),
            "cell_class": _categorical(np.where(unlabelled, -1, blueprint.classes_t[cells.types_n]), CLASSES),
            "organ": _categorical(np.full(num_cells, self._organ), ORGANS),
            "dataset": _categorical(cells.datasets_n, datasets),
            "donor": _categorical(cells.donors_n, donors),
            "seq_tech": _categorical(platforms_n, [platform.name for platform in PLATFORMS]),
            "gradient_1": cells.gradients_n2[:, 0].astype(np.float32),
            "gradient_2": cells.gradients_n2[:, 1].astype(np.float32),
            "true_cell_type": _categorical(cells.types_n, blueprint.types),
        }
        return pd.DataFrame(columns, index=[f"{self.name}-{number}" for number in range(num_cells)])

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]]:
        """Counts of all cells as parts of a CSR matrix, bounded in memory; see `draw_counts`."""
        cells = self._cells
        kinds, kinds_n = np.unique(
            cells.types_n * len(PLATFORMS) + self._blueprint.platforms[cells.datasets_n], return_inverse=True
        )
        models, depth_n = self._count_models(kinds, kinds_n)
        key = int(np.random.SeedSequence([*self._key, 3]).generate_state(1, np.uint64)[0])
        for start in range(0, len(kinds_n), _BLOCK_CELLS):
            some = slice(start, start + _BLOCK_CELLS)
            rng = np.random.default_rng([*self._key, 4, start])
            states = CellStates(kinds_n[some], cells.donors_n[some], depth_n[some], self._activity(some, rng))
            yield from draw_counts(models, states, key, start)

    def _count_models(
        self, kinds: NDArray[np.intp], kinds_n: NDArray[np.intp]
    ) -> tuple[CountModels, NDArray[np.float32]]:
        """What cells of each type and platform are drawn from, and the depth of each cell."""
        blueprint, cells, rng = self._blueprint, self._cells, np.random.default_rng([*self._key, 2])
        platform_d = np.repeat(blueprint.platforms[datasets_of(self._organ)], _DONORS_PER_DATASET)
        efficiency_dg = rng.standard_normal((len(platform_d), len(blueprint.programme_g)), np.float32)
        efficiency_dg *= np.float32(_DONOR_SPREAD)
        efficiency_dg += blueprint.log_efficiency_fg[platform_d] - np.float32(_SEEN_AT_MOST)
        np.exp(np.minimum(efficiency_dg, 0, out=efficiency_dg), out=efficiency_dg)
        depth_n = np.zeros(len(kinds_n), np.float32)
        for number, kind in enumerate(kinds.tolist()):
            alike = np.flatnonzero(kinds_n == number)
            some = alike[:_FEW_CELLS]
            seen_g = blueprint.mean_tg[kind // len(PLATFORMS)]
            seen_g = seen_g * self._activity(some, rng).mean(axis=0).take(blueprint.programme_g)
            share_d = np.bincount(cells.donors_n[some], minlength=len(platform_d)) / len(some)
            seen_g *= np.einsum("d,dg->g", share_d.astype(np.float32), efficiency_dg)  # too little for BLAS's threads
            depth_n[alike] = depth_of_genes(seen_g, cells.genes_n[alike])
        models = count_models(
            [blueprint.mean_tg[kind // len(PLATFORMS)] for kind in kinds.tolist()],
            [float(np.median(depth_n[kinds_n == number])) for number in range(len(kinds))],
            [PLATFORMS[kind % len(PLATFORMS)].reads for kind in kinds.tolist()],
            efficiency_dg,
            blueprint.programme_g,
            rng,
        )
        return models, depth_n

    def _activity(self, some: slice | NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float32]:
        """(n, p + 1) share of each programme that a cell has; the last is for genes of no programme."""
        blueprint, cells = self._blueprint, self._cells
        types_n, own_n, gradients_n2 = cells.types_n[some], cells.own_n[some], cells.gradients_n2[some]
        num_cells, num_types = len(types_n), blueprint.num_types
        level_np = np.ones((num_cells, blueprint.num_programmes))
        rows = np.arange(num_cells)
        for kinds_n, share_n in ((types_n, own_n), (types_n ^ 1, 1 - own_n)):
            level_np[rows, kinds_n] = level_np[rows, num_types + state_of(kinds_n)] = share_n
        shared = level_np[:, num_types + NUM_STATES :]
        shared[:] = rng.random(shared.shape) ** 2
        steps = np.arange(NUM_STEPS) / (NUM_STEPS - 1)
        for gradient, first in ((0, 0), (1, NUM_STEPS)):
            distance = (gradients_n2[:, gradient, None] - steps) / _STEP_WIDTH
            shared[:, first : first + NUM_STEPS] = np.exp(-(distance**2) / 2)
        usage_tp = blueprint.usage_tp
        shared *= own_n[:, None] * usage_tp[types_n] + (1 - own_n[:, None]) * usage_tp[types_n ^ 1]
        activity_np = np.ones((num_cells, blueprint.num_programmes + 1), np.float32)
        activity_np[:, :-1] = LEAK + (1 - LEAK) * level_np
        return activity_np


def _types_of(blueprint: Blueprint, organ: int, num_organs: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Types of an organ: whole lineages, those at home there and others, mostly of the classes that are everywhere."""
    lineages = np.arange(blueprint.num_types // 2)
    home = lineages[lineages % num_organs == organ]
    weight = np.where(blueprint.classes_t[::2] < NUM_COMMON_CLASSES, 1.0, _RARELY)
    weight[home] = 0
    num_others = min(_LINEAGES_PER_ORGAN, len(lineages)) - len(home)
    if num_others > 0:
        home = np.append(home, rng.choice(lineages, num_others, replace=False, p=weight / weight.sum()))
    chosen = np.sort(home)
    return np.stack([2 * chosen, 2 * chosen + 1], axis=1).ravel()


def _draw_cells(
    blueprint: Blueprint,
    organ: int,
    types_k: NDArray[np.intp],
    num_cells: int,
    median_genes: float,
    rng: np.random.Generator,
) -> Cells:
    """Cells dataset after dataset and donor after donor, types mixed."""
    datasets = datasets_of(organ)
    num_donors = len(datasets) * _DONORS_PER_DATASET
    donors_n = np.repeat(np.arange(num_donors), rng.multinomial(num_cells, rng.dirichlet(np.full(num_donors, 5.0))))
    datasets_n = datasets.start + donors_n // _DONORS_PER_DATASET
    share_dk = np.exp(rng.normal(0, _COMPOSITION_SPREAD, len(types_k)) + np.log(blueprint.abundance_t[types_k]))
    share_dk = share_dk * np.exp(rng.normal(0, _COMPOSITION_SPREAD, (num_donors, len(types_k))))
    edges_dk = np.cumsum(share_dk / share_dk.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    types_n = types_k[(rng.random(num_cells)[:, None] > edges_dk[donors_n]).sum(axis=1)]

    own_n = 1 / (1 + np.exp(-rng.normal(np.array(_FIRMNESS)[types_n % 2], np.array(_FIRMNESS_SPREAD)[types_n % 2])))
    gradients_n2 = rng.random((num_cells, 2))
    start_d = rng.uniform(0, 0.4, num_donors)  # a donor shows a part of the second gradient, as of a development
    gradients_n2[:, 1] = start_d[donors_n] + 0.6 * gradients_n2[:, 1]

    genes_n = median_genes * np.array([platform.genes for platform in PLATFORMS])[blueprint.platforms[datasets_n]]
    genes_n *= np.exp(rng.normal(0, _DEPTH_SPREAD, num_cells))
    genes_n = np.clip(genes_n, _FEWEST * median_genes, _MOST * len(blueprint.programme_g))
    return Cells(types_n, datasets_n, donors_n, own_n, gradients_n2, genes_n)


def _categorical(codes: NDArray[np.intp], names: Sequence[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, pd.Index(names, dtype=object)).remove_unused_categories()
