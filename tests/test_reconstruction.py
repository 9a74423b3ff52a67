"""evaluate reconstruction against numpy on dense cells."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from cells import counts_of_types
from typer.testing import CliRunner

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.jobs import evaluate_reconstruction, ingest
from unicoord_atlas.jobs.cli import app
from unicoord_atlas.jobs.evaluate_reconstruction import EvaluateReconstructionOptions
from unicoord_atlas.jobs.fit import fit
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.reference import ReferenceModel

SETTINGS = [
    "model.hidden=[24,16]",
    "latent.unsupervised_continuous=4",
    "train.epochs=20",
    "train.batch_size=32",
    "train.learning_rate=3e-3",
    "train.warmup_steps=0",
]


def some_cells() -> anndata.AnnData:
    counts, types = counts_of_types(800, 200)
    obs = pd.DataFrame({"cell_type": np.array(["B", "T", "NK"])[types]}, index=[f"c{i}" for i in range(800)])
    var = pd.DataFrame(index=[f"g{i}" for i in range(counts.shape[1])])
    return anndata.AnnData(sp.csr_matrix(counts), obs, var)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reference, and cells that it was not trained on and that lack some of its genes."""
    folder = tmp_path_factory.mktemp("reconstruction")
    cells = some_cells()
    model = fit(cells[:500].copy(), discrete=["cell_type"], settings=SETTINGS)
    model.save(folder / "reference")
    query = cells[500:, 2:].copy()
    query.obs.loc["c500", "cell_type"] = ""
    query.write_h5ad(folder / "query.h5ad")
    return folder, model, query


def dense_truth(model, query):
    """Everything from (n, g) matrices."""
    normalization = model.normalization
    counts = np.zeros((query.n_obs, len(model.schema.genes)), np.float64)
    counts[:, [model.schema.genes.index(name) for name in query.var_names]] = query.X.toarray()
    seen = np.isin(model.schema.genes, query.var_names)
    block = sp.csr_matrix(counts)
    kept = normalization.kept_sums(block.indptr, block.indices, block.data)
    factors = normalization.query_size_factors(kept, seen)
    values = np.log1p(1e4 * counts / np.where(factors > 0, factors, 1)[:, None])
    mapped = model.map(query, probabilities=True)
    categories = next(label for label in model.config.labels if label.name == "cell_type").categories
    one_hot = np.eye(len(categories))[np.asarray(mapped.obsm["X_unicoord_cell_type"]).argmax(axis=1)]
    latent = np.concatenate([one_hot, mapped.obsm["X_unicoord"]], axis=1).astype(np.float32)
    with torch.no_grad():
        decoded = model.model.decode(torch.from_numpy(latent)).numpy().astype(np.float64)
    return values[:, seen], decoded[:, seen], normalization.mean_g[seen]


def test_tables_are_those_of_dense_cells(folder, tmp_path):
    folder, model, query = folder
    out = tmp_path / "out"
    options = EvaluateReconstructionOptions(folder / "query.h5ad", folder / "reference", out, by="cell_type")
    result = evaluate_reconstruction.run(options)
    values, decoded, profile = dense_truth(model, query)
    errors, means = ((values - decoded) ** 2).sum(axis=1), ((values - profile) ** 2).sum(axis=1)
    cells = pd.read_csv(out / "cells.csv", index_col=0)
    assert list(cells.index) == list(query.obs_names)
    np.testing.assert_allclose(cells["error"], errors, rtol=1e-2)  # mapped coordinates: the first layer in float16
    np.testing.assert_allclose(cells["mean_profile_error"], means, rtol=1e-4)
    assert result["explained"] == pytest.approx(1 - errors.sum() / means.sum(), abs=2e-3)
    assert 0.2 < result["explained"] < 1
    genes = pd.read_csv(out / "genes.csv", index_col=0)
    assert list(genes.index) == list(query.var_names)
    np.testing.assert_allclose(genes["mean"], values.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(genes["variance"], values.var(axis=0), rtol=1e-3, atol=1e-6)
    varying = [number for number in range(values.shape[1]) if values[:, number].std() and decoded[:, number].std()]
    wanted = [np.corrcoef(values[:, number], decoded[:, number])[0, 1] for number in varying]
    np.testing.assert_allclose(genes["correlation"].to_numpy()[varying], wanted, atol=0.01)
    groups = pd.read_csv(out / "groups.csv", index_col=0)
    wanted = query.obs["cell_type"].astype(str).replace("", "(unlabelled)").value_counts().to_dict()
    assert groups["cells"].to_dict() == wanted and len(wanted) == 4
    members = (query.obs["cell_type"] == "T").to_numpy()
    assert groups.loc["T", "error"] == pytest.approx(errors[members].mean(), rel=1e-2)
    assert json.loads((out / "reconstruction.json").read_text())["cells"] == 300
    assert (out / "reconstruction.png").stat().st_size > 10_000


def test_without_matplotlib_the_tables_are_written(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder, _, _ = folder
    out = tmp_path / "out"
    options = EvaluateReconstructionOptions(folder / "query.h5ad", folder / "reference", out)
    evaluate_reconstruction.run(options)
    tables = {"reconstruction.json", "genes.csv", "cells.csv", "groups.csv", "manifest.json"}
    assert {path.name for path in out.iterdir()} == tables
    assert "no figures: matplotlib is not installed; pip install" in capsys.readouterr().err


def test_a_model_is_saved_whole_and_never_over_another(folder, tmp_path):
    _, model, query = folder
    model.save(str(tmp_path / "new" / "reference"))  # as a user of `fit` would: no directory is there yet
    again = ReferenceModel.load(tmp_path / "new" / "reference").map(query)
    np.testing.assert_array_equal(again.obsm["X_unicoord"], model.map(query).obsm["X_unicoord"])
    with pytest.raises(DataError, match=r"reference holds a reference already"):
        model.save(tmp_path / "new" / "reference")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["reference"]


def test_command_and_refusals(folder, tmp_path):
    folder, _, query = folder
    words = ["evaluate", "reconstruction", str(folder / "query.h5ad"), "--reference", str(folder / "reference")]
    ended = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--json"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["genes"] == query.n_vars
    options = EvaluateReconstructionOptions(folder / "query.h5ad", folder / "reference", tmp_path / "no")
    with pytest.raises(UsageError, match=r"--by organ: obs has no such column; it has: cell_type"):
        evaluate_reconstruction.run(replace(options, by="organ"))
    query[:0].copy().write_h5ad(tmp_path / "none.h5ad")
    with pytest.raises(DataError, match="holds no cells"):
        evaluate_reconstruction.run(replace(options, cells=tmp_path / "none.h5ad"))
    assert not (tmp_path / "no").exists()


def test_the_mean_profile_is_of_the_cells_that_measured_a_gene(tmp_path):
    rng = np.random.default_rng(0)
    for name, genes, n in (("a", range(100), 40), ("b", range(30, 130), 90)):
        cells = anndata.AnnData(sp.csr_matrix(rng.poisson(9.0, (n, 100)).astype(np.float32)))
        cells.obs_names = [f"{name}{number}" for number in range(n)]
        cells.var_names = [f"G{number}" for number in genes]
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    ingest.run(ingest.IngestOptions([str(tmp_path / "a.h5ad"), str(tmp_path / "b.h5ad")], tmp_path / "atlas.zarr"))
    store = open_store(tmp_path / "atlas.zarr")
    values = store.to_anndata().to_memory().X.toarray()
    expected = []
    for number in range(store.n_vars):
        measured = np.repeat([source.measured(store.n_vars)[number] for source in store.schema.sources], [40, 90])
        kept = values[measured] / store.size_factors[measured, None] * 1e4
        expected.append(np.log1p(kept[:, number]).mean())
    reference = SimpleNamespace(schema=store.schema, normalization=store.normalization)
    np.testing.assert_allclose(evaluate_reconstruction._mean_profile(reference), expected, rtol=1e-5)
