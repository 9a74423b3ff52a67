from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cells import counts_of_types, minibatch
from sklearn.neighbors import NearestNeighbors

from unicoord_atlas.config import ModelConfig
from unicoord_atlas.encode import FrozenEncoder
from unicoord_atlas.errors import DataError
from unicoord_atlas.generate import mode_latents
from unicoord_atlas.model.joint_vae import JointVAE, NetworkSpec
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.novelty import Novelty, cell_errors, fit_novelty, nearest_distances


@dataclass(frozen=True)
class Genes:
    genes_f: np.ndarray
    variance_f: np.ndarray


def fitted(rng: np.random.Generator, validation: int = 199) -> Novelty:
    """Novelty of cells whose coordinates are normal and whose errors grow with depth."""

    def cells(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        depth = rng.normal(8, 0.5, n)
        errors = np.exp(3 - 0.5 * depth + 0.1 * rng.normal(size=n))
        return rng.normal(size=(n, 4)).astype(np.float32), errors, np.stack([np.ones(n), depth], axis=1)

    genes = Genes(np.arange(3), np.ones(3))
    return fit_novelty(genes, cells(1000), {1.0: cells(validation), 0.5: cells(validation)})


def test_distances_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    points, queries = rng.normal(size=(300, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    expected = NearestNeighbors(n_neighbors=15).fit(points).kneighbors(queries)[0].mean(axis=1)
    np.testing.assert_allclose(nearest_distances(points, queries), expected, rtol=1e-4)


def test_p_values_count_the_validation_cells_that_are_as_strange():
    novelty = fitted(np.random.default_rng(1))
    scores = np.array([-100, novelty.scores_cv[1][99], 100], np.float32)
    np.testing.assert_allclose(novelty.p_values(scores), [1, 101 / 200, 1 / 200])


def test_p_values_of_cells_like_the_validation_cells_are_uniform():
    rng = np.random.default_rng(2)
    novelty, others = fitted(rng, 1999), fitted(rng, 1999)
    p_values = novelty.p_values(others.scores_cv[1])
    assert abs((p_values < 0.05).mean() - 0.05) < 0.03


def test_depth_is_taken_off_the_error():
    novelty = fitted(np.random.default_rng(3))
    np.testing.assert_allclose(novelty.depth_2, [3, -0.5], atol=0.1)


def test_a_low_coverage_is_compared_with_its_like():
    novelty = fitted(np.random.default_rng(4))
    score = np.array([0.0], np.float32)
    assert novelty.coverages.tolist() == [0.5, 1.0]
    assert novelty.p_values(score, 0.4)[0] == pytest.approx((1 + (novelty.scores_cv[0] >= 0).sum()) / 200)


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
    genes = Genes(np.array([1, 5, 30]), np.array([1.0, 2.0, 1.0]))
    measured = np.ones(40, np.bool_)
    measured[5] = False
    with torch.no_grad():
        decoded = model.decode(torch.from_numpy(mode_latents(model, encoded))).numpy()
    squares = (decoded - rows.to_dense().numpy()) ** 2
    size_factors = batch.size_factors_n
    whole, terms = cell_errors(model, genes, rows, encoded, size_factors, None)
    partly, _ = cell_errors(model, genes, rows, encoded, size_factors, measured)
    np.testing.assert_allclose(whole, squares[:, [1, 5, 30]].sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(partly, squares[:, [1, 30]].sum(axis=1) / 0.5, rtol=1e-4)
    np.testing.assert_allclose(terms[:, 1], np.log(counts.sum(axis=1)), rtol=1e-6)


def test_the_frozen_encoder_says_what_the_model_says():
    model, (counts, _) = small_model(), counts_of_types(20, 40)
    batch = minibatch(counts)
    rows = model.normalized(batch)
    with torch.no_grad():
        posterior = model.encode(rows)
    encoded = FrozenEncoder(model).encode(batch, rows)
    np.testing.assert_allclose(encoded.mean, 2 * posterior.mean_nd.numpy(), atol=5e-3)
    np.testing.assert_allclose(encoded.logits[0], posterior.logits[0].numpy(), atol=5e-3)
