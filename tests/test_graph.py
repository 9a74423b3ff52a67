import json
import os
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import zarr
from scanpy.neighbors._connectivity import umap as umap_weights
from sklearn.neighbors import NearestNeighbors
from stores import write_store
from threadpoolctl import threadpool_limits

from unicoord_atlas.errors import ConfigError, DataError, UsageError
from unicoord_atlas.jobs import amend_store, build_graph, check, dask_client, ingest
from unicoord_atlas.jobs.build_graph import BuildGraphOptions
from unicoord_atlas.jobs.workdir import describe_input
from unicoord_atlas.loaders import graph_pass, knn_pass
from unicoord_atlas.loaders.graph_store import Neighbors, write_table
from unicoord_atlas.loaders.in_order import in_order
from unicoord_atlas.loaders.row_file import RowFile
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.neighbors import knn, lists
from unicoord_atlas.neighbors.connectivities import membership
from unicoord_atlas.neighbors.highly_variable import highly_variable

CELLS, GENES = 300, 120
SMALL = {"num_genes": 60, "num_pcs": 12, "k": 6}


def clustered_counts(num_cells=CELLS, num_genes=GENES, seed=0):
    """Poisson counts of five types; some cells are empty, the last genes are never seen."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.4, 2.0, (5, num_genes))
    rates[:, -3:] = 0
    dense = rng.poisson(rates[rng.integers(0, 5, num_cells)] * rng.uniform(0.5, 2, (num_cells, 1)))
    dense[[3, 7]] = 0
    return sp.csr_matrix(dense.astype(np.float64))


def store_of(path, counts):
    return write_store(path, counts, np.asarray(counts.sum(axis=1), np.float64).ravel())


def log_normalized(store):
    """The cells as scanpy would have them, from the store's own size factors; float64."""
    rows = store.read_ranges(np.array([[0, store.n_obs]]))
    counts = sp.csr_matrix((rows.data.astype(np.float64), rows.indices.astype(np.int32), rows.indptr))
    counts.resize(store.n_obs, store.n_vars)
    factors = store.size_factors
    scales = np.divide(1e4, factors, out=np.ones(len(factors)), where=factors > 0)
    return anndata.AnnData(sp.csr_matrix(sp.diags(scales) @ counts).log1p())


def build(path, **options):
    return build_graph.run(BuildGraphOptions(path, **{**SMALL, **options}))


def give_table(path, table, replace=False):
    """Add obsm/X_given to a store, as a job does; its sum tells it from another."""
    config = {"sum": float(np.asarray(table).sum())}
    with amend_store.amended_store(path, "given", config, replace) as partial:
        group = zarr.open_group(partial / amend_store.ADDITIONS, mode="w", zarr_format=3)
        with anndata.settings.override(auto_shard_zarr_v3=False):
            anndata.io.write_elem(group.require_group("obsm"), "X_given", table)


def points_of_cells(seed=0):
    return np.random.default_rng(seed).normal(size=(CELLS, 4)).astype(np.float32)


def graph_bytes(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for part in ("obsm", "varm", "obsp", "uns")
        for file in sorted((path / part).rglob("*"))
        if file.is_file()
    }


@pytest.fixture(autouse=True)
def power_stays_on(monkeypatch):
    """On a busy disk waiting for it takes longer than all else; these tests cut no power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("plain") / "atlas.zarr", clustered_counts())


@pytest.fixture(scope="module")
def graphed(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphed") / "atlas.zarr"
    shutil.copytree(plain, path)
    build(path)
    return path


@pytest.fixture
def fresh(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "atlas.zarr")
    return tmp_path / "atlas.zarr"


@pytest.fixture(scope="module")
def truth(graphed):
    """What scanpy makes of the same cells."""
    cells = log_normalized(open_store(graphed))
    sc.pp.highly_variable_genes(cells, n_top_genes=SMALL["num_genes"])
    sc.pp.pca(cells, n_comps=SMALL["num_pcs"], mask_var="highly_variable")
    return cells


@pytest.mark.parametrize("num_top", [10, 40, 400])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:`n_top_genes` > number")
def test_highly_variable_genes_are_those_of_scanpy(seed, num_top):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(rng.gamma(0.2, 3.0, 300), (80, 300)).astype(np.float64)
    dense[:, :2] = [0, 1e4]  # unseen; alone in its bin
    dense[0, 1] = 2e4
    cells = anndata.AnnData(np.log1p(dense))
    measured = rng.random(300) < 0.8
    measured[1] = True
    part = cells[:, measured].copy()
    sc.pp.highly_variable_genes(part, n_top_genes=num_top)
    found = highly_variable(dense.mean(axis=0), dense.var(axis=0, ddof=1), measured, num_top)
    assert found.tolist() == np.flatnonzero(measured)[part.var["highly_variable"]].tolist()


def test_streamed_moments_choose_the_genes_of_scanpy(graphed, truth):
    loadings = anndata.read_zarr(graphed).varm["PCs"]
    assert (loadings != 0).any(axis=1).tolist() == truth.var["highly_variable"].tolist()


def test_components_equal_those_of_scanpy(graphed, truth):
    found = anndata.read_zarr(graphed)
    np.testing.assert_allclose(found.uns["pca"]["variance"], truth.uns["pca"]["variance"], rtol=1e-5)
    np.testing.assert_allclose(found.uns["pca"]["variance_ratio"], truth.uns["pca"]["variance_ratio"], rtol=1e-5)
    overlap = found.varm["PCs"].T @ truth.varm["PCs"]
    np.testing.assert_allclose(overlap, np.eye(SMALL["num_pcs"]), atol=1e-4)
    np.testing.assert_allclose(found.obsm["X_pca"], truth.obsm["X_pca"], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_graph_equals_that_of_scanpy(graphed, fresh, metric):
    path = graphed if metric == "euclidean" else fresh
    build(path, metric=metric)
    found = anndata.read_zarr(path)
    again = anndata.AnnData(np.zeros((CELLS, 1)), obsm={"X_pca": found.obsm["X_pca"].astype(np.float64)})
    sc.pp.neighbors(again, n_neighbors=SMALL["k"] + 1, use_rep="X_pca", metric=metric, transformer="sklearn")
    ours, theirs = found.obsp["distances"], again.obsp["distances"]
    np.testing.assert_allclose(ours.toarray(), theirs.toarray(), rtol=1e-4, atol=1e-5)
    weights = found.obsp["connectivities"]
    assert abs(weights - weights.T).max() == 0
    # Of our distances: cells of one direction are 0 or 1e-16 apart, as the processor has it, and it matters to UMAP.
    near = [row.indices[np.argsort(row.data, kind="stable")] for row in ours]
    indices = np.array([[i, *row] for i, row in enumerate(near)])
    nearest = np.take_along_axis(ours.toarray(), indices, axis=1)
    expected = umap_weights(indices, nearest, n_obs=CELLS, n_neighbors=SMALL["k"] + 1)
    np.testing.assert_allclose(weights.toarray(), expected.toarray(), atol=1e-4)
    params = found.uns["neighbors"]["params"]
    assert (int(params["n_neighbors"]), params["metric"], params["method"]) == (SMALL["k"] + 1, metric, "umap")


def test_membership_is_umaps_formula():
    rng = np.random.default_rng(0)
    distances = np.sort(rng.gamma(2.0, 1.0, (20, 7)).astype(np.float32), axis=1)
    distances[0, :3] = 0
    distances[1] = 0
    mean = float(distances.mean() * 7 / 8)
    weights = membership(distances, mean)
    for row, of_row in zip(distances.astype(float), weights, strict=True):
        rho = min((d for d in row if d > 0), default=0.0)
        if not row.any():
            assert (of_row == 1).all()
            continue
        low, high = 0.0, 1e4
        for _ in range(200):
            sigma = (low + high) / 2
            total = sum(np.exp(-max(d - rho, 0) / sigma) for d in row)
            low, high = (low, sigma) if total > np.log2(8) else (sigma, high)
        sigma = max(sigma, 1e-3 * sum(row) / 8)
        np.testing.assert_allclose(of_row, [np.exp(-max(d - rho, 0) / sigma) for d in row], rtol=1e-3, atol=1e-5)


def test_scanpy_goes_on_from_the_store(graphed):
    cells = anndata.read_zarr(graphed)
    sc.tl.diffmap(cells, n_comps=5)
    assert np.isfinite(cells.obsm["X_diffmap"]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_umap_goes_on_from_the_store(graphed):
    cells = anndata.read_zarr(graphed)
    sc.tl.umap(cells, maxiter=20)
    assert np.isfinite(cells.obsm["X_umap"]).all()


def test_lists_find_what_was_asked_for(fresh, monkeypatch):
    pytest.importorskip("faiss")
    exact = anndata.read_zarr(build_twin(fresh, fresh.parent / "exact.zarr"))
    monkeypatch.setattr(knn, "MOST_COMPARISONS", 1000)
    result = build(fresh, recall=0.9)
    assert 0.88 <= result["recall"] <= 1
    listed = anndata.read_zarr(fresh)
    shared = (exact.obsp["distances"] > 0).multiply(listed.obsp["distances"] > 0).nnz
    assert shared / exact.obsp["distances"].nnz == pytest.approx(result["recall"], abs=0.05)
    complete = build(fresh, recall=1.0, replace=True)
    assert complete["recall"] == 1
    same = anndata.read_zarr(fresh).obsp["distances"]
    np.testing.assert_allclose(same.toarray(), exact.obsp["distances"].toarray(), rtol=1e-5)


def build_twin(path, to, **options):
    shutil.copytree(path, to)
    build(to, **options)
    return to


def test_neighbours_are_balanced_over_batches(fresh):
    with pytest.raises(DataError, match="cells have no 'cell_type'"):
        build(fresh, batch="cell_type")
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    batch = np.arange(40) % 3
    task = as_task(fresh.parent, points, 2, [np.flatnonzero(batch == b) for b in range(3)])
    found, distances = knn_pass._neighbors_of_piece(task, (0, 40))
    for cell in range(40):
        away = np.linalg.norm(points - points[cell], axis=1)
        expected = []
        for b in range(3):
            others = [other for other in np.flatnonzero(batch == b) if other != cell]
            expected += sorted(others, key=lambda other: away[other])[:2]
        assert found[cell].tolist() == sorted(expected, key=lambda other: away[other])
    assert (np.diff(distances, axis=1) >= 0).all()


def as_task(folder, points, k, batches=None, **settings):
    file = RowFile(folder / "points.f32", *points.shape, np.float32)
    file.append(points)
    return knn_pass.prepare_groups(file, batches, k, "euclidean", settings.get("recall", 0.9), 0)


def test_batches_of_an_atlas_share_the_neighbours(tmp_path):
    counts = clustered_counts().toarray()
    counts[CELLS // 3 :] = np.roll(counts[CELLS // 3 :], 10, axis=1)  # the second batch lies apart
    genes = pd.DataFrame(index=[f"G{gene}" for gene in range(GENES)])
    for name, rows in (("first", slice(CELLS // 3)), ("second", slice(CELLS // 3, CELLS))):
        anndata.AnnData(counts[rows].astype(np.float32), var=genes).write_h5ad(tmp_path / f"{name}.h5ad")
    path = tmp_path / "atlas.zarr"
    ingest.run(ingest.IngestOptions([str(tmp_path / "first.h5ad"), str(tmp_path / "second.h5ad")], path))
    assert build(path, batch="source", k=3)["k"] == 6
    cells = anndata.read_zarr(path)
    distances, batch = cells.obsp["distances"], cells.obs["source"].to_numpy()
    assert (np.diff(distances.indptr) == 6).all()
    away = np.linalg.norm(cells.obsm["X_pca"][:, None] - cells.obsm["X_pca"][None], axis=2)
    np.fill_diagonal(away, np.inf)
    for name in ("first", "second"):
        inside = np.flatnonzero(batch == name)
        expected = np.sort(np.sort(away[:, inside], axis=1)[:, :3], axis=1)
        found = np.stack([row.data[np.isin(row.indices, inside)] for row in distances])
        np.testing.assert_allclose(np.sort(found, axis=1), expected, rtol=1e-4, atol=1e-5)
    build(path, k=3, replace=True)
    mixed = anndata.read_zarr(path).obsp["distances"]
    assert (batch[mixed.indices] == np.repeat(batch, 3)).mean() > 0.8  # without the option they stay among themselves


def test_twins_are_neighbours_at_distance_zero(tmp_path):
    counts = clustered_counts(400).toarray()
    counts[50:350] = counts[50]
    path = store_of(tmp_path / "atlas.zarr", sp.csr_matrix(counts))
    build(path)
    found = anndata.read_zarr(path)
    distances = found.obsp["distances"]
    assert (np.diff(distances.indptr) == SMALL["k"]).all()
    twins = distances[50:350]
    assert np.allclose(twins.data, 0, atol=1e-4) and ((twins.indices >= 50) & (twins.indices < 350)).all()
    assert not (twins.indices.reshape(300, -1) == np.arange(50, 350)[:, None]).any()
    assert np.isfinite(found.obsp["connectivities"].data).all()


def test_twins_in_lists(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(knn, "MOST_COMPARISONS", 0)
    points = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    points[500:2500] = points[500]
    task = as_task(tmp_path, points, 5, recall=0.95)
    files = [RowFile(tmp_path / name, 3000, 5, dtype) for name, dtype in (("i", np.int32), ("d", np.float32))]
    knn_pass.write_neighbors(task, *files, map, int)
    found, distances = (file.rows() for file in files)
    assert (distances[500:2500] == 0).all() and (found != np.arange(3000)[:, None]).all()
    assert knn_pass.measured_recall(task, 0) >= 0.93


@pytest.mark.parametrize("batches", [1, 2])
def test_codes_where_many_lists_are_looked_into(tmp_path, monkeypatch, batches):
    pytest.importorskip("faiss")
    monkeypatch.setattr(knn, "MOST_COMPARISONS", 0)
    points = np.random.default_rng(0).normal(size=(4000, 21)).astype(np.float32)
    members = [np.arange(b, 4000, batches) for b in range(batches)]
    task = as_task(tmp_path, points, 5, None if batches == 1 else members, recall=0.9)
    assert all(group.pool >= 4 * 6 and group.probes >= knn.MANY_PROBES for group in task.groups)
    found = []
    for name, run in (("a", map), ("b", partial(in_order, threads=3))):
        files = [RowFile(tmp_path / f"{name}.{t}", 4000, 5 * batches, t) for t in (np.int32, np.float32)]
        knn_pass.write_neighbors(task, *files, run, int)
        found.append([file.rows() for file in files])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    rows, distances = found[0]
    away = np.sqrt(((points[:500, None] - points[None]) ** 2).sum(axis=2))
    np.testing.assert_allclose(distances[:500], np.take_along_axis(away, rows[:500].astype(int), axis=1), rtol=1e-5)
    away[np.arange(500), np.arange(500)] = np.inf
    truth = np.concatenate([each[np.argsort(away[:, each], axis=1)[:, :5]] for each in members], axis=1)
    shared = [len(np.intersect1d(row, true)) for row, true in zip(rows, truth, strict=False)]
    assert np.mean(shared) / (5 * batches) == pytest.approx(knn_pass.measured_recall(task, 0), abs=0.03)
    assert np.mean(shared) / (5 * batches) > 0.88


def test_codes_are_left_where_they_do_not_tell_points_apart(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(knn, "MOST_COMPARISONS", 0)
    monkeypatch.setattr(knn_pass, "MANY_PROBES", 0)
    rng = np.random.default_rng(0)
    points = np.repeat(rng.normal(size=(10, 8)), 400, axis=0) + rng.normal(size=(4000, 8)) * 1e-4
    task = as_task(tmp_path, points.astype(np.float32), 5)
    assert task.groups[0].pool == 0 and knn_pass.measured_recall(task, 0) > 0.88


def test_lists_are_let_go_of_and_found_again(tmp_path):
    pytest.importorskip("faiss")
    points = np.random.default_rng(0).normal(size=(60_000, 40)).astype(np.float32)
    index = lists.build_lists(points, 0)
    lists.save_lists(index, tmp_path / "lists")
    mapped = lists.load_lists(tmp_path / "lists")
    expected = lists.ListSearch(index, 8).candidates(points[:500], 5)
    for each in (index, mapped):
        for _ in range(2):
            np.testing.assert_array_equal(lists.ListSearch(each, 8).candidates(points[:500], 5), expected)
            lists.let_go_of_lists(each)
    pages = [line for line in Path("/proc/self/smaps").read_text().split("VmFlags") if str(tmp_path) in line]
    assert [re.search(r"Rss:\s+(\d+)", part)[1] for part in pages] == ["0"]


def test_lists_in_a_file_are_those_in_memory(tmp_path):
    pytest.importorskip("faiss")
    points = np.random.default_rng(0).normal(size=(5_000, 10)).astype(np.float32)
    empty = lists.empty_lists(points, 0)
    of_point = lists.lists_of(empty, points)
    order = np.argsort(of_point, kind="stable")
    ends = np.cumsum(np.bincount(of_point, minlength=empty.nlist))
    lists.put_lists_in_file(empty, tmp_path / "entries", points[order], ends)
    lists.save_lists(empty, tmp_path / "lists")
    expected = lists.ListSearch(lists.build_lists(points, 0), 20).candidates(points[:3000], 5)
    for index in (empty, lists.load_lists(tmp_path / "lists")):
        found = order[lists.ListSearch(index, 20).candidates(points[:3000], 5)]
        np.testing.assert_array_equal(found, expected)


def test_fewer_genes_than_components(tmp_path):
    path = store_of(tmp_path / "atlas.zarr", clustered_counts(60, 10))
    assert build(path, num_pcs=50)["dims"] == 7  # three genes are never seen


@pytest.mark.parametrize("options", [{"k": CELLS}, {"k": CELLS, "batch": "source"}])
def test_as_many_neighbours_as_cells_are_refused(fresh, options):
    with pytest.raises(ConfigError, match=f"k = {CELLS}: .* has {CELLS} cells.*set --k to at most {CELLS - 1}"):
        build(fresh, **options)
    build(fresh, k=CELLS - 1)


def test_cells_all_alike_or_all_empty_are_refused(tmp_path):
    alike = store_of(tmp_path / "alike.zarr", sp.csr_matrix(np.tile([1.0, 2, 3], (30, 1))))
    with pytest.raises(DataError, match="none of the 3 genes that all sources measured varies"):
        build(alike)
    empty = store_of(tmp_path / "empty.zarr", sp.csr_matrix((30, 4)))
    with pytest.raises(DataError, match="varies"):
        build(empty)


def with_table(path, key, values):
    """The store with a table in obsm, added as jobs add theirs."""
    with amend_store.amended_store(path, "table", {"key": key}) as folder:
        group = zarr.open_group(folder / amend_store.ADDITIONS, mode="w", zarr_format=3)
        write_table(group.require_group("obsm"), key, values)


def test_given_table_is_used(fresh):
    points = np.random.default_rng(0).normal(size=(CELLS, 4)).astype(np.float32)
    with_table(fresh, "X_mine", points)
    assert build(fresh, use_rep="X_mine")["dims"] == 4
    found = anndata.read_zarr(fresh)
    expected = NearestNeighbors(n_neighbors=SMALL["k"]).fit(points).kneighbors()[0]
    ours = np.sort(found.obsp["distances"].data.reshape(CELLS, SMALL["k"]), axis=1)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert found.uns["neighbors"]["params"]["use_rep"] == "X_mine"
    assert np.array_equal(found.obsm["X_mine"], points) and "X_pca" not in found.obsm


def test_a_table_that_is_not_there_is_refused(fresh):
    build(fresh)
    before = graph_bytes(fresh)
    with pytest.raises(UsageError, match="obsm has no 'X_umap'"):
        build(fresh, use_rep="X_umap", replace=True)
    assert graph_bytes(fresh) == before


def test_a_graph_of_a_table_that_was_replaced_is_no_graph(fresh):
    give_table(fresh, points_of_cells())
    build(fresh, use_rep="X_given")
    assert build(fresh, use_rep="X_given")["already_done"]
    before = Neighbors(open_store(fresh)).of(np.arange(CELLS))[1]
    give_table(fresh, points_of_cells(seed=1), replace=True)
    with pytest.raises(DataError, match="of an older state of the atlas; make it again"):
        Neighbors(open_store(fresh))
    with pytest.raises(DataError, match=r"another graph \(points differ\); say --replace"):
        build(fresh, use_rep="X_given")
    build(fresh, use_rep="X_given", replace=True)
    assert not np.array_equal(Neighbors(open_store(fresh)).of(np.arange(CELLS))[1], before)
    check.run(fresh)


def test_what_goes_to_a_cluster_is_found_from_any_folder(plain, tmp_path, monkeypatch):
    """A worker of a scheduler's address may stand elsewhere than who gave a relative path."""
    monkeypatch.chdir(plain.parent)
    sent = pickle.dumps(open_store(plain.name))
    assert amend_store._work_folder(Path(plain.name), "graph") == plain.parent / ".atlas.zarr.graph.partial"
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(sent).n_obs == CELLS


def test_addition_leaves_the_store_what_it_was(plain, graphed):
    check.run(graphed)
    assert describe_input(graphed) == describe_input(plain)
    assert open_store(graphed).fingerprint == open_store(plain).fingerprint
    cells, before = anndata.read_zarr(graphed), anndata.read_zarr(plain)
    assert np.array_equal(cells.X.toarray(), before.X.toarray()) and cells.obs.equals(before.obs)
    assert not list(graphed.parent.glob(".*"))


def test_same_graph_is_done_already_and_another_is_refused(graphed):
    before = graph_bytes(graphed)
    assert build(graphed)["already_done"]
    with pytest.raises(DataError, match=r"another graph \(k differ\); say --replace"):
        build(graphed, k=4)
    assert graph_bytes(graphed) == before and not list(graphed.parent.glob(".*"))


def test_replaced_graph_is_that_of_a_fresh_store(graphed, fresh):
    build(fresh, k=4)
    build(fresh, replace=True)
    check.run(fresh)
    assert graph_bytes(fresh) == graph_bytes(graphed)
    assert describe_input(fresh) == describe_input(graphed)


class Killed(BaseException):
    """Stands for a signal."""


def small_pieces(monkeypatch):
    monkeypatch.setattr(graph_pass.pieces, "__defaults__", (0, CELLS // 5))
    monkeypatch.setattr(graph_pass, "_PIECES_PER_SAVE", 2)
    monkeypatch.setattr(knn_pass, "_QUERIES", CELLS // 6 + 5)


@pytest.mark.parametrize("step", [8, 18])  # amid the products; amid the neighbours
def test_killed_pass_goes_on(fresh, tmp_path, monkeypatch, step):
    small_pieces(monkeypatch)
    expected = graph_bytes(build_twin(fresh, tmp_path / "twin.zarr"))
    calls = []

    def counted(function, items, threads):
        for item in items:
            calls.append(item)
            if len(calls) == step:
                raise Killed
            yield function(item)

    monkeypatch.setattr(dask_client, "in_order", counted)
    with pytest.raises(Killed):
        build(fresh)
    open_store(fresh)
    build(fresh)
    done = {8: 7, 18: 17}[step]  # saved every second piece, and at the end of a pass; then one by one
    assert len(calls) == step + 3 * 5 + 6 - done
    assert graph_bytes(fresh) == expected


@pytest.fixture(scope="module")
def other(plain, tmp_path_factory):
    return build_twin(plain, tmp_path_factory.mktemp("other") / "atlas.zarr", k=4)


@pytest.mark.parametrize("move", [1, 3, 7, 11])
def test_killed_replacement_is_completed(other, graphed, tmp_path, monkeypatch, move):
    fresh = tmp_path / "atlas.zarr"
    shutil.copytree(other, fresh)
    calls = []

    def dying(function):
        def act(*args):
            if calls.append(args) or len(calls) == move + 1:
                raise Killed
            return function(*args)

        return act

    with monkeypatch.context() as patch:
        real = amend_store._take_out

        def take_out(*args):
            patch.setattr(Path, "rename", dying(Path.rename))
            patch.setattr(Path, "replace", dying(Path.replace))
            real(*args)

        patch.setattr(amend_store, "_take_out", take_out)
        try:
            build(fresh, replace=True)
        except Killed:
            pass
    build(fresh, replace=True)
    check.run(fresh)
    assert graph_bytes(fresh) == graph_bytes(graphed)


@pytest.mark.slow
def test_dask_makes_the_same_graph(graphed, fresh):
    pytest.importorskip("distributed")
    build(fresh, dask="local:2")
    assert graph_bytes(fresh) == graph_bytes(graphed)
    with pytest.raises(UsageError, match="local:N"):
        build(fresh, k=4, replace=True, dask="local:many")


def test_neighbours_of_any_rows(graphed):
    distances = anndata.read_zarr(graphed).obsp["distances"]
    rows = np.array([7, CELLS - 1, 0, 7, 3])
    indptr, indices = Neighbors(open_store(graphed)).of(rows)
    expected = distances[rows]
    assert indptr.tolist() == expected.indptr.tolist() and indices.tolist() == expected.indices.tolist()
    assert Neighbors(open_store(graphed)).of(np.arange(0))[0].tolist() == [0]


def test_graph_of_other_cells_is_refused(graphed, plain, tmp_path):
    with pytest.raises(UsageError, match="has no graph of neighbours; make one with"):
        Neighbors(open_store(plain))
    path = tmp_path / "atlas.zarr"
    shutil.copytree(graphed, path)
    manifest = json.loads((path / "manifest.json").read_text())
    name = next(name for name in manifest["files"] if name.startswith("obs/_index/c"))
    manifest["files"][name]["crc32c"] = "00000000"  # as if the cells had been named anew
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="made of other cells or of an older state"):
        Neighbors(open_store(path))
    with pytest.raises(DataError, match=r"cells differ\); say --replace"):
        build(path)


@pytest.mark.parametrize("threads", [1, 2])
def test_components_do_not_depend_on_the_threads_of_blas(tmp_path, threads):
    """Found by a build on a cluster, whose workers had another number of threads than the one process.

    As wide as real data: smaller products are done by one thread in any case.
    """
    store = open_store(store_of(tmp_path / "wide.zarr", clustered_counts(600, 2000)))
    genes, pool = np.arange(1900), partial(in_order, threads=threads)
    found = []
    for blas in (1, 2):
        with threadpool_limits(blas, user_api="blas"):
            components = graph_pass.components_of_genes(store, genes, 20, pool)
            scores = RowFile(tmp_path / f"{blas}.f32", 600, 20, np.float32)
            scores.next_row = 0
            graph_pass.write_scores(store, genes, components, scores, pool, int)
        found.append((components.loadings_gd.tobytes(), scores.rows().tobytes()))
    assert found[0] == found[1]


def test_points_of_another_graph_under_the_same_names_are_opened_anew(tmp_path):
    """A worker of a cluster lives longer than a graph; the files of the next have the names of the last."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2):
        points = rng.normal(size=(200, 5)).astype(np.float32)
        (tmp_path / "points.rows").unlink(missing_ok=True)
        file = RowFile(tmp_path / "points.f32", *points.shape, np.float32)
        file.append(points)
        task = knn_pass.prepare_groups(file, None, 5, "euclidean", 0.95, 0)
        found.append(knn_pass._neighbors_of_piece(task, (0, 200))[0])
        expected = NearestNeighbors(n_neighbors=6).fit(points).kneighbors(points, return_distance=False)[:, 1:]
        np.testing.assert_array_equal(np.sort(found[-1], axis=1), np.sort(expected, axis=1))


def test_rows_that_a_power_cut_took_are_not_counted(tmp_path):
    file = RowFile(tmp_path / "t.f32", 10, 3, np.float32)
    file.append(np.ones((8, 3)))
    with (tmp_path / "t.f32").open("r+b") as raw:
        raw.truncate(5 * 3 * 4 + 2)
    again = RowFile(tmp_path / "t.f32", 10, 3, np.float32)
    assert again.next_row == 5
    again.append(np.full((5, 3), 2))
    (tmp_path / "t.rows").write_text("")  # a name that a power cut left without what was in it
    assert RowFile(tmp_path / "t.f32", 10, 3, np.float32).next_row == 0
    np.testing.assert_array_equal(again.rows(), np.repeat([[1.0], [2.0]], 5, axis=0).repeat(3, axis=1))
