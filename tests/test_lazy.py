import warnings

import anndata
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from stores import random_counts, write_store

from unicoord_atlas.loaders.lazy import block_borders
from unicoord_atlas.loaders.store import open_store


@pytest.fixture(scope="module")
def counts():
    return random_counts(900, 60, density=0.3)


@pytest.fixture(scope="module")
def store(counts, tmp_path_factory):
    return open_store(write_store(tmp_path_factory.mktemp("atlas") / "atlas.zarr", counts, inner_chunk=100))


def test_blocks_begin_with_rows_at_the_borders_of_chunks(store, counts):
    lazy = store.to_dask()
    assert lazy.shape == counts.shape and lazy.dtype == np.float32
    borders = np.cumsum([0, *lazy.chunks[0]])
    entries = np.diff(counts.indptr[borders])
    longest = np.diff(counts.indptr).max()
    assert len(entries) > 5 and (np.abs(entries[:-1] - 1600) <= longest).all()
    block = lazy.blocks[2].compute()
    assert sp.issparse(block) and block.format == "csr"
    assert (block != counts[borders[2] : borders[3]]).nnz == 0
    assert (lazy.compute() != counts).nnz == 0


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([], [0, 0]), ([0, 0], [0, 2]), ([4, 4, 4], [0, 1, 2, 3]), ([1, 9, 0, 2], [0, 2, 4]), ([2, 2, 2, 2], [0, 2, 4])],
)
def test_borders_leave_no_block_empty(lengths, expected):
    assert block_borders(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), 4).tolist() == expected


def test_means_and_variances_equal_those_in_memory(store, counts):
    lazy = store.to_dask(np.float64)
    mean = np.asarray(lazy.map_blocks(lambda block: np.asarray(block.sum(axis=0)), chunks=(1, 60)).sum(0)) / 900
    np.testing.assert_allclose(mean, np.asarray(counts.mean(axis=0)).ravel())


def test_scanpy_on_the_lazy_atlas_equals_scanpy_in_memory(store, counts):
    lazy, truth = store.to_anndata(lazy=True), store.to_anndata(lazy=False)
    truth.X = truth.X.astype(np.float32)
    assert lazy.obs.equals(truth.obs) and lazy.var_names.equals(truth.var_names)
    for cells in (lazy, truth):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some cells have zero counts")
            sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        sc.pp.highly_variable_genes(cells, n_top_genes=20)
    assert isinstance(truth, anndata.AnnData) and not sp.issparse(lazy.X)
    np.testing.assert_allclose(lazy.X.compute().toarray(), truth.X.toarray(), rtol=1e-5)
    for column in ("means", "dispersions_norm"):
        np.testing.assert_allclose(lazy.var[column], truth.var[column], rtol=1e-4)
    assert (lazy.var["highly_variable"] == truth.var["highly_variable"]).all()
