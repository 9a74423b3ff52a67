"""From an atlas's obs to what a run trains on: split, folded labels, per-cell columns, latent dimensions.

Shapes: N cells of the store, l label columns, c continuous columns, k categories.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import ValidationError

from unicoord_atlas.batch import CellColumns
from unicoord_atlas.columns import continuous_values, label_codes, label_column, require_column
from unicoord_atlas.errors import ConfigError, DataError, UsageError
from unicoord_atlas.hierarchy import Hierarchy
from unicoord_atlas.lineage import finest_first
from unicoord_atlas.losses.objective import LabelFacts
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.refinement import Refinement
from unicoord_atlas.schema import AtlasSchema, LabelColumn, fold_rare

from .levels import hierarchy_between, tied_levels

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from unicoord_atlas.columns import Columns
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.hierarchy import Hierarchy

_NAMES_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Preparation:
    """All that is decided before the first step."""

    training_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]
    columns: CellColumns
    labels: tuple[LabelColumn, ...]
    """As trained: rare classes folded, counts of the training cells."""
    latent: LatentSpec
    facts: LabelFacts
    hierarchies: tuple[Hierarchy, ...]
    remarks: tuple[str, ...]
    """What a user should know of the trees of labels, and of how cells are drawn."""
    tables: Mapping[str, tuple[str, ...]]
    """Supervised continuous dimensions that came together, by the obsm key that they came from."""
    weights: NDArray[np.float64] | None = None
    """(N,) how often each cell is drawn in relation to the others; None: each training cell once an epoch."""

    @property
    def num_drawn(self) -> int:
        """Cells of an epoch."""
        return len(self.training_rows) if self.weights is None else int(np.count_nonzero(self.weights))

    def trained(self) -> NDArray[np.bool_]:
        """(N,) whether each cell of the store is a training cell."""
        chosen = np.zeros(len(self.columns.sources), np.bool_)
        chosen[self.training_rows] = True
        return chosen


def prepare(
    config: RunConfig,
    schema: AtlasSchema,
    obs: pd.DataFrame,
    size_factors: NDArray[np.float64],
    obsm: Mapping[str, Columns] | None = None,
) -> Preparation:
    """Decide the split, fold rare classes, and turn label columns into codes and values.

    Raises
    ------
    UsageError
        If a column is not in obs.
    DataError
        If a label column has no labelled training cell, or a continuous one is constant or not numeric.
    """
    training, validation = split_rows(config, obs)
    levels = tied_levels(config.latent, obs)
    obs = levels.obs
    names = list(dict.fromkeys([*config.latent.discrete, *(name for pair in levels.trees for name in pair)]))
    labels, codes = [], np.full((len(obs), len(names)), -1, np.int32)
    for number, name in enumerate(names):
        column = _known_label(schema, obs, name)
        raw = label_codes(obs, column)
        folded, codes[:, number] = _fold(column, raw, training, config.data.min_cells)
        labels.append(folded)
    titles, values = continuous_values(obs, obsm or {}, config.latent.continuous)
    scales = [_known(title, column[training]) for title, column in zip(titles, values.T, strict=True)]
    facts = LabelFacts(
        tuple(torch.tensor(label.counts, dtype=torch.float32) for label in labels),
        tuple(float((codes[training, number] >= 0).mean()) for number in range(len(labels))),
        torch.tensor([known.share for known in scales], dtype=torch.float32),
    )
    at = {name: number for number, name in enumerate(names)}
    hierarchies = tuple(
        hierarchy_between(levels, labels[at[p]], labels[at[c]], codes[training, at[p]], codes[training, at[c]])
        for p, c in levels.trees
    )
    coarse_first = reversed(finest_first(hierarchies))
    ties = tuple(_refinement(tree, at) for tree in coarse_first) if config.latent.conditional else ()
    latent = _latent_spec(config, labels, titles, scales, ties)
    columns = CellColumns(size_factors.astype(np.float32), _source_codes(schema, obs), codes, values)
    tables = {key: tuple(map(str, table.columns)) for key, table in (obsm or {}).items()}
    return Preparation(training, validation, columns, tuple(labels), latent, facts, hierarchies, levels.remarks, tables)


def split_rows(config: RunConfig, obs: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and validation rows, ascending: a seeded hash of each cell's name, or of its `validation_by` value.

    A cell's side does not depend on what other cells there are; but of few values, of which the hash would hold out
    none or all, the one with the smallest hash is held out or that with the largest is not.  Excluded cells are on
    neither side.

    Raises
    ------
    ConfigError
        If no cell is left to train on, or all have one value of `validation_by`.
    """
    chosen = np.ones(len(obs), np.bool_)
    if config.data.max_cells and config.data.max_cells < len(obs):
        draw = np.random.default_rng([config.train.seed, 0x5A]).choice(len(obs), config.data.max_cells, replace=False)
        chosen[:] = False
        chosen[draw] = True
    for condition in config.data.exclude:
        chosen &= ~_meets(obs, condition)
    fraction = config.data.validation_fraction
    if config.data.validation_by:
        values = require_column(obs, config.data.validation_by).astype("string").fillna("")
        validation = values.isin(_held_out(values[chosen], config)).to_numpy(np.bool_)
    else:
        validation = _hash_shares(obs.index.to_series(), config.train.seed) < fraction
    rows = np.arange(len(obs), dtype=np.int64)
    training = rows[chosen & ~validation]
    if not len(training):
        raise ConfigError(f"data.validation_fraction = {fraction} leaves no training cell of {len(obs)}")
    return training, rows[chosen & validation]


def _held_out(values: pd.Series, config: RunConfig) -> pd.Series:
    """The values whose cells are for validation."""
    distinct, fraction = values.drop_duplicates(), config.data.validation_fraction
    if not fraction:
        return distinct.iloc[:0]
    if len(distinct) < 2:
        raise ConfigError(
            f"data.validation_by = {config.data.validation_by!r}: all cells have one value of it; name a column with "
            "several, or set data.validation_fraction = 0"
        )
    shares = _hash_shares(distinct, config.train.seed)
    number = np.clip((shares < fraction).sum(), 1, len(distinct) - 1)
    return distinct.iloc[np.argsort(shares, kind="stable")[:number]]


def _meets(obs: pd.DataFrame, condition: str) -> NDArray[np.bool_]:
    """(N,) which cells have the value in ``column=value``; UsageError if there is no such column or value."""
    name, equals, value = condition.partition("=")
    if not equals or name not in obs:
        raise UsageError(
            f"data.exclude: {condition!r} is no column=value of obs; columns: {', '.join(map(str, obs.columns))}"
        )
    met: NDArray[np.bool_] = (obs[name].astype("string") == value).fillna(False).to_numpy(np.bool_)
    if not met.any():
        values = ", ".join(map(str, obs[name].dropna().unique()[:12]))
        raise UsageError(f"data.exclude: no cell has {condition}; values of {name} are: {values}")
    return met


def _hash_shares(names: pd.Series, seed: int) -> NDArray[np.float64]:
    """Uniform in [0, 1) for each name: 8 bytes of BLAKE2b keyed with the seed."""
    key = seed.to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(name.encode(), digest_size=8, key=key).digest()
        for start in range(0, len(names), _NAMES_AT_ONCE)  # as texts of Python's they take five times the memory
        for name in names.iloc[start : start + _NAMES_AT_ONCE].astype(str)
    )
    return np.frombuffer(digests, np.uint64) / 2.0**64


def _known_label(schema: AtlasSchema, obs: pd.DataFrame, name: str) -> LabelColumn:
    """The schema's column, or one made of any other obs column (dataset, source) on the way."""
    known = {column.name: column for column in schema.labels}
    return known[name] if name in known else label_column(obs, name)


def _fold(
    column: LabelColumn, codes: NDArray[np.int32], training: NDArray[np.int64], min_cells: int
) -> tuple[LabelColumn, NDArray[np.int32]]:
    in_training = codes[training]
    counts = np.bincount(in_training[in_training >= 0], minlength=len(column.categories)).astype(np.int64)
    if not counts.any():
        raise DataError(f"label column {column.name!r}: none of the {len(training)} training cells is labelled")
    folded, new_code = fold_rare(column, counts, min_cells)
    return folded, np.append(new_code, np.int32(-1))[codes]


@dataclass(frozen=True, slots=True)
class _Known:
    """What training cells have in a continuous column."""

    share: float
    mean: float
    std: float


def _known(title: str, values_n: NDArray[np.float32]) -> _Known:
    known = values_n[~np.isnan(values_n)]
    if not len(known) or known.min() == known.max():
        raise DataError(f"continuous column {title!r}: has no two different values among the training cells")
    return _Known(len(known) / len(values_n), float(known.mean()), float(known.std()))


def _latent_spec(
    config: RunConfig,
    labels: list[LabelColumn],
    titles: tuple[str, ...],
    scales: list[_Known],
    ties: tuple[Refinement, ...],
) -> LatentSpec:
    if any(label.name == "bio" for label in labels):
        raise ConfigError("latent: no label can be called 'bio': obsm/X_unicoord_bio is taken; rename the column")
    discrete = [DiscreteLatent(name=label.name, num_categories=len(label.categories)) for label in labels]
    discrete += [
        DiscreteLatent(name=f"unsupervised_discrete_{number}", num_categories=size, supervised=False)
        for number, size in enumerate(config.latent.unsupervised_discrete)
    ]
    continuous = []
    for title, known in zip(titles, scales, strict=True):
        offset, scale = (known.mean, known.std) if config.latent.standardize else (0.0, 1.0)
        continuous.append(ContinuousLatent(name=title, offset=offset, scale=scale))
    continuous += [
        ContinuousLatent(name=f"unsupervised_{number}", supervised=False)
        for number in range(config.latent.unsupervised_continuous)
    ]
    try:
        return LatentSpec(
            discrete=tuple(discrete),
            continuous=tuple(continuous),
            num_diffusion=config.num_diffusion,
            refinements=ties,
        )
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _refinement(tree: Hierarchy, at: Mapping[str, int]) -> Refinement:
    shares = tuple(tuple((int(code), float(row[code])) for code in np.flatnonzero(row)) for row in tree.parents_kp)
    return Refinement(parent=at[tree.parent], child=at[tree.child], shares=shares)


def _source_codes(schema: AtlasSchema, obs: pd.DataFrame) -> NDArray[np.int32]:
    if len(schema.sources) <= 1 or "source" not in obs:
        return np.zeros(len(obs), np.int32)
    column = LabelColumn(
        name="source",
        categories=tuple(s.name for s in schema.sources),
        counts=tuple(s.num_cells for s in schema.sources),
    )
    return label_codes(obs, column)
