import filecmp
import os
import signal
import subprocess
import sys
import time
import zlib

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unicoord_atlas import count_model
from unicoord_atlas.blueprint import NUM_DATASETS, ORGANS, PLATFORMS, datasets_of, fill_means, split_cells
from unicoord_atlas.count_model import CellStates, count_models, depth_of_genes, draw_counts, gene_slots
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.jobs import simulate
from unicoord_atlas.jobs.simulate import SimulateOptions
from unicoord_atlas.loaders.h5ad_writer import CsrWriter, deflate

COLUMNS = [
    "cell_type", "cell_class", "organ", "dataset", "donor", "seq_tech", "gradient_1", "gradient_2", "true_cell_type",
]  # fmt: skip


def read_all(out):
    return anndata.concat([anndata.read_h5ad(path) for path in sorted(out.glob("*.h5ad"))])


def one_kind(mean_g, num_cells, depth=1.0, typical_depth=1.0, reads=1.0, efficiency=1.0, activity=1.0):
    """Models and cells of one kind and donor, where even genes have the one programme."""
    num_genes = len(mean_g)
    efficiency_dg = np.full((1, num_genes), efficiency, np.float32)
    programme_g = (np.arange(num_genes) % 2).astype(np.int16)
    rng = np.random.default_rng(0)
    models = count_models([mean_g.astype(np.float32)], [typical_depth], [reads], efficiency_dg, programme_g, rng)
    zeros = np.zeros(num_cells, np.int64)
    activity_np = np.tile(np.array([activity, 1], np.float32), (num_cells, 1))
    return models, CellStates(zeros, zeros, np.full(num_cells, depth, np.float32), activity_np)


def drawn(models, cells, key=1, first=0):
    rows = []
    for lengths, genes, counts in draw_counts(models, cells, key, first):
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        rows.append(sp.csr_matrix((counts.copy(), genes.copy(), indptr), (len(lengths), len(models.programme_g))))
    return sp.vstack(rows, format="csr")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated") / "atlas"
    simulate.run(SimulateOptions(900, out, "400", organs=5))
    return out


@pytest.mark.parametrize("typical_depth", [1.0, 1e-6])  # drawn by themselves, and along the line
def test_counts_have_the_mean_and_variance_of_the_model(typical_depth):
    mean_g = np.array([0.02, 0.05, 0.1, 0.2, 0.5, 1, 4, 20]) if typical_depth == 1 else np.full(8, 0.04)
    counts = drawn(*one_kind(mean_g, 40_000, depth=0.8, typical_depth=typical_depth, efficiency=0.9, activity=0.5))
    expected_g = mean_g * 0.8 * 0.9 * np.where(np.arange(8) % 2, 1, 0.5)
    dense = counts.toarray()
    error_g = 4 * np.sqrt((expected_g + expected_g**2) / len(dense))
    assert (abs(dense.mean(axis=0) - expected_g) < error_g + 0.01 * expected_g).all()
    np.testing.assert_allclose(dense.var(axis=0), expected_g + expected_g**2, rtol=0.12)


def test_counts_are_geometric():
    counts = drawn(*one_kind(np.full(4, 2.0), 50_000)).toarray().ravel()
    observed = np.bincount(counts.astype(int), minlength=12)[:12] / len(counts)
    np.testing.assert_allclose(observed, (2 / 3) ** np.arange(12) / 3, atol=4e-3)


def test_reads_multiply_molecules():
    molecules = drawn(*one_kind(np.full(50, 1.0), 2000))
    reads = drawn(*one_kind(np.full(50, 1.0), 2000, reads=4.0))
    assert reads.nnz == molecules.nnz and (reads.indices == molecules.indices).all()
    # Rounding up adds a half, about.
    assert reads.sum() / molecules.sum() == pytest.approx(4 + 0.5 * molecules.nnz / molecules.sum(), rel=0.03)


def test_a_cell_depends_on_its_number_only(monkeypatch):
    models, cells = one_kind(np.geomspace(0.01, 3, 300), 400)
    together = drawn(models, cells)
    parts = [drawn(models, CellStates(*(a[s : s + 7] for a in cells)), first=s) for s in range(0, 400, 7)]
    assert (together != sp.vstack(parts)).nnz == 0
    monkeypatch.setattr(count_model, "_ENTRIES_AT_ONCE", 50)
    assert (together != drawn(models, cells)).nnz == 0
    assert together.has_canonical_format and len(np.unique(together.toarray(), axis=0)) == 400


def test_slots_are_in_proportion_to_rates():
    rate_g = np.random.default_rng(0).exponential(1, 500) ** 3
    slots = [np.bincount(gene_slots(rate_g, np.random.default_rng(seed)), minlength=500) for seed in range(200)]
    expected_g = 2 * 500 * rate_g / rate_g.sum()
    assert all(s.sum() == 2 * 500 and (abs(s - expected_g) <= 1).all() for s in slots)
    np.testing.assert_allclose(np.mean(slots, axis=0), expected_g, atol=0.15)


def test_depth_shows_the_wanted_number_of_genes():
    mean_g = np.random.default_rng(0).lognormal(-2, 2, 5000).astype(np.float32)
    wanted_n = np.array([100.0, 500, 2000])
    for wanted, depth in zip(wanted_n, depth_of_genes(mean_g, wanted_n), strict=True):
        assert (mean_g * depth / (1 + mean_g * depth)).sum() == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("compress", [True, False])
def test_writer_writes_what_anndata_reads(tmp_path, compress):
    rng = np.random.default_rng(0)
    rows = sp.random(3000, 500, 0.1, format="csr", rng=rng, dtype=np.float32)
    rows.data = rng.geometric(0.5, rows.nnz).astype(np.float32) * rng.choice([1, 1000], rows.nnz)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        writer = CsrWriter(file.create_group("X"), 500, compress)
        for start in range(0, 3000, 700):
            part = rows[start : start + 700]
            writer.append(np.diff(part.indptr), part.indices, part.data.astype(np.float32))
        writer.finish()
        read = anndata.io.read_elem(file["X"])
        assert file["X/data"].compression == ("gzip" if compress else None)
    assert read.shape == rows.shape and read.dtype == np.float32 and (read != rows).nnz == 0
    assert not compress or (tmp_path / "x.h5").stat().st_size < 0.6 * 8 * rows.nnz


@pytest.mark.parametrize("values", [[0, 0, 0], [1, 300, 70_000, -1], [0, 1 << 24], list(range(65_536)), [7] * 65_536])
def test_streams_of_shuffled_bytes(values):
    """zlib itself checks the sum that is put together here."""
    values = np.array(values, "<i4")
    for noise in ((), (0,), (2, 3)):
        shuffled = values.view(np.uint8).reshape(-1, 4).T.tobytes()
        assert zlib.decompress(deflate(values, noise)) == shuffled


def test_files_are_what_anndata_writes(atlas):
    paths = sorted(atlas.glob("*.h5ad"))
    assert [path.stem for path in paths] == sorted(organ.replace(" ", "_") for organ in ORGANS[:5])
    for path in paths:
        cells = anndata.read_h5ad(path)
        assert list(cells.obs) == COLUMNS
        assert cells.X.dtype == np.float32 and cells.X.has_canonical_format and cells.X.data.min() >= 1
        assert (cells.X.data == np.rint(cells.X.data)).all()
        assert cells.n_vars == 400 and cells.obs_names.is_unique
        assert cells.obs["true_cell_type"].notna().all() and set(cells.obs["organ"]) == {path.stem.replace("_", " ")}
    assert read_all(atlas).n_obs == 900


def test_same_seed_writes_the_same_bytes_in_any_number_of_threads(atlas, tmp_path, monkeypatch):
    again, other = tmp_path / "again", tmp_path / "other"
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    simulate.run(SimulateOptions(900, again, "400", organs=5))
    simulate.run(SimulateOptions(900, other, "400", organs=5, seed=1))
    names = sorted(path.name for path in atlas.iterdir())
    assert filecmp.cmpfiles(atlas, again, names, shallow=False) == (names, [], [])
    assert read_all(other).X.nnz != read_all(atlas).X.nnz


def test_organs_datasets_donors_and_platforms_are_those_of_heca():
    assert len(ORGANS) == len(set(ORGANS)) == 38
    datasets = [number for organ in range(38) for number in datasets_of(organ)]
    assert datasets == list(range(NUM_DATASETS)) and NUM_DATASETS == 116
    assert sum(platform.share for platform in PLATFORMS) == pytest.approx(1)
    cells = split_cells(1_000_000, 38, np.random.default_rng(0))
    assert sum(cells) == 1_000_000 and min(cells) >= 1 and max(cells) > 3 * min(cells)


def test_labels_are_missing_and_else_true(atlas):
    obs = read_all(atlas).obs
    known = obs["cell_type"].notna()
    assert 0.02 < 1 - known.mean() < 0.3
    assert (obs.loc[known, "cell_type"].astype(str) == obs.loc[known, "true_cell_type"].astype(str)).all()
    assert (obs.groupby("true_cell_type", observed=True)["cell_class"].nunique() == 1).all()
    assert (obs.groupby("donor", observed=True)["dataset"].nunique() == 1).all()
    assert (obs.groupby("dataset", observed=True)["seq_tech"].nunique() == 1).all()


def test_means_of_real_cells_are_taken(tmp_path):
    real = sp.csr_matrix(np.random.default_rng(0).poisson(np.geomspace(0.05, 20, 200), (300, 200)).astype(np.float32))
    genes = [f"G{number}" for number in range(200)]
    anndata.AnnData(real, var=pd.DataFrame(index=genes)).write_h5ad(tmp_path / "real.h5ad")
    simulate.run(SimulateOptions(800, tmp_path / "like", str(tmp_path / "real.h5ad"), organs=2))
    made = read_all(tmp_path / "like")
    assert list(made.var_names) == genes
    means = [np.log(np.asarray(x.mean(axis=0)).ravel() + 1e-3) for x in (real, made.X)]
    assert np.corrcoef(*means)[0, 1] > 0.7


def test_genes_that_real_cells_lack_get_means_of_the_lower_half():
    sums = np.array([1.0, 2, 3, 100, np.nan, np.nan])
    filled = fill_means(sums, np.random.default_rng(0))
    assert filled.sum() == pytest.approx(4000) and set(filled[4:] / filled[0]) <= {1.0, 2.0, 3.0}


def test_gene_list_of_heca_is_taken_in_its_order(tmp_path, shared_data):
    path = shared_data / "heca_v1" / "total_gene_list_43878.txt"
    simulate.run(SimulateOptions(60, tmp_path / "heca", str(path), organs=2))
    made = anndata.read_h5ad(tmp_path / "heca" / "adipose.h5ad")
    listed = pd.read_csv(path, sep="\t")
    assert list(made.var_names) == list(listed["Gene Symbol"])
    assert made.n_vars == 43_878 and made.var["ensembl"].iloc[0] == listed["Ensembl ID"].iloc[0]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"genes": None}, UsageError, "--genes is missing"),
        ({"genes": "50"}, UsageError, "50 are too few"),
        ({"genes": "absent.txt"}, DataError, "absent.txt"),
        ({"organs": 39}, UsageError, "--organs 39: must be in 1..38"),
        ({"cells": 3}, UsageError, "--cells 3: fewer than --organs 5"),
        ({"seed": -1}, UsageError, "--seed -1"),
        ({"genes_detected": 300}, UsageError, "--genes-detected 300: must be in 1..200"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        simulate.run(SimulateOptions(**{"cells": 100, "out": tmp_path / "out", "genes": "400", "organs": 5, **changes}))
    assert list(tmp_path.iterdir()) == []


def test_types_are_as_hard_to_tell_apart_as_promised(tmp_path):
    """Logistic regression on 50 components reaches a macro-F1 of 0.80-0.92, nearest centroids 0.05 less or worse."""
    simulate.run(SimulateOptions(3000, tmp_path / "atlas", "43878", seed=11))
    cells = read_all(tmp_path / "atlas")
    cells = cells[np.random.default_rng(0).permutation(cells.n_obs)].copy()
    cells.X = cells.X.astype(np.float32)
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.highly_variable_genes(cells, n_top_genes=3000)
    points = PCA(50, random_state=0).fit_transform(cells[:, cells.var["highly_variable"]].X.toarray())
    types = cells.obs["true_cell_type"].astype(str).to_numpy()
    scores = []
    for model in (make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), NearestCentroid()):
        predicted = model.fit(points[600:], types[600:]).predict(points[:600])
        scores.append(f1_score(types[:600], predicted, average="macro"))
    assert 0.80 <= scores[0] <= 0.92, scores
    assert scores[1] <= scores[0] - 0.05, scores


def test_one_organ_alone_has_types(tmp_path):
    simulate.run(SimulateOptions(300, tmp_path / "atlas", "400", organs=1))
    cells = read_all(tmp_path / "atlas")
    assert cells.obs["true_cell_type"].nunique() > 1
    assert cells.obs["organ"].nunique() == 1


def test_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path):
    whole, killed, partial = tmp_path / "whole", tmp_path / "killed", tmp_path / ".killed.partial"
    simulate.run(SimulateOptions(3000, whole, "1000", organs=6))
    words = ["simulate", "--cells", "3000", "--genes", "1000", "--organs", "6", "--out", str(killed)]
    process = subprocess.Popen([sys.executable, "-m", "unicoord_atlas.jobs.cli", *words], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(partial.glob("[!.]*.h5ad")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in partial.glob("[!.]*.h5ad")}
    assert done and not killed.exists()
    for path in done:
        (partial / f".{path.name}.lock").touch()  # as if the kill had come just before the lock went
    simulate.run(SimulateOptions(3000, killed, "1000", organs=6))
    assert all((killed / path.name).stat().st_mtime_ns == then for path, then in done.items())
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in killed.iterdir())
    assert filecmp.cmpfiles(whole, killed, names, shallow=False) == (names, [], [])
