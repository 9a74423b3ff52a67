import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unicoord_atlas.errors import ConfigError, DataError, UsageError
from unicoord_atlas.jobs.ingest import IngestOptions, run
from unicoord_atlas.loaders.obs_table import join_obs
from unicoord_atlas.loaders.store import open_store

FORMS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}


def table(counts, genes, **obs):
    cells = pd.DataFrame(obs, index=[f"c{i}" for i in range(counts.shape[0])])
    return anndata.AnnData(counts, obs=cells, var=pd.DataFrame(index=pd.Index(genes, dtype=object)))


def write_source(path, counts, genes, form="csr", **obs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        table(FORMS[form](counts), genes, **obs).write_h5ad(path)
    return path


def in_memory(sources):
    """The plain way: anndata.concat of tables whose duplicated genes are summed, then scanpy, all in float64."""
    parts = {}
    for name, (counts, genes, types) in sorted(sources.items()):
        summed = pd.DataFrame(counts.astype(float), columns=genes).T.groupby(level=0, sort=False).sum().T
        part = table(summed.to_numpy(), summed.columns, cell_type=types)
        part.obs_names = [f"{name}:{cell}" for cell in part.obs_names]
        parts[name] = part
    joined = anndata.concat(parts, join="outer", label="source", fill_value=0.0)
    normalized = joined.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some cells have zero counts")
        sc.pp.normalize_total(normalized, target_sum=1e4, exclude_highly_expressed=True)
    sc.pp.log1p(normalized)
    return joined, normalized


def log_normalized(stored):
    factors = stored.obs["size_factor"].to_numpy()[:, None]
    counts = stored.X.toarray().astype(float)
    return np.log1p(counts * np.divide(1e4, factors, out=np.ones_like(factors), where=factors > 0))


@st.composite
def atlases(draw):
    names = draw(st.lists(st.sampled_from(["a", "b", "c.d", "e f"]), min_size=1, max_size=3, unique=True))
    sources = {}
    for name in names:
        genes = draw(st.lists(st.sampled_from([f"G{i}" for i in range(9)]), min_size=1, max_size=12))
        cells = draw(st.integers(1, 6))
        values = st.sampled_from([0, 0, 0, 1, 2, 30, 700])
        counts = draw(
            st.lists(st.lists(values, min_size=len(genes), max_size=len(genes)), min_size=cells, max_size=cells)
        )
        types = draw(st.lists(st.sampled_from(["B", "T", "unknown", None]), min_size=cells, max_size=cells))
        sources[name] = (np.array(counts, np.float32), genes, pd.Categorical(types, ["B", "T", "unknown"]))
    return sources


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(atlases(), st.sampled_from([1, 2, 100]), st.sampled_from(list(FORMS)))
def test_ingest_equals_concat_and_scanpy_in_memory(tmp_path_factory, sources, rows_per_block, form):
    folder = tmp_path_factory.mktemp("atlas")
    out = folder / "out.zarr"
    for name, (counts, genes, types) in sources.items():
        write_source(folder / f"{name}.h5ad", counts, genes, form, cell_type=types)
    run(IngestOptions([str(folder)], out, labels=("cell_type",), rows_per_block=rows_per_block, threads=2))

    stored = anndata.read_zarr(out)
    joined, normalized = in_memory(sources)
    assert list(stored.obs_names) == list(joined.obs_names)
    assert list(stored.obs["source"]) == list(joined.obs["source"])
    assert list(stored.var_names) == list(dict.fromkeys(g for name in sorted(sources) for g in sources[name][1]))
    assert (stored.X.toarray() == joined[:, stored.var_names].X).all()
    labels = [None if value in ("unknown", None) or pd.isna(value) else value for value in joined.obs["cell_type"]]
    assert [None if pd.isna(value) else value for value in stored.obs["cell_type"]] == labels
    expected = normalized[:, stored.var_names].X
    assert np.allclose(log_normalized(stored), expected, rtol=1e-6, atol=0)
    facts = open_store(out).normalization
    assert np.allclose(facts.mean_g, expected.mean(0), rtol=1e-12, atol=1e-12)
    assert np.allclose(facts.variance_g, expected.var(0), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def pbmc(shared_data, tmp_path_factory):
    names = ["pbmc8k_raw_labelled", "pbmc3k_raw_labelled", "pbmc4k_soupx"]
    paths = [shared_data / name / f"{name}.h5ad" for name in names]
    out = tmp_path_factory.mktemp("pbmc") / "atlas.zarr"
    options = IngestOptions(
        [str(path) for path in paths], out, ("cell_type", "dataset"), label_map=shared_data / "pbmc_labels.csv"
    )
    return run(options), out, {path.stem: anndata.read_h5ad(path) for path in sorted(paths)}


def test_real_atlas_equals_concat_and_scanpy(pbmc):
    _, out, parts = pbmc
    stored = anndata.read_zarr(out)
    joined = anndata.concat(parts, join="outer", label="source", fill_value=0)
    joined = joined[:, stored.var_names].copy()
    joined.X = sp.csr_matrix(joined.X, dtype=np.float64)
    assert (stored.X != joined.X).nnz == 0
    assert stored.X.data.dtype == np.uint16
    sc.pp.normalize_total(joined, target_sum=1e4, exclude_highly_expressed=True)
    sc.pp.log1p(joined)
    factors = np.repeat(stored.obs["size_factor"].to_numpy(), np.diff(stored.X.indptr))
    joined.X.sort_indices()
    assert np.allclose(np.log1p(1e4 * stored.X.data.astype(float) / factors), joined.X.data, rtol=1e-6, atol=0)
    facts = open_store(out).normalization
    mean = np.asarray(joined.X.mean(axis=0)).ravel()
    assert np.allclose(facts.mean_g, mean, rtol=1e-9)
    assert np.allclose(facts.variance_g, np.asarray(joined.X.power(2).mean(axis=0)).ravel() - mean**2, atol=1e-9)
    assert np.isclose(facts.mean_fraction_g[~facts.highly_expressed_g].sum(), 1)


def test_real_atlas_has_the_mapped_labels_and_measured_genes(pbmc, shared_data):
    result, out, parts = pbmc
    lines = pd.read_csv(shared_data / "pbmc_labels.csv").set_index(["source", "label"])
    stored = anndata.read_zarr(out)
    for name, part in parts.items():
        column = "cell_type" if "cell_type" in part.obs else "cell_type_scvi"
        expected = [lines["cell_type"].get((name, value)) for value in part.obs[column].astype(str)]
        found = stored.obs.loc[stored.obs["source"] == name, "cell_type"]
        assert [None if pd.isna(value) else value for value in found] == expected
    schema = open_store(out).schema
    for source, measured in zip(schema.sources, schema.measured_sg(), strict=True):
        assert {g for g, m in zip(schema.genes, measured, strict=True) if m} == set(parts[source.name].var_names)
    assert [row["genes"] for row in result["sources"]] == [32_738, 33_694, 33_694]
    assert result["labels"][0]["unlabelled"] == 566


def test_fixed_genes_lose_counts_that_are_told(tmp_path):
    path = write_source(tmp_path / "a.h5ad", np.array([[1, 2, 4], [0, 8, 16]], np.float32), ["A", "B", "C"])
    (tmp_path / "genes.txt").write_text("C\nX\nA\n")
    result = run(IngestOptions([str(path)], tmp_path / "o.zarr", genes=str(tmp_path / "genes.txt")))
    stored = anndata.read_zarr(tmp_path / "o.zarr")
    assert stored.X.toarray().tolist() == [[4, 0, 1], [16, 0, 0]]
    row = result["sources"][0]
    assert (row["genes_lost"], row["genes_not_measured"], row["counts"], row["counts_lost"]) == (1, 1, 21, 10)
    assert open_store(tmp_path / "o.zarr").schema.measured_sg().tolist() == [[True, False, True]]


def test_min_cells_keeps_genes_that_are_highly_expressed_in_few_cells(tmp_path):
    counts = np.ones((4, 40), np.float32)
    counts[0, 0] = counts[:2, 1] = 100
    path = write_source(tmp_path / "a.h5ad", counts, [f"G{i}" for i in range(40)])
    for min_cells, expected in ((1, {"G1": 2, "G0": 1}), (2, {"G1": 2}), (3, {})):
        result = run(IngestOptions([str(path)], tmp_path / f"{min_cells}.zarr", min_cells=min_cells))
        assert result["highly_expressed"] == expected
        factors = open_store(tmp_path / f"{min_cells}.zarr").size_factors
        assert factors[0] == counts[0].sum() - 100 * len(expected)


def test_log_normalized_input_is_taken_as_it_is(tmp_path):
    values = np.log1p(np.array([[1, 0, 3.5], [0, 2, 8]], np.float32))
    path = write_source(tmp_path / "a.h5ad", values, ["A", "B", "C"])
    run(IngestOptions([str(path)], tmp_path / "o.zarr", input="lognorm"))
    store = open_store(tmp_path / "o.zarr")
    stored = anndata.read_zarr(tmp_path / "o.zarr").X
    assert stored.dtype == np.float32
    assert (stored.toarray() == values).all()
    assert store.normalization.log_input
    assert np.allclose(store.normalization.mean_g, values.mean(0))
    amounts = np.expm1(values)
    assert np.allclose(
        store.normalization.mean_fraction_g, (amounts / amounts.sum(1, keepdims=True)).mean(0), rtol=1e-6
    )


def test_dry_run_tells_all_and_writes_nothing(tmp_path):
    path = write_source(tmp_path / "a.h5ad", np.eye(3, dtype=np.float32), ["A", "B", "C"], cell_type=["x", "y", "NA"])
    wet = run(IngestOptions([str(path)], tmp_path / "o.zarr", labels=("cell_type",)))
    before = sorted(tmp_path.rglob("*"))
    dry = run(IngestOptions([str(path)], None, labels=("cell_type",), dry_run=True))
    assert sorted(tmp_path.rglob("*")) == before
    assert dry == {**wet, "out": None}


def test_finished_store_is_left_and_another_atlas_is_refused(tmp_path):
    path = write_source(tmp_path / "a.h5ad", np.eye(3, dtype=np.float32), ["A", "B", "C"])
    options = IngestOptions([str(path)], tmp_path / "o.zarr")
    run(options)
    before = {file: file.read_bytes() for file in (tmp_path / "o.zarr").rglob("*") if file.is_file()}
    assert run(options)["already_done"]
    with pytest.raises(DataError, match=r"o.zarr exists, made from other config"):
        run(IngestOptions([str(path)], tmp_path / "o.zarr", min_cells=2))
    assert before == {file: file.read_bytes() for file in (tmp_path / "o.zarr").rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (-1, {}, r"X: cell 'c2' \(row 2\), gene 'G1': -1 is negative, so these are no counts; .*--layer"),
        (np.nan, {}, r"cell 'c2' \(row 2\), gene 'G1': nan is no number; mend the file"),
        (np.inf, {}, r"cell 'c2' \(row 2\), gene 'G1': inf is no number"),
        (0.5, {"layer": "X"}, r"cell 'c2' \(row 2\), gene 'G1': 0.5 is no whole number; .*--input lognorm"),
        (2.0**33, {}, r"cell 'c2' \(row 2\), gene 'G1': 8.58993e\+09 is over 4294967295, too large"),
        (-0.5, {"layer": "X", "input": "lognorm"}, "-0.5 is negative, so these are no log-normalized values"),
        (0.5, {}, "no counts: X holds log-normalized values"),
        (1, {"labels": ("tissue",)}, "no obs column 'tissue'.*--allow-missing-labels"),
        (1, {"genes": "GENES"}, "no genes in common: it has G0, G1, G2"),
        (1, {"gene_key": "ensembl"}, "most of its genes have no Ensembl id"),
        (1, {"genes": "nowhere.txt"}, "nowhere.txt: no such file"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_bad_input_is_refused_by_name_and_nothing_is_written(tmp_path, value, options, message, form):
    usual = 0.7 if options.get("input") == "lognorm" else 1.0
    counts = np.full((5, 3), usual)
    counts[2, 1] = value
    write_source(tmp_path / "a.h5ad", np.full((2, 3), usual), ["G0", "G1", "G2"])
    write_source(tmp_path / "b.h5ad", counts, ["G0", "G1", "G2"], form)
    (tmp_path / "genes.txt").write_text("CD3E\nCD4\n")
    if options.get("genes") == "GENES":
        options = {"genes": str(tmp_path / "genes.txt")}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message) as error:
        run(IngestOptions([str(tmp_path)], tmp_path / "o.zarr", rows_per_block=2, **options))
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_cells_of_one_name_are_refused(tmp_path):
    cells = table(np.eye(2), ["A", "B"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Observation names are not unique")
        cells.obs_names = ["x", "x"]
        cells.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match=r"a.h5ad: two cells are named 'x'; .*obs_names_make_unique"):
        run(IngestOptions([str(tmp_path / "a.h5ad")], tmp_path / "o.zarr"))


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="--out is missing"):
        IngestOptions(["a"], None)
    with pytest.raises(ConfigError, match="min_cells must be 1 or more, got 0"):
        IngestOptions(["a"], Path("o"), min_cells=0)


def test_obs_columns_are_joined_by_kind():
    one = pd.DataFrame({"n": [1, 2], "flag": [True, False], "kind": ["x", None], "same": [1.5, 2.5]}, index=["a", "b"])
    two = pd.DataFrame({"kind": [3], "same": [7], "maybe": pd.array([None], "Int64")}, index=["a"])
    joined = join_obs([one, two], ["s", "t"])
    assert list(joined.index) == ["s:a", "s:b", "t:a"]
    assert list(joined["n"])[:2] == [1, 2]
    assert np.isnan(joined["n"].iloc[2])
    assert list(joined["flag"].astype(object)) == [True, False, pd.NA]
    assert list(joined["kind"].astype(object).where(joined["kind"].notna(), None)) == ["x", None, "3"]
    assert list(joined["same"]) == [1.5, 2.5, 7.0]
    assert joined["maybe"].isna().all()


def test_var_names_genes_by_the_other_key(tmp_path):
    (tmp_path / "table.tsv").write_text("ENSG00000000001\tA\nENSG00000000002\tC\n")
    path = write_source(tmp_path / "a.h5ad", np.eye(2), ["A", "B"])
    run(IngestOptions([str(path)], tmp_path / "o.zarr", gene_table=tmp_path / "table.tsv"))
    assert list(anndata.read_zarr(tmp_path / "o.zarr").var["ensembl"]) == ["ENSG00000000001", ""]


def test_own_columns_of_a_source_step_aside(tmp_path):
    path = write_source(tmp_path / "a.h5ad", np.eye(2), ["A", "B"], source=["u", "v"], size_factor=[5.0, 6.0])
    run(IngestOptions([str(path)], tmp_path / "o.zarr", labels=("source",)))
    obs = anndata.read_zarr(tmp_path / "o.zarr").obs
    assert list(obs["source"]) == ["a", "a"]
    assert list(obs["source_in_file"]) == ["u", "v"]
    assert list(obs["size_factor_in_file"]) == [5, 6]
    run(IngestOptions([str(tmp_path / "o.zarr")], tmp_path / "again.zarr"))  # an atlas's own columns step aside, too
    obs = anndata.read_zarr(tmp_path / "again.zarr").obs
    assert list(obs["source_in_file"]) == ["u", "v"]
    assert list(obs["source_in_file_in_file"]) == ["a", "a"]


def test_labels_are_told_together_or_one_at_a_time(tmp_path):
    from typer.testing import CliRunner

    from unicoord_atlas.jobs.cli import app

    path = write_source(tmp_path / "a.h5ad", np.eye(3), ["A", "B", "C"], kind=["x", "y", "x"], site=["p", "p", "q"])
    for number, words in enumerate((["--label", "kind,site"], ["--label", "kind", "--label", "site"])):
        out = tmp_path / f"atlas{number}.zarr"
        assert CliRunner().invoke(app, ["ingest", str(path), "--out", str(out), *words]).exit_code == 0
        assert {"kind", "site"} <= {label.name for label in open_store(out).schema.labels}
