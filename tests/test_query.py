from dataclasses import fields

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from unicoord_atlas.errors import DataError
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.query import Coverage, QueryBatches, require_coverage
from unicoord_atlas.reference_files import load_normalization, save_normalization
from unicoord_atlas.schema import AtlasSchema

GENES = tuple(f"G{i}" for i in range(30))


def _atlas() -> tuple[AtlasSchema, Normalization, np.ndarray]:
    """Genes, normalization and counts of a small atlas whose first gene is highly expressed."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1.0, 2.0, 30), (50, 30)).astype(np.float64)
    counts[:, 0] += 40
    excluded = (counts > 0.05 * counts.sum(axis=1, keepdims=True)).any(axis=0)
    sums = counts[:, ~excluded].sum(axis=1, keepdims=True)
    fractions = (counts / sums).mean(axis=0)
    zeros = np.zeros(30)
    return AtlasSchema(gene_key="symbol", genes=GENES), Normalization(excluded, fractions, zeros, zeros), counts


def _query(counts: np.ndarray, names) -> anndata.AnnData:
    return anndata.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=list(names)))


def _batches(adata: anndata.AnnData, batch_size: int = 7) -> QueryBatches:
    schema, normalization, _ = _atlas()
    return QueryBatches(AnnDataCells(adata), schema, normalization, batch_size)


def test_a_normalization_is_the_same_bytes_each_time_and_comes_back(tmp_path):
    _, normalization, _ = _atlas()
    path, contents = tmp_path / "normalization.safetensors", set()
    for _ in range(8):
        save_normalization(path, normalization)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    found = load_normalization(path)
    for field in fields(Normalization):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(normalization, field.name))


def test_a_query_with_all_genes_is_normalized_as_scanpy_normalizes_the_atlas():
    _, _, counts = _atlas()
    reference = _query(counts.copy(), GENES)
    sc.pp.normalize_total(reference, target_sum=1e4, exclude_highly_expressed=True)
    batches = _batches(_query(counts, GENES))
    sizes = np.concatenate([batch.size_factors_n.numpy() for batch in batches])
    np.testing.assert_allclose(1e4 * counts / sizes[:, None], reference.X.toarray(), rtol=1e-5)
    assert batches.coverage.profile_share == pytest.approx(1.0)


def test_missing_genes_raise_the_size_factor_by_the_share_they_carry():
    _, normalization, counts = _atlas()
    kept = np.arange(30) >= 12
    batches = _batches(_query(counts[:, kept], np.array(GENES)[kept]))
    profile = np.where(normalization.highly_expressed_g, 0, normalization.mean_fraction_g)
    share = profile[kept].sum() / profile.sum()
    expected = counts[:, kept & ~normalization.highly_expressed_g].sum(axis=1) / share
    np.testing.assert_allclose(np.concatenate([b.size_factors_n.numpy() for b in batches]), expected, rtol=1e-6)
    assert batches.coverage.profile_share == pytest.approx(share)
    assert set(batches.coverage.missing) == set(GENES[:12])


def test_genes_outside_the_reference_never_count():
    _, _, counts = _atlas()
    more = np.concatenate([counts, np.full((50, 2), 1000.0)], axis=1)
    plain, extended = _batches(_query(counts, GENES)), _batches(_query(more, [*GENES, "X1", "X2"]))
    for one, other in zip(plain, extended, strict=True):
        assert one.size_factors_n.tolist() == other.size_factors_n.tolist()
        assert one.counts.to_dense().tolist() == other.counts.to_dense().tolist()


def test_an_empty_cell_stays_empty_and_rows_go_on_over_batches():
    _, _, counts = _atlas()
    counts[3] = 0
    batches = list(_batches(_query(counts, GENES)))
    assert np.concatenate([b.rows_n.numpy() for b in batches]).tolist() == list(range(50))
    assert batches[0].size_factors_n[3] == 0
    assert batches[0].counts.to_dense()[3].sum() == 0


def test_what_is_no_count_or_no_gene_is_refused():
    _, _, counts = _atlas()
    with pytest.raises(DataError, match="no counts"):
        _batches(_query(np.log1p(counts), GENES))
    with pytest.raises(DataError, match="no genes in common"):
        _batches(_query(counts, [f"Z{i}" for i in range(30)]))


def test_cells_that_cover_too_little_are_refused_by_name_and_bar():
    coverage = Coverage(50, num_found=2, num_reference_genes=30, profile_share=0.125, missing=("G7",))
    require_coverage(coverage, "mine.h5ad", 0.125)
    with pytest.raises(DataError, match=r"mine\.h5ad: its genes carry 12\.5% .*less than --min-coverage 0\.3 "):
        require_coverage(coverage, "mine.h5ad")


def test_cells_must_hold_what_the_reference_was_learned_from():
    counts = np.random.default_rng(0).poisson(1.0, (6, 4)).astype(np.float32)
    for values, wanted, other in ((counts, "counts", "lognorm"), (np.log1p(counts), "lognorm", "counts")):
        adata = anndata.AnnData(values, var=pd.DataFrame(index=list("abcd")))
        (block,) = AnnDataCells(adata, input=wanted).blocks(10)
        np.testing.assert_array_equal(block.data, values[values > 0])
        with pytest.raises(DataError, match="holds no"):
            AnnDataCells(adata, input=other)
