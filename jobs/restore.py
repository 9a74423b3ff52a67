"""evaluate restore: leave each level of a coordinate out of training and restore it from cells of the other levels."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unicoord_atlas.batch import CellColumns
from unicoord_atlas.columns import continuous_values
from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.generate import Generation, generate
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.stream import CellStream
from unicoord_atlas.points import encode_points
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.restoration import level_means, pcc, score_restored

from . import train
from .export_reference import model_of_run
from .restore_table import restored_table
from .workdir import finished_directory, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.loaders.store import CellStore
    from unicoord_atlas.restoration import LevelMeans, Restored

BATCH = 512
MAX_LEVELS = 60
MIN_CELLS = 10
"""Smaller levels have no mean to speak of."""
SHOWN = 500
HELD_OUT = 0.2
"""Share of the cells of the other levels that are not trained on: these are moved to the level left out."""


@dataclass(frozen=True)
class RestoreOptions:
    """What `unicoord-atlas evaluate restore` is asked to do."""

    store: Path
    coordinates: list[str]
    """Continuous columns; several are set together."""
    out: Path
    config: RunConfig
    """Of the trainings; coordinates, held-out share and the level left out are added."""
    leave_out: str = "each"
    levels: str | None = None
    """obs column whose values are the levels; the coordinate itself if None."""


@dataclass(frozen=True)
class Levels:
    """The cells of a store by level."""

    column: str
    names: list[str]
    of_cell: NDArray[np.int32]
    """(N,) number of the level, -1 where it or a coordinate is missing."""
    coordinates: NDArray[np.float64]
    """(l, c) mean coordinates of each level."""


def run(options: RestoreOptions) -> dict[str, Any]:
    """Train once for each level left out, restore it, and write restore.json, table.txt and figures."""
    from .restore_figures import draw_restored  # first: matplotlib is an extra, and training takes long

    store = open_store(options.store)
    levels = find_levels(store, options)
    asked = _asked(levels, options.leave_out)
    config = {
        "coordinates": options.coordinates,
        "levels": options.levels,
        "leave_out": options.leave_out,
        "settings": options.config.model_dump(mode="json"),
    }
    with finished_directory(options.out, [options.store], config, resume=True) as out:
        results: dict[int, Restored] = {}
        clouds: dict[int, NDArray[np.float32]] = {}
        for level in asked:
            _say(f"{levels.names[level]} left out ({len(results) + 1} of {len(asked)})")
            run_folder = out / "runs" / str(level)
            train.run(train.TrainOptions(options.store, run_folder, _training(options, levels, level)))
            reference = ReferenceModel.load(model_of_run(run_folder))
            means = level_means(_values(store, reference, None), levels.of_cell, len(levels.names), 0)
            results[level], clouds[level] = _restore(store, reference, levels, level, means, options)
        shutil.rmtree(out / "runs")
        shown = restored_table(levels.names, results)
        (out / "table.txt").write_text(shown, encoding="utf-8")
        summary = _summary(options, levels, results)
        write_json(out / "restore.json", summary)
        draw_restored(out, levels.names, results, means, clouds)
    print(shown, file=sys.stderr)
    return {"restored": str(options.out), **summary}


def find_levels(store: CellStore, options: RestoreOptions) -> Levels:
    """Which level each cell is of, in the order of the first coordinate.

    Raises
    ------
    UsageError
        If a column is missing, there are fewer than 3 levels, or too many.
    """
    column = options.levels or options.coordinates[0]
    obs = store.obs(list(dict.fromkeys([*options.coordinates, column])))
    _, values = continuous_values(obs, {}, options.coordinates)
    titles = obs[column].astype("string")
    known = titles.notna().to_numpy(np.bool_) & ~np.isnan(values).any(axis=1)
    table = pd.DataFrame(values[known]).groupby(titles[known].to_numpy(str))
    counts, means = table.size(), table.mean()
    few = counts[counts < MIN_CELLS]
    means = means[counts >= MIN_CELLS].sort_values(by=list(means.columns))
    names = [str(name) for name in means.index]
    if not 3 <= len(names) <= MAX_LEVELS:
        raise UsageError(
            f"--levels {column}: {len(names)} levels with {MIN_CELLS} cells or more ({len(few)} with fewer); "
            f"3 to {MAX_LEVELS} can be restored: name a column that bins the coordinate"
        )
    code = {name: number for number, name in enumerate(names)}
    of_cell = titles.map(code).fillna(-1).to_numpy(np.int32)
    of_cell[~known] = -1
    return Levels(column, names, of_cell, means.to_numpy(np.float64))


def _summary(options: RestoreOptions, levels: Levels, results: dict[int, Restored]) -> dict[str, Any]:
    """What restore.json holds."""
    return {
        "coordinates": options.coordinates,
        "levels": levels.names,
        "level_coordinates": levels.coordinates.tolist(),
        "left_out": {
            levels.names[level]: {
                **asdict(result),
                "nearest": levels.names[result.nearest],
                "pcc_l": list(result.pcc_l),
            }
            for level, result in results.items()
        },
    }


def _asked(levels: Levels, leave_out: str) -> list[int]:
    if leave_out == "each":
        return list(range(len(levels.names)))
    unknown = [name for name in leave_out.split(",") if name not in levels.names]
    if unknown:
        raise UsageError(f"--leave-out {unknown[0]}: no such level; it can be each, or of: {', '.join(levels.names)}")
    return [levels.names.index(name) for name in leave_out.split(",")]


def _training(options: RestoreOptions, levels: Levels, level: int) -> RunConfig:
    """The settings with the coordinates, the level left out, and a fifth of the other cells held out."""
    given = options.config
    coordinates = tuple(dict.fromkeys([*options.coordinates, *given.latent.continuous]))
    excluded = (*given.data.exclude, f"{levels.column}={levels.names[level]}")
    return given.model_copy(
        update={
            "latent": given.latent.model_copy(update={"continuous": coordinates}),
            "data": given.data.model_copy(update={"exclude": excluded, "validation_fraction": HELD_OUT}),
        }
    )


def _restore(
    store: CellStore, reference: ReferenceModel, levels: Levels, level: int, means: LevelMeans, options: RestoreOptions
) -> tuple[Restored, NDArray[np.float32]]:
    """Scores of a level, and its restored cells, some of them, for the figure."""
    prepared = train.prepare_store(store, _training(options, levels, level))
    rows = prepared.validation_rows
    if not len(rows):
        raise DataError(f"{options.store}: no cell is held out; it is too small to restore {levels.names[level]}")
    truth, obs = means.mean_lg[level], store.obs(options.coordinates)
    values = dict(zip(options.coordinates, levels.coordinates[level].tolist(), strict=True))
    how = Generation(Changes({}, values), exact=True, sample="mode", min_value=0)
    points = encode_points(reference.model, _in_order(store, rows), reference.device)
    total, room = np.zeros(len(truth)), SHOWN
    correlations: list[NDArray[np.float64]] = []
    some: list[NDArray[np.float32]] = []
    for part in generate(reference, points, how, obs):
        dense = np.zeros((len(part.rows), len(truth)), np.float32)
        dense[np.repeat(np.arange(len(dense)), np.diff(part.block.indptr)), part.block.indices] = part.block.data
        total += dense.sum(axis=0)
        correlations.append(pcc(dense, truth))
        some.append(dense[:room])
        room -= len(some[-1])
    own = np.flatnonzero(levels.of_cell == level).astype(np.int64)
    real = np.concatenate([pcc(block.toarray(), truth) for _, block in _values(store, reference, own)])
    restored = score_restored(
        level,
        total / len(rows),
        float(np.concatenate(correlations).mean()),
        float(real.mean()),
        means,
        levels.coordinates,
    )
    return restored, np.concatenate(some)


def _in_order(store: CellStore, rows: NDArray[np.int64] | None) -> CellStream:
    n = store.n_obs
    columns = CellColumns(
        store.size_factors.astype(np.float32),
        np.zeros(n, np.int32),
        np.zeros((n, 0), np.int32),
        np.zeros((n, 0), np.float32),
    )
    return CellStream(store, columns, batch_size=BATCH, order="stored", rows=rows)


def _values(
    store: CellStore, reference: ReferenceModel, rows: NDArray[np.int64] | None
) -> Iterator[tuple[NDArray[np.int64], sp.csr_matrix]]:
    """Log-normalized cells over the model's genes."""
    for batch in _in_order(store, rows):
        real = batch.weights_n.numpy() > 0
        yield batch.rows_n.numpy()[real], reference.model.normalized(batch).to_scipy()[real]


def _say(text: str) -> None:
    print(text, file=sys.stderr)
