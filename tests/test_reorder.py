import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from stores import write_store
from test_graph import build, clustered_counts, give_table, points_of_cells, store_of

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.jobs import check, reorder
from unicoord_atlas.jobs.reorder import ORIGINAL_ROW, ReorderOptions
from unicoord_atlas.loaders import buckets
from unicoord_atlas.loaders.graph_store import Neighbors
from unicoord_atlas.loaders.reorder import reordered_layout, write_reordered
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.zarr_layout import SIZE_FACTOR, MatrixLayout
from unicoord_atlas.neighbors import space_order
from unicoord_atlas.neighbors.space_order import split_order


@pytest.fixture
def atlas(tmp_path):
    store_of(tmp_path / "atlas.zarr", clustered_counts())
    build(tmp_path / "atlas.zarr")
    return tmp_path / "atlas.zarr"


def test_a_reordered_atlas_is_the_same_atlas_under_its_permutation(atlas, tmp_path):
    reorder.run(ReorderOptions(atlas, tmp_path / "near.zarr"))
    old, new = anndata.read_zarr(atlas), anndata.read_zarr(tmp_path / "near.zarr")
    order = new.obs[ORIGINAL_ROW].to_numpy()
    assert sorted(order) == list(range(old.n_obs))
    assert not np.array_equal(order, np.arange(old.n_obs))
    moved = anndata.AnnData(obs=old.obs, obsm=dict(old.obsm), obsp=dict(old.obsp))[order]
    assert list(new.obs_names) == list(moved.obs_names)
    np.testing.assert_array_equal(new.X.toarray(), old.X.toarray()[order])
    np.testing.assert_array_equal(new.obs[SIZE_FACTOR], moved.obs[SIZE_FACTOR])
    np.testing.assert_array_equal(new.obsm["X_pca"], moved.obsm["X_pca"])
    np.testing.assert_array_equal(new.varm["PCs"], old.varm["PCs"])
    for key in ("distances", "connectivities"):
        assert (new.obsp[key] != moved.obsp[key]).nnz == 0
        assert new.obsp[key].nnz == old.obsp[key].nnz
        assert new.obsp[key].has_sorted_indices
    check.run(tmp_path / "near.zarr")


def test_neighbours_lie_closer_and_the_graph_is_known_as_this_atlas_s_own(atlas, tmp_path):
    reorder.run(ReorderOptions(atlas, tmp_path / "near.zarr"))

    def mean_step(path):
        store = open_store(path)
        indptr, indices = Neighbors(store).of(np.arange(store.n_obs))
        return np.abs(np.repeat(np.arange(store.n_obs), np.diff(indptr)) - indices).mean()

    assert mean_step(tmp_path / "near.zarr") < 0.6 * mean_step(atlas)
    assert build(tmp_path / "near.zarr")["already_done"]


def test_reorder_again_finds_it_finished_and_goes_on_between_its_two_parts(atlas, tmp_path, monkeypatch):
    out = tmp_path / "near.zarr"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reorder, "_write_graph", killed)
        reorder.run(ReorderOptions(atlas, out))
    assert reorder.run(ReorderOptions(atlas, out))["already_done"] is False
    assert reorder.run(ReorderOptions(atlas, out))["already_done"] is True
    assert len(Neighbors(open_store(out)).indptr) == 301


def killed(*args):
    raise KeyboardInterrupt


def assert_same_cells(atlas, near):
    """The new atlas is the old one under the permutation that it names: counts and graph."""
    old, new = anndata.read_zarr(atlas), anndata.read_zarr(near)
    order = new.obs[ORIGINAL_ROW].to_numpy()
    assert list(new.obs_names) == list(old.obs_names[order])
    np.testing.assert_array_equal(new.X.toarray(), old.X.toarray()[order])
    for key in ("distances", "connectivities"):
        assert (new.obsp[key] != old.obsp[key][order][:, order]).nnz == 0
    return old, new, order


def test_cells_in_the_order_of_a_graph_that_was_replaced_do_not_get_the_new_one(atlas, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reorder, "_write_graph", killed)
        reorder.run(ReorderOptions(atlas, tmp_path / "near.zarr"))
    build(atlas, num_pcs=4, replace=True)
    with pytest.raises(DataError, match=r"near\.zarr exists, made from other config; remove it or choose another"):
        reorder.run(ReorderOptions(atlas, tmp_path / "near.zarr"))
    assert "distances" not in anndata.read_zarr(tmp_path / "near.zarr").obsp
    reorder.run(ReorderOptions(atlas, tmp_path / "other.zarr"))
    assert_same_cells(atlas, tmp_path / "other.zarr")


@pytest.mark.parametrize("last", ["finish_store", "_write_graph"])
def test_a_killed_reorder_goes_on_in_the_order_that_it_began(atlas, tmp_path, monkeypatch, last):
    """Even where the points are sorted otherwise, as another machine may sort equal ones."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reorder, last, killed)
        reorder.run(ReorderOptions(atlas, tmp_path / "near.zarr"))
    monkeypatch.setattr(reorder, "_order", lambda *args: np.arange(300)[::-1])
    assert reorder.run(ReorderOptions(atlas, tmp_path / "near.zarr"))["already_done"] is False
    _, _, order = assert_same_cells(atlas, tmp_path / "near.zarr")
    assert order.tolist() != list(range(300))[::-1]
    check.run(tmp_path / "near.zarr")


def test_an_atlas_that_got_another_graph_since_it_was_put_in_order_is_finished(atlas, tmp_path):
    reorder.run(ReorderOptions(atlas, tmp_path / "near.zarr"))
    build(tmp_path / "near.zarr", k=4, replace=True)
    assert reorder.run(ReorderOptions(atlas, tmp_path / "near.zarr"))["already_done"]
    assert np.diff(Neighbors(open_store(tmp_path / "near.zarr")).indptr).tolist() == [4] * 300


@pytest.mark.parametrize("named", [False, True])
def test_the_table_that_the_graph_was_made_of_comes_along(tmp_path, named):
    atlas, near = store_of(tmp_path / "atlas.zarr", clustered_counts()), tmp_path / "near.zarr"
    points = points_of_cells()
    table = pd.DataFrame(points, [f"one:cell-{i}" for i in range(300)], list("abcd")) if named else points
    give_table(atlas, table)
    build(atlas, use_rep="X_given")
    reorder.run(ReorderOptions(atlas, near))
    _, new, order = assert_same_cells(atlas, near)
    np.testing.assert_array_equal(np.asarray(new.obsm["X_given"]), points[order])
    assert new.uns["neighbors"]["params"]["use_rep"] in new.obsm  # where sc.tl.umap looks
    assert len(Neighbors(open_store(near)).indptr) == 301
    assert build(near, use_rep="X_given")["already_done"]
    assert reorder.run(ReorderOptions(atlas, near))["already_done"]
    check.run(near)


def test_an_atlas_without_a_graph_is_refused(tmp_path):
    counts = clustered_counts()
    write_store(tmp_path / "atlas.zarr", counts, np.asarray(counts.sum(axis=1), np.float64).ravel())
    with pytest.raises(UsageError, match="build-graph"):
        reorder.run(ReorderOptions(tmp_path / "atlas.zarr", tmp_path / "near.zarr"))
    assert not (tmp_path / "near.zarr").exists()


def test_the_atlas_itself_is_no_output(atlas):
    with pytest.raises(UsageError, match="another name"):
        reorder.run(ReorderOptions(atlas, atlas))


def test_points_of_one_place_stand_together():
    rng = np.random.default_rng(0)
    place = rng.integers(0, 8, 4096)
    points = (rng.normal(size=(8, 5)) * 20)[place] + rng.normal(size=(4096, 5))
    order = split_order(points.astype(np.float32))
    assert sorted(order) == list(range(4096))
    changes = np.count_nonzero(np.diff(place[order]))
    assert changes < 0.1 * 4096
    np.testing.assert_array_equal(split_order(np.zeros((500, 3), np.float32)).shape, (500,))


def test_the_order_is_the_same_however_many_points_are_in_memory_together(monkeypatch):
    """Large parts are halved in the file, small ones in memory."""
    points = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32)
    at_once = split_order(points)
    monkeypatch.setattr(space_order, "_ROWS", 200)
    np.testing.assert_array_equal(split_order(points), at_once)
    assert sorted(at_once) == list(range(3000))


def test_a_shard_that_a_lost_worker_had_written_is_done(tmp_path):
    """Its task is given to another one."""
    store = store_of(tmp_path / "atlas.zarr", clustered_counts())
    store = open_store(tmp_path / "atlas.zarr")
    rows = store.read_ranges(np.array([[0, store.n_obs]]))
    order = np.random.default_rng(0).permutation(store.n_obs)
    layout = reordered_layout(MatrixLayout(rows.indptr, store.n_vars, rows.data.dtype, 100, 3), order)
    assert layout.num_shards > 3

    def each_twice(write, tasks):
        for task in tasks:
            write(task)
            yield write(task)

    write_reordered(tmp_path / "out.zarr", layout, store, order, 1, int, each_twice)
    data = zarr.open_array(tmp_path / "out.zarr/X/data")[:]
    taken = [rows.data[slice(*rows.indptr[row : row + 2])] for row in order]
    np.testing.assert_array_equal(data, np.concatenate(taken))


@pytest.mark.parametrize("kept", [(), (0,), (1, 3)])
def test_rows_of_many_buckets_and_stretches_are_where_they_belong(tmp_path, monkeypatch, kept):
    """Rows without entries, rows that end in the next shard or the one after it, shards that are there."""
    monkeypatch.setattr(buckets, "ENTRIES_TOGETHER", 90)
    rng = np.random.default_rng(0)
    dense = rng.integers(1, 9, (300, 400)) * (rng.random((300, 400)) < 0.02)
    dense[rng.random(300) < 0.2] = 0
    dense[rng.choice(300, 3), :350] = 1  # longer than a shard
    counts = sp.csr_matrix(dense, dtype=np.float32)
    store_of(tmp_path / "atlas.zarr", counts)
    store = open_store(tmp_path / "atlas.zarr")
    order = rng.permutation(store.n_obs)
    layout = reordered_layout(MatrixLayout(store.indptr, store.n_vars, store.layout.data_dtype, 20, 8), order)
    assert layout.num_shards > 5
    out, rows = tmp_path / "out.zarr", []
    write_reordered(out, layout, store, order, 2, rows.append)
    assert sum(rows) == pytest.approx(store.n_obs)
    if kept:
        whole = {path: path.read_bytes() for path in out.glob("X/*/c/*") if path.parent.parent.name != "indptr"}
        for path in whole:
            if int(path.name) not in kept:
                path.unlink()
        write_reordered(out, layout, store, order, 1, int)
        assert all(path.read_bytes() == content for path, content in whole.items())
    assert not list(out.glob("unfinished*"))
    written = [zarr.open_array(out / f"X/{name}")[:] for name in ("data", "indices", "indptr")]
    np.testing.assert_array_equal(sp.csr_matrix(tuple(written), dense.shape).toarray(), dense[order])


def test_blocks_of_the_store_are_decoded_once(tmp_path, monkeypatch):
    """Gathered bucket by bucket, rows would have every block decoded for every bucket."""
    monkeypatch.setattr(buckets, "ENTRIES_TOGETHER", 1000)
    store_of(tmp_path / "atlas.zarr", clustered_counts())
    store = open_store(tmp_path / "atlas.zarr")
    order = np.random.default_rng(0).permutation(store.n_obs)
    write_reordered(tmp_path / "out.zarr", reordered_layout(store.layout, order), store, order, 1, int)
    assert store.entries_decoded < 2 * store.layout.num_entries  # both stretches decode the block at their border
