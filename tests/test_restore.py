"""Restoration: its arithmetic by small examples, and the whole job on cells whose genes follow a time."""

import json

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from test_main_job import SETTINGS, write_cells

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import UsageError
from unicoord_atlas.jobs import ingest, restore
from unicoord_atlas.restoration import interpolation_weights, level_means, pcc, score_restored


def test_pcc_is_numpy_s():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 20)), rng.normal(size=20)
    np.testing.assert_allclose(pcc(a, b), [np.corrcoef(row, b)[0, 1] for row in a])
    assert pcc(np.ones(5), np.arange(5)) == 0


def test_interpolation_takes_the_two_neighbours_and_never_goes_beyond():
    known = np.array([[0.0], [1.0], [4.0], [9.0]])
    np.testing.assert_allclose(interpolation_weights(np.array([2.0]), known), [0, 2 / 3, 1 / 3, 0], atol=1e-9)
    assert interpolation_weights(np.array([9.5]), known) is None
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(interpolation_weights(np.array([0.25, 0.5]), corners), [0.25, 0.25, 0.5], atol=1e-9)


def test_level_means_are_the_plain_ones():
    rng = np.random.default_rng(0)
    values, level = rng.random((60, 7)), np.repeat([0, 1, -1], 20).astype(np.int32)
    rows = rng.permutation(60)
    blocks = [(part, sp.csr_matrix(values[part])) for part in np.array_split(rows, 4)]
    means = level_means(iter(blocks), level, 2, seed=0)
    np.testing.assert_allclose(means.mean_lg, [values[:20].mean(axis=0), values[20:40].mean(axis=0)])
    np.testing.assert_allclose(means.rest(0), values[20:40].mean(axis=0))
    half = np.random.default_rng(0).integers(0, 2, (60, 10))
    np.testing.assert_allclose(means.halves_r2lg[3, 1, 1], values[20:40][half[20:40, 3] == 1].mean(axis=0))


def test_a_perfect_restoration_scores_one_and_is_nearest_to_its_own():
    rng = np.random.default_rng(0)
    truth = rng.random((4, 50))
    cells = np.repeat(truth, 30, axis=0) + 0.01 * rng.normal(size=(120, 50))
    level = np.repeat(np.arange(4), 30).astype(np.int32)
    means = level_means([(np.arange(120), sp.csr_matrix(cells))], level, 4, seed=0)
    times = np.arange(4.0)[:, None]
    found = score_restored(1, truth[1], 0.9, 0.9, means, times)
    assert found.nearest == 1
    assert found.restored.mean == pytest.approx(1, abs=1e-3)
    assert found.restored.difference == pytest.approx(1, abs=1e-3)
    assert found.neighbour.mean == pytest.approx(pcc(means.mean_lg[0], means.mean_lg[1]))
    assert found.interpolation.mean == pytest.approx(pcc((means.mean_lg[0] + means.mean_lg[2]) / 2, means.mean_lg[1]))
    assert 0.99 < found.ceiling.difference <= 1
    assert score_restored(3, truth[3], 0.9, 0.9, means, times).interpolation is None


def test_a_level_left_out_is_restored(tmp_path):
    cells = write_cells(tmp_path / "cells.h5ad", 1)
    cells.obs["bin"] = (cells.obs["time"] // 2.5).astype(int).astype(str)
    cells.obs["bin"] = "from " + cells.obs["bin"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(tmp_path / "cells.h5ad")], tmp_path / "atlas.zarr", labels=["cell_type"]))
    config = RunConfig.load(None, [*SETTINGS, "latent.continuous=[]", "train.epochs=60"])
    options = restore.RestoreOptions(tmp_path / "atlas.zarr", ["time"], tmp_path / "out", config, "from 1", "bin")
    result = restore.run(options)
    assert result["levels"] == ["from 0", "from 1", "from 2", "from 3"]
    left_out = result["left_out"]["from 1"]
    assert left_out["nearest"] == "from 1"
    assert left_out["restored"]["mean"] > left_out["neighbour"]["mean"]
    assert left_out["restored"]["mean"] > 0.98 * left_out["ceiling"]["mean"]
    assert json.loads((tmp_path / "out" / "restore.json").read_text())["left_out"]["from 1"] == left_out
    for name in ("table.txt", "cells.png", "levels.png", "scores.png", "manifest.json"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    assert not (tmp_path / "out" / "runs").exists()


def test_levels_that_cannot_be_restored_are_refused(tmp_path):
    write_cells(tmp_path / "cells.h5ad", 1)
    ingest.run(ingest.IngestOptions([str(tmp_path / "cells.h5ad")], tmp_path / "atlas.zarr", labels=["cell_type"]))
    for leave_out, levels, words in (
        ("each", None, "0 levels with 10 cells or more"),
        ("late", "truth", "no such level; it can be each, or of: "),
    ):
        options = restore.RestoreOptions(
            tmp_path / "atlas.zarr", ["time"], tmp_path / "out", RunConfig(), leave_out, levels
        )
        with pytest.raises(UsageError, match=words):
            restore.run(options)
    assert not (tmp_path / "out").exists()


def test_excluded_cells_are_neither_trained_on_nor_validated():
    from unicoord_atlas.training.preparation import split_rows

    obs = anndata.AnnData(np.zeros((50, 1), np.float32)).obs
    obs["day"] = np.arange(50) % 5 + 0.5
    config = RunConfig.load(None, ['data.exclude=["day=2.5"]', "data.validation_fraction=0.3"])
    training, validation = split_rows(config, obs)
    assert sorted([*training, *validation]) == [row for row in range(50) if row % 5 != 2]
    for condition, words in (("day=7", "no cell has day=7; values of day are: 0.5"), ("week=1", "columns: day")):
        with pytest.raises(UsageError, match=words):
            split_rows(RunConfig.load(None, [f'data.exclude=["{condition}"]']), obs)
