import json
from dataclasses import fields

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from references import random_cells, random_reference

from unicoord_atlas.encode import encode_batches
from unicoord_atlas.errors import DataError
from unicoord_atlas.jobs import ingest
from unicoord_atlas.loaders.picked_rows import PickedRows
from unicoord_atlas.loaders.query_cells import CellRange, open_query
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.narrower import NarrowerBatches
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.query import Coverage, QueryBatches, require_coverage
from unicoord_atlas.reference import ReferenceModel
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


def _as_dense(reference: ReferenceModel, values_ng: np.ndarray) -> torch.Tensor:
    """Means by the plain formula, of differences from the mean profile."""
    model = reference.model
    hidden = torch.from_numpy(values_ng) @ model.input_layer.weight + model.input_layer.bias
    return model.posterior_of(hidden).mean_nd


@pytest.mark.parametrize("width", [60, 25])
def test_genes_that_a_query_lacks_are_taken_to_be_as_in_the_mean_profile(width):
    """Not to be off, and neither are those that narrower batches, made for calibration, lack."""
    reference, cells = random_reference(), random_cells()
    center, model = np.linspace(0.5, 4, 60, dtype=np.float32), reference.model
    kept = np.random.default_rng(0).permutation(60)[:width]
    query = QueryBatches(AnnDataCells(cells[:, kept].copy()), reference.schema, reference.normalization)
    whole = QueryBatches(AnnDataCells(cells), reference.schema, reference.normalization)
    measured = np.isin(np.arange(60), kept)
    narrower = NarrowerBatches(whole, measured, reference.normalization, np.ones((1, 60), np.bool_))
    for batches in (query, narrower):
        rows = np.concatenate([model.normalized(batch).to_dense().numpy() for batch in batches])
        assert (rows[:, ~measured] == 0).all()
        with torch.no_grad():
            expected = _as_dense(reference, np.where(measured, rows - center, 0)) * 2 ** torch.tensor([1, 0, 0, 0])
        expected[:, 0] += 5  # time has units
        found = np.concatenate([part.mean for part in encode_batches(model, batches, reference.device)])
        np.testing.assert_allclose(found, expected, atol=0.02)  # the first layer is float16
        plain = torch.cat([model.encode(model.normalized(b), model.center(b)).mean_nd for b in batches])
        np.testing.assert_allclose(plain.detach()[:, 1:], expected[:, 1:], atol=1e-4)


def test_narrower_batches_know_what_each_source_had_measured():
    reference, cells = random_reference(), random_cells()
    whole = next(iter(QueryBatches(AnnDataCells(cells), reference.schema, reference.normalization)))
    sources, kept = np.ones((2, 60), np.bool_), np.arange(60) < 40
    sources[1, :20] = False
    (narrow,) = NarrowerBatches([whole], kept, reference.normalization, sources)
    assert narrow.measured_sg.sum(dim=1).tolist() == [40, 20]


def test_a_reference_of_before_the_centre_and_the_label_path_is_read_and_says_what_it_said(tmp_path):
    before = random_reference(old=True)
    before.save(tmp_path / "reference")
    config = tmp_path / "reference" / "config.json"
    written = json.loads(config.read_text())
    del written["network"]["centered"], written["network"]["model"]["center_input"]
    del written["network"]["label_path"], written["network"]["path_labels"], written["network"]["model"]["label_path"]
    written["format_version"] = 4
    config.write_text(json.dumps(written))
    found = ReferenceModel.load(tmp_path / "reference")
    assert found.model.center_g is None and found.model.label_path is None
    cells, lacking = random_cells(), random_cells()[:, :30].copy()
    for query in (cells, lacking):
        expected, again = (each.map(query).obsm["X_unicoord_bio"] for each in (before, found))
        np.testing.assert_array_equal(again, expected)


def test_a_reference_comes_back(tmp_path):
    before, uncentered = random_reference(), random_reference(old=True)
    before.save(tmp_path / "reference")
    found = ReferenceModel.load(tmp_path / "reference")
    expected, again, other = (each.map(random_cells()).obsm["X_unicoord"] for each in (before, found, uncentered))
    np.testing.assert_array_equal(again, expected)
    assert np.abs(other - expected).max() > 0.1


def test_cells_of_an_atlas_are_mapped_as_the_sources_that_it_was_made_of(tmp_path):
    reference = random_reference()
    facts = {"coverages": (0.2,), "coverage_temperatures": {"cell_type": (4.0,)}, "temperatures": {"cell_type": 1.0}}
    calibration = reference.config.calibration.model_copy(update=facts)
    reference.config = reference.config.model_copy(update={"calibration": calibration})
    whole, lacking = random_cells(), random_cells()[:, ::2].copy()
    for name, cells in (("whole", whole), ("lacking", lacking)):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [str(tmp_path / f"{name}.h5ad") for name in ("whole", "lacking")]
    ingest.run(ingest.IngestOptions(files, tmp_path / "atlas.zarr", shuffle=True))

    def mapped(path, part=lambda cells: cells):
        with open_query(path) as cells:
            batches = QueryBatches(part(cells), reference.schema, reference.normalization, batch_size=7)
            parts = list(reference.annotate(batches, batches.measured_g))
            table = [np.hstack([each.bio, each.probabilities["cell_type"]]) for each in parts]
            return pd.DataFrame(np.concatenate(table), index=cells.obs.index[: len(batches)])

    alone = {name: mapped(tmp_path / f"{name}.h5ad") for name in ("whole", "lacking")}
    expected = pd.concat([table.rename(lambda cell, name=name: f"{name}:{cell}") for name, table in alone.items()])
    found = mapped(tmp_path / "atlas.zarr")
    assert len({cell.partition(":")[0] for cell in found.index[:7]}) == 2  # a minibatch has cells of both
    np.testing.assert_allclose(found, expected.loc[found.index], rtol=1e-5, atol=1e-6)
    some = mapped(tmp_path / "atlas.zarr", lambda cells: CellRange(cells, 20, 50))
    np.testing.assert_array_equal(some, found.iloc[20:50])
    picked = mapped(tmp_path / "atlas.zarr", lambda cells: PickedRows(cells, [50, 3, 4]))
    np.testing.assert_array_equal(picked, found.iloc[[50, 3, 4]])
