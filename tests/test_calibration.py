"""The scale of continuous labels, fitted to validation cells."""

import numpy as np
import pytest
from references import random_cells, random_reference
from sklearn.metrics import r2_score

from unicoord_atlas.encode import encode_batches
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training.finish import value_metrics
from unicoord_atlas.training.value_scale import fit_line, fitted_lines, put_on_scale


def encoded(reference):
    batches = QueryBatches(AnnDataCells(random_cells(60)), reference.schema, reference.normalization)
    return list(encode_batches(reference.model, batches, reference.device))


def test_a_line_is_least_squares_where_cells_tell_it():
    rng = np.random.default_rng(0)
    said = rng.normal(10, 2, 400)
    true = 3 + 1.25 * said + rng.normal(0, 0.1, 400)
    assert fit_line(said, true) == pytest.approx(tuple(np.polyfit(said, true, 1)), rel=1e-3)


def test_a_slope_is_near_1_where_cells_tell_little_and_1_where_they_tell_nothing():
    rng = np.random.default_rng(0)
    said, noise = rng.normal(size=30), rng.normal(0, 20, 30)
    slope, _ = fit_line(said, said + noise)
    assert abs(slope - 1) < 0.2 < abs(np.polyfit(said, said + noise, 1)[0] - 1)
    assert fit_line(said, -said) == (1.0, 0.0)
    assert fit_line(said[:19], 2 * said[:19]) == (1.0, 0.0)
    assert fit_line(np.ones(30), said) == (1.0, 0.0)


def test_values_are_said_on_the_calibrated_scale():
    reference = random_reference()
    model, before = reference.model, encoded(reference)
    said, spread = (np.concatenate([getattr(part, name) for part in before]) for name in ("mean", "variance"))
    values = (100 + 1.5 * said[:, :1]).astype(np.float32)
    values[::3] = np.nan
    put_on_scale(model, fitted_lines(before, values))
    found = encoded(
        ReferenceModel(model, *(getattr(reference, name) for name in ("config", "schema", "normalization")))
    )
    after, spread_after = (np.concatenate([getattr(part, name) for part in found]) for name in ("mean", "variance"))
    np.testing.assert_allclose(after[:, 0], 100 + 1.5 * said[:, 0], rtol=1e-4)
    np.testing.assert_allclose(spread_after[:, 0], 1.5**2 * spread[:, 0], rtol=1e-3)
    np.testing.assert_array_equal(after[:, 1:], said[:, 1:])
    assert model.spec == reference.config.network  # a value that is set means to the decoder what it meant
    assert fitted_lines([], values) == [(1.0, 0.0)]


def test_r2_is_told_of_each_value_or_of_many_as_a_mean():
    reference = random_reference()
    parts = encoded(reference)
    said = np.concatenate([part.mean for part in parts])
    rng = np.random.default_rng(0)
    values = (said + rng.normal(0, 0.5, said.shape)).astype(np.float32)
    values[::4, 0] = np.nan
    known = ~np.isnan(values[:, 0])
    expected = r2_score(values[known, 0], said[known, 0])
    assert value_metrics(parts, values[:, :1], ["time", "free"]) == {"time_r2": pytest.approx(expected, abs=1e-6)}
    many = [part.__class__(part.rows, np.repeat(part.mean[:, 1:2], 11, axis=1), part.variance, ()) for part in parts]
    mean = r2_score(values[:, 1], said[:, 1])
    names = [f"set{number}" for number in range(11)]
    assert value_metrics(many, np.repeat(values[:, 1:2], 11, axis=1), names) == {
        "mean_r2": pytest.approx(mean, abs=1e-6)
    }
    assert value_metrics([], values, names) == {}
