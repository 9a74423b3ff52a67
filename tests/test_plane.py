"""Cells on a plane: neighbours that are found here, and what umap-learn makes of them."""

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from unicoord_atlas.neighbors import knn
from unicoord_atlas.report import plane


@pytest.fixture
def points():
    return make_blobs(4500, n_features=20, centers=12, cluster_std=4.0, random_state=1)[0].astype(np.float32)


@pytest.mark.parametrize(("compared", "least"), [(10**9, 1.0), (10**6, 0.95)], ids=["all", "lists"])
def test_neighbors_are_those_of_an_exhaustive_search(points, monkeypatch, compared, least):
    monkeypatch.setattr(knn, "MOST_COMPARISONS", compared)
    found, distances = plane._neighbors(points, seed=0)
    true_distances, true_rows = NearestNeighbors(n_neighbors=15, algorithm="brute").fit(points).kneighbors()
    np.testing.assert_array_equal(found[:, 0], np.arange(len(points)))
    assert (distances[:, 0] == 0).all() and (np.diff(distances) >= 0).all()
    shared = [len(np.intersect1d(a, b)) / 14 for a, b in zip(found[:, 1:], true_rows[:, :14], strict=True)]
    assert np.mean(shared) >= least
    if least == 1:
        np.testing.assert_allclose(distances[:, 1:], true_distances[:, :14], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # umap speaks of its own parallel settings
def test_a_map_is_as_true_to_the_points_as_that_of_umap_itself(points):
    umap = pytest.importorskip("umap")
    ours = trustworthiness(points, plane.umap_of_points(points))
    theirs = trustworthiness(points, umap.UMAP(random_state=0, n_jobs=1).fit_transform(points))
    assert ours >= theirs - 0.01 and ours > 0.7
