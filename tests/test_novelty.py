from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from cells import counts_of_types, minibatch
from sklearn.neighbors import NearestNeighbors

from unicoord_atlas.cell_facts import CellFacts, cell_facts
from unicoord_atlas.config import ModelConfig
from unicoord_atlas.encode import FrozenEncoder
from unicoord_atlas.errors import DataError
from unicoord_atlas.generate import mode_latents
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.narrower import ShallowerBatches
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.novelty import (
    Novelty,
    Strangeness,
    fit_novelty,
    nearest_distances,
    own_distances,
    strangeness,
)

DEEP = np.full(3, 8, np.float32)
"""Log depths."""


@dataclass(frozen=True)
class Genes:
    genes_f: np.ndarray
    variance_f: np.ndarray
    axes_fp: np.ndarray


THREE = Genes(np.arange(3), np.ones(3), np.eye(3, 2, dtype=np.float32))


def cells(rng: np.random.Generator, n: int, depth: float = 8) -> CellFacts:
    """Coordinates that are normal, directions all around, errors that grow with depth, and depths."""
    depth_n = rng.normal(depth, 0.5, n)
    errors = np.exp(3 - 0.5 * depth_n + 0.1 * rng.normal(size=n))
    directions = rng.normal(size=(n, 6)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    bio = rng.normal(size=(n, 4)).astype(np.float32)
    return CellFacts(bio, directions, errors, np.stack([np.ones(n), depth_n], axis=1))


def apart(facts: CellFacts, times: np.ndarray | float) -> CellFacts:
    """The same so many times as far apart."""
    return replace(facts, bio_nb=np.float32(facts.bio_nb * times))


def fitted(rng: np.random.Generator, validation: int = 199) -> Novelty:
    at = {1.0: cells(rng, validation), 0.5: cells(rng, validation)}
    return fit_novelty(THREE, cells(rng, 1000), at, [apart(cells(rng, validation, 4), 2)])


def test_distances_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    points, queries = rng.normal(size=(300, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    expected = NearestNeighbors(n_neighbors=15).fit(points).kneighbors(queries)[0].mean(axis=1)
    np.testing.assert_allclose(nearest_distances(points, queries), expected, rtol=1e-5)
    others = NearestNeighbors(n_neighbors=15).fit(points).kneighbors()[0].mean(axis=1)
    np.testing.assert_allclose(own_distances(points), others, rtol=1e-5)
    close = nearest_distances(points, points[:40] + np.float32(1e-3))  # to a point almost the same: no digits are lost
    expected = NearestNeighbors(n_neighbors=15).fit(points).kneighbors(points[:40] + 1e-3)[0].mean(axis=1)
    np.testing.assert_allclose(close, expected, rtol=1e-5)
    assert own_distances(points[:1]).tolist() == nearest_distances(points[:1], points[:1]).tolist() == [0]


def test_p_values_count_the_validation_cells_that_are_as_strange():
    novelty = fitted(np.random.default_rng(1))
    scores = np.array([-100, novelty.scores_cv[1][99], 100], np.float32)
    np.testing.assert_allclose(novelty.p_values(scores, DEEP), [1, 101 / 200, 1 / 200])


def test_p_values_of_cells_like_the_validation_cells_are_uniform():
    rng = np.random.default_rng(2)
    novelty, others = fitted(rng, 1999), fitted(rng, 1999)
    p_values = novelty.p_values(others.scores_cv[1], np.full(1999, 8, np.float32))
    assert abs((p_values < 0.05).mean() - 0.05) < 0.03


def test_depth_is_taken_off_all_parts():
    rng = np.random.default_rng(3)
    novelty = fitted(rng)
    np.testing.assert_allclose(novelty.depth_32[2], [3, -0.5], atol=0.1)
    facts = cells(rng, 1000)
    spread = np.exp(0.4 * (facts.terms_n2[:, 1] - 8))[:, None].astype(np.float32)  # deep cells lie farther apart
    same = fit_novelty(THREE, apart(facts, spread), {1.0: cells(rng, 99)}, [])
    assert 0.2 < same.depth_32[0, 1] < 0.5


def test_distance_and_angle_count_together_and_the_stranger_of_that_and_the_error_decides():
    novelty = fitted(np.random.default_rng(6))
    above_3n = np.array([[3, 0, 0, -9], [0, 2, 0, -9], [0, 0, 2, 1]])
    centre, spread = novelty.scale_32.T[..., None]
    parts = Strangeness(np.float32(centre + spread * above_3n), np.full(4, 8, np.float32))
    np.testing.assert_allclose(novelty.scores(parts), [3 / 2**0.5, 2**0.5, 2, 1], rtol=1e-3)


def test_a_low_coverage_is_compared_with_its_like():
    novelty = fitted(np.random.default_rng(4))
    score = np.array([0.0], np.float32)
    assert novelty.coverages.tolist() == [0.5, 1.0]
    expected = (1 + max((scores >= 0).sum() for scores in (novelty.scores_cv[0], novelty.scores_tv[1]))) / 200
    assert novelty.p_values(score, DEEP[:1], 0.4)[0] == pytest.approx(expected)


def test_a_shallow_cell_is_compared_with_its_like():
    """Those that lie twice as far apart for having few molecules are not strange for that."""
    rng = np.random.default_rng(7)
    novelty = fitted(rng, 999)
    np.testing.assert_allclose(novelty.log_depths, [4, 8], atol=0.1)
    parts = strangeness(novelty, apart(cells(rng, 999, 4), 2))
    assert (novelty.p_values(novelty.scores(parts), parts.log_depth) < 0.05).mean() < 0.08
    assert (novelty.p_values(novelty.scores(parts), np.full(999, 8, np.float32)) < 0.05).mean() > 0.2


def test_shallower_batches_keep_a_share_of_the_molecules_the_same_ones_each_time():
    counts, _ = counts_of_types(200, 40)
    highly = np.zeros(40, np.bool_)
    highly[0] = True
    normalization = Normalization(highly, np.full(40, 1 / 39), np.zeros(40), np.ones(40))
    batch = minibatch(counts)
    (thin,), (again,) = (list(ShallowerBatches([batch], 0.25, normalization, 3)) for _ in range(2))
    found = thin.counts.to_scipy().toarray()
    assert (found <= counts).all() and found.sum() / counts.sum() == pytest.approx(0.25, abs=0.01)
    assert (thin.counts.data > 0).all()
    np.testing.assert_array_equal(found, again.counts.to_scipy().toarray())
    np.testing.assert_allclose(thin.size_factors_n, found[:, 1:].sum(axis=1))


def test_novelty_survives_its_file_and_a_damaged_one_is_refused(tmp_path):
    novelty = fitted(np.random.default_rng(5))
    novelty.save(tmp_path / "novelty.safetensors")
    again = Novelty.load(tmp_path / "novelty.safetensors")
    np.testing.assert_array_equal(again.scores_cv, novelty.scores_cv)
    path = tmp_path / "novelty.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="novelty"):
        Novelty.load(path)


def small_model() -> JointVAE:
    torch.manual_seed(0)
    latent = LatentSpec(
        discrete=(DiscreteLatent(name="type", num_categories=3),),
        continuous=(ContinuousLatent(name="time", scale=2.0),),
    )
    return JointVAE(NetworkSpec(num_genes=40, latent=latent, model=ModelConfig(hidden=(32, 16)))).eval()


def test_errors_are_those_of_the_decoder_over_the_genes_that_were_measured():
    model, (counts, _) = small_model(), counts_of_types(20, 40)
    batch = minibatch(counts)
    rows = model.normalized(batch)
    encoded = FrozenEncoder(model).encode(batch, rows)
    genes = Genes(np.array([1, 5, 30]), np.array([1.0, 2.0, 1.0]), np.eye(3, 2, dtype=np.float32))
    bio = np.zeros((20, 1), np.float32)
    measured = np.ones(40, np.bool_)
    measured[5] = False
    with torch.no_grad():
        decoded = model.decode(torch.from_numpy(mode_latents(model, encoded))).numpy()
    squares = (decoded - rows.to_dense().numpy()) ** 2
    size_factors = batch.size_factors_n
    whole, partly = (cell_facts(model, genes, rows, encoded, bio, size_factors, given) for given in (None, measured))
    weighed = squares[:, genes.genes_f] / (genes.variance_f + 0.01)
    np.testing.assert_allclose(whole.errors_n, weighed.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(partly.errors_n, weighed[:, [0, 2]].sum(axis=1) / 3, rtol=1e-4)
    np.testing.assert_allclose(whole.terms_n2[:, 1], np.log(counts.sum(axis=1)), rtol=1e-6)


def test_directions_fit_the_genes_that_were_measured_best():
    """Cells that are mixtures of two profiles: from half of the genes they are found where all genes say they are."""
    rng = np.random.default_rng(8)
    mixtures = rng.random((50, 2)) @ rng.gamma(0.5, 2.0, (2, 40))
    counts = rng.poisson(200 * mixtures)
    model, batch = small_model(), minibatch(counts)
    rows = model.normalized(batch)
    values = rows.to_dense().numpy()
    axes = np.linalg.svd(values, full_matrices=False)[2][:2].T.astype(np.float32)
    genes = Genes(np.arange(40), np.ones(40), axes)
    measured = np.arange(40) % 2 == 0
    encoded = FrozenEncoder(model).encode(batch, rows)
    whole, partly, half = (
        cell_facts(model, genes, cells, encoded, np.zeros((50, 1), np.float32), batch.size_factors_n, given).profiles_np
        for cells, given in ((rows, None), (rows, measured), (model.normalized(minibatch(counts * measured)), None))
    )
    expected = values @ axes
    np.testing.assert_allclose(whole, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(partly, axis=1), 1, rtol=1e-5)
    assert np.abs(partly - whole).max() < 0.5 * np.abs(half - whole).max()


def test_the_frozen_encoder_says_what_the_model_says():
    model, (counts, _) = small_model(), counts_of_types(20, 40)
    batch = minibatch(counts)
    rows = model.normalized(batch)
    with torch.no_grad():
        posterior = model.encode(rows, model.center(batch))
    encoded = FrozenEncoder(model).encode(batch, rows)
    np.testing.assert_allclose(encoded.mean, 2 * posterior.mean_nd.numpy(), atol=5e-3)
    np.testing.assert_allclose(encoded.logits[0], posterior.logits[0].numpy(), atol=5e-3)
