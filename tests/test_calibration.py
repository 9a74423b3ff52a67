"""The scale of continuous labels, fitted to validation cells."""

import numpy as np
import pytest
from references import random_cells, random_reference

from unicoord_atlas.encode import encode_batches
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.training.calibration import calibrated, fit_line
from unicoord_atlas.training.finish import with_values


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


def test_values_are_said_on_the_calibrated_scale_and_set_on_it():
    reference = random_reference()
    model, before = reference.model, encoded(reference)
    said = np.concatenate([part.mean for part in before])
    values = (100 + 1.5 * said[:, :1]).astype(np.float32)
    values[::3] = np.nan
    model.spec = with_values(model.spec, calibrated(model.spec.latent.continuous, before, values))
    after = np.concatenate([part.mean for part in encoded(reference)])
    np.testing.assert_allclose(after[:, 0], 100 + 1.5 * said[:, 0], rtol=1e-4)
    np.testing.assert_array_equal(after[:, 1:], said[:, 1:])
    time = model.spec.latent.continuous[0]
    # The decoder is given for a value what the encoder says of a cell that has it.
    np.testing.assert_allclose((after[:, 0] - time.offset) / time.scale, (said[:, 0] - 5.0) / 2.0, rtol=1e-3, atol=1e-4)
    assert calibrated(model.spec.latent.continuous, [], values) == model.spec.latent.continuous
