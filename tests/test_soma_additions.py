"""Graphs and scores that jobs add to a SOMA Experiment, against those of the Zarr atlas of the same cells."""

import pickle
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from cells import counts_of_types
from stores import killed_after_a_table
from test_graph import give_table

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.jobs import activities, amend_store, build_graph, convert, ingest, reorder, report, train
from unicoord_atlas.jobs.build_graph import BuildGraphOptions
from unicoord_atlas.jobs.cli import run_command
from unicoord_atlas.jobs.select_gene_sets import SelectGeneSetsOptions
from unicoord_atlas.jobs.select_gene_sets import run as select
from unicoord_atlas.loaders import soma_additions
from unicoord_atlas.loaders.graph_store import Neighbors
from unicoord_atlas.loaders.locks import held
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.training.metrics import read_metrics

tiledbsoma = pytest.importorskip("tiledbsoma")
io = pytest.importorskip("tiledbsoma.io")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the library's own
NUM_CELLS, NUM_GENES = 300, 90
GRAPH = {"k": 5, "num_pcs": 6, "num_genes": 60}
LUNG = 'filter=tissue == "lung"'


class Killed(BaseException):
    pass


def killed(*args):
    raise Killed


def graph(path, **changes):
    return build_graph.run(BuildGraphOptions(path, **{**GRAPH, **changes}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """atlas.zarr and plain.soma of it; graphed.zarr with a graph; sets.gmt."""
    folder = tmp_path_factory.mktemp("soma_additions")
    counts, types = counts_of_types(NUM_CELLS, NUM_GENES)
    tissue = np.where(np.arange(NUM_CELLS) % 4 < 2, "lung", "blood")
    obs = pd.DataFrame(
        {"cell_type": np.array(["B", "T", "NK"])[types], "tissue": tissue}, [f"cell{i}" for i in range(NUM_CELLS)]
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(NUM_GENES)])
    anndata.AnnData(counts.astype(np.float32), obs=obs, var=var).write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    convert.run(convert.ConvertOptions(folder / "atlas.zarr", folder / "plain.soma"))
    shutil.copytree(folder / "atlas.zarr", folder / "graphed.zarr")
    graph(folder / "graphed.zarr")
    rng = np.random.default_rng(3)
    sets = [f"S{i}\tset {i}\t" + "\t".join(f"GENE{g}" for g in rng.permutation(NUM_GENES)[:15]) for i in range(12)]
    (folder / "sets.gmt").write_text("\n".join(sets) + "\n")
    return folder


@pytest.fixture
def soma(made, tmp_path):
    return shutil.copytree(made / "plain.soma", tmp_path / "cells.soma")


def give(soma, key, table):
    """As another program adds a table."""
    with tiledbsoma.Experiment.open(str(soma), "w") as experiment:
        io.add_matrix_to_collection(experiment, "RNA", "obsm", key, table)


def as_anndata(path):
    with tiledbsoma.Experiment.open(str(path)) as experiment:
        return io.to_anndata(experiment, "RNA", X_layer_name="data")


def assert_same_graph(one, other):
    rows = np.arange(one.n_obs)
    for found, expected in zip(Neighbors(one).of(rows), Neighbors(other).of(rows), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_graph_is_that_of_the_zarr_atlas_and_scanpy_finds_it(made, soma):
    assert graph(soma)["edges"] > NUM_CELLS
    cells, expected = as_anndata(soma), anndata.read_zarr(made / "graphed.zarr")
    np.testing.assert_array_equal(cells.obsm["X_pca"], expected.obsm["X_pca"])
    np.testing.assert_array_equal(cells.varm["PCs"], expected.varm["PCs"])
    for key in ("distances", "connectivities"):
        assert (cells.obsp[key] != expected.obsp[key]).nnz == 0
        assert cells.obsp[key].nnz == expected.obsp[key].nnz
    assert cells.uns["neighbors"] == expected.uns["neighbors"]
    np.testing.assert_array_equal(cells.uns["pca"]["variance"], expected.uns["pca"]["variance"])
    assert_same_graph(open_store(soma), open_store(made / "graphed.zarr"))
    assert list(soma.parent.iterdir()) == [soma]


def test_another_graph_takes_the_place_of_one_only_when_told(soma):
    with pytest.raises(UsageError, match="has no graph of neighbours"):
        Neighbors(open_store(soma))
    graph(soma)
    assert graph(soma)["already_done"]
    with pytest.raises(DataError, match=r"another graph \(k differ\); say --replace"):
        graph(soma, k=4)
    graph(soma, k=4, replace=True)
    assert np.diff(Neighbors(open_store(soma)).indptr).tolist() == [4] * NUM_CELLS
    assert as_anndata(soma).uns["neighbors"]["params"]["n_neighbors"] == 5


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(NUM_CELLS, 4)).astype(np.float32)


def test_a_graph_of_a_table_that_was_written_anew_is_no_graph(soma, points):
    give(soma, "X_given", points)
    graph(soma, use_rep="X_given")
    assert graph(soma, use_rep="X_given")["already_done"]
    assert len(Neighbors(open_store(soma)).indptr) == NUM_CELLS + 1
    soma_additions._take_out(str(soma), "RNA", "obsm/X_given")
    give(soma, "X_given", points[::-1].copy())
    with pytest.raises(DataError, match="of an older state of the atlas"):
        Neighbors(open_store(soma))
    with pytest.raises(DataError, match=r"another graph \(points differ\)"):
        graph(soma, use_rep="X_given")


def test_a_graph_of_a_given_table_comes_along_when_an_atlas_is_converted(made, tmp_path, points):
    atlas, copy = shutil.copytree(made / "atlas.zarr", tmp_path / "atlas.zarr"), tmp_path / "given.soma"
    give_table(atlas, points)
    graph(atlas, use_rep="X_given")
    convert.run(convert.ConvertOptions(atlas, copy))
    assert_same_graph(open_store(copy), open_store(atlas))
    assert graph(copy, use_rep="X_given")["already_done"]


def test_an_experiment_that_goes_to_a_cluster_is_found_from_any_folder(soma, monkeypatch):
    monkeypatch.chdir(soma.parent)
    sent = pickle.dumps(open_store(Path(f"{soma.name}?{LUNG}")))
    monkeypatch.chdir("/")
    assert pickle.loads(sent).n_obs == NUM_CELLS // 2


def test_a_graph_of_some_cells_is_no_graph_of_others(made, soma, tmp_path):
    lung = Path(f"{soma}?{LUNG}")
    graph(lung)
    chosen = open_store(lung)
    convert.run(convert.ConvertOptions(lung, tmp_path / "lung.zarr"))
    graph(tmp_path / "lung.zarr")
    assert_same_graph(chosen, open_store(tmp_path / "lung.zarr"))
    cells = as_anndata(soma)
    outside = (cells.obs["tissue"] != "lung").to_numpy()
    assert np.isnan(cells.obsm["X_pca"][outside]).all()
    assert not np.isnan(cells.obsm["X_pca"][~outside]).any()
    assert cells.obsp["connectivities"][outside].nnz == 0
    with pytest.raises(DataError, match="its graph was made of other cells"):
        Neighbors(open_store(soma))


def test_what_lies_ready_is_put_where_it_belongs_whatever_cells_the_next_call_names(soma, monkeypatch):
    lung = Path(f"{soma}?{LUNG}")
    with monkeypatch.context() as patch:
        patch.setattr(soma_additions, "_write_facts", killed)
        with pytest.raises(Killed):
            graph(lung)
    with pytest.raises(DataError, match=r"another graph \(cells differ\)"):
        graph(soma)
    assert len(Neighbors(open_store(lung)).indptr) == NUM_CELLS // 2 + 1


@pytest.mark.parametrize(
    ("where", "before"),
    [("_take_out", True), ("_write_graph", False), ("_write_facts", True), ("write_record", False)],
)
def test_a_killed_addition_is_none_and_the_next_call_completes_it(made, soma, monkeypatch, where, before):
    if before:
        graph(soma, k=3)
    whole, calls = getattr(soma_additions, where), []

    def kill(*args, **kwargs):
        calls.append(args)
        if len(calls) == (1 if where == "_write_facts" else 2):
            raise Killed
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(soma_additions, where, kill)
        with pytest.raises(Killed):
            graph(soma, replace=True)
    with pytest.raises(UsageError, match="has no graph"):
        Neighbors(open_store(soma))
    with monkeypatch.context() as patch:
        patch.setattr(build_graph, "_build", None)  # nothing is computed again
        assert graph(soma)["already_done"]
    assert_same_graph(open_store(soma), open_store(made / "graphed.zarr"))
    assert list(soma.parent.iterdir()) == [soma]


def test_what_others_put_in_an_experiment_is_never_replaced(made, tmp_path):
    cells = anndata.read_h5ad(made / "cells.h5ad")
    cells.obsm["X_pca"] = np.ones((NUM_CELLS, 3), np.float32)
    io.from_anndata(str(tmp_path / "foreign.soma"), cells, "RNA")
    with pytest.raises(DataError, match=r"has obsm/X_pca already, which graph would write"):
        graph(tmp_path / "foreign.soma")
    assert as_anndata(tmp_path / "foreign.soma").obsm["X_pca"].tolist() == np.ones((NUM_CELLS, 3)).tolist()
    del cells.obsm["X_pca"]
    io.from_anndata(str(tmp_path / "bare.soma"), cells, "RNA")
    graph(tmp_path / "bare.soma")
    assert_same_graph(open_store(tmp_path / "bare.soma"), open_store(made / "graphed.zarr"))


def test_a_graph_comes_along_when_an_atlas_is_converted(made, tmp_path):
    convert.run(convert.ConvertOptions(made / "graphed.zarr", tmp_path / "graphed.soma"))
    assert_same_graph(open_store(tmp_path / "graphed.soma"), open_store(made / "graphed.zarr"))
    assert graph(tmp_path / "graphed.soma")["already_done"]


def test_losses_with_neighbours_are_those_of_the_zarr_atlas_to_the_last_bit(made, soma, tmp_path):
    graph(soma)
    settings = RunConfig.load(
        None,
        [
            'latent.discrete=["cell_type"]',
            "latent.diffusion=2",
            "model.hidden=[16]",
            "train.epochs=2",
            "train.batch_size=32",
            "train.precision=fp32",
        ],
    )
    losses, timed = [], ("seconds", "cells_per_second", "data_wait")
    for path in (made / "graphed.zarr", soma):
        train.run(train.TrainOptions(path, tmp_path / f"{path.name}.run", settings))
        lines = read_metrics(tmp_path / f"{path.name}.run" / "metrics.jsonl")
        losses.append([{key: value for key, value in line.items() if key not in timed} for line in lines])
    assert losses[0] == losses[1]
    assert losses[0][0]["diffusion"] > 0


def test_scores_of_gene_sets_are_those_of_the_zarr_atlas(made, soma, tmp_path):
    small = {
        "min_genes": 10, "top_share": 0.3, "cells": 200, "null_draws": 200, "null_sizes": 2, "null_cells": 100,
        "p": 1.0, "trees": 20, "top": 6, "groups": 3,
    }  # fmt: skip
    shutil.copytree(made / "atlas.zarr", tmp_path / "atlas.zarr")
    for path in (soma, tmp_path / "atlas.zarr"):
        assert len(select(SelectGeneSetsOptions(path, made / "sets.gmt", "cell_type", **small))["sets"]) == 3
    assert (tmp_path / "cells.gene-sets").is_dir()
    found, expected = (open_store(path).obsm("X_gene_sets") for path in (soma, tmp_path / "atlas.zarr"))
    assert list(found.columns) == list(expected.columns)
    assert found.index.tolist() == expected.index.tolist()
    np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy())
    assert list(as_anndata(soma).uns["unicoord_gene_sets"]["titles"]) == list(expected.columns)
    tables = [tmp_path / name for name in ("of_soma", "of_zarr")]
    for path, out in zip((soma, tmp_path / "atlas.zarr"), tables, strict=True):
        activities.run(activities.ActivitiesOptions(path, "cell_type", out))
    assert (tables[0] / "activities.csv").read_bytes() == (tables[1] / "activities.csv").read_bytes()
    settings = ['latent.continuous=["obsm:X_gene_sets"]', "model.hidden=[16]", "train.epochs=1"]
    train.run(
        train.TrainOptions(soma, tmp_path / "run", RunConfig.load(None, ['latent.discrete=["cell_type"]', *settings]))
    )
    options = report.ReportOptions(tmp_path / "run", tmp_path / "page.html", soma)
    before = options.made_from()
    graph(soma)
    assert options.made_from() != before
    pytest.importorskip("umap")
    page = report.run(options)
    assert {"map", "graph", "activities"}.isdisjoint(page["left_out"])


def test_only_a_zarr_atlas_is_put_in_another_order(soma, tmp_path):
    with pytest.raises(UsageError, match=r"only a Zarr atlas can be put in another order; .*unicoord-atlas convert"):
        reorder.run(reorder.ReorderOptions(soma, tmp_path / "ordered.zarr"))
    assert not (tmp_path / "ordered.zarr").exists()
    with pytest.raises(UsageError, match="this needs the atlas on this machine"):
        amend_store.finish_amendment(Path("s3://bucket/cells.soma?layer=raw"), "graph")


def latents_of(store, path, seed=0):
    """Tables of coordinates, as export-latents names them, and the file that holds them."""
    rng, names = np.random.default_rng(seed), store.obs([]).index
    widths = {"X_unicoord": 3, "X_unicoord_bio": 2, "X_unicoord_cell type": 4}
    tables = {key: rng.random((len(names), width), np.float32) for key, width in widths.items()}
    anndata.AnnData(obs=pd.DataFrame(index=names), obsm=tables).write_h5ad(path)
    return tables


def assert_has(address, tables):
    store = open_store(address)
    for key, table in tables.items():
        np.testing.assert_array_equal(store.obsm(key), table)


def test_coordinates_killed_between_two_tables_are_completed_by_the_same_call(soma, tmp_path, monkeypatch):
    lung = Path(f"{soma}?{LUNG}")
    tables = latents_of(open_store(lung), tmp_path / "latents.h5ad")
    options = convert.AddLatentsOptions(tmp_path / "latents.h5ad", lung)
    monkeypatch.setattr(soma_additions, "_ROWS_TOGETHER", 64)  # written block by block
    with killed_after_a_table(monkeypatch):
        convert.add_latents(options)
    assert convert.add_latents(options)["obsm"] == sorted(tables)
    assert_has(lung, tables)
    cells = as_anndata(soma)
    outside = (cells.obs["tissue"] != "lung").to_numpy()
    for key in tables:
        assert np.isnan(cells.obsm[key][outside]).all()
    with pytest.raises(AlreadyDone):
        convert.add_latents(options)
    assert run_command(lambda: convert.add_latents(options)) == 0


def test_what_a_killed_writer_left_in_no_collection_is_written_over(soma, tmp_path):
    tables = latents_of(open_store(soma), tmp_path / "latents.h5ad")
    soma_additions.write_record(str(soma), "RNA", "latents", {}, [f"obsm/{key}" for key in tables], whole=False)
    with tiledbsoma.Collection.create(f"{soma}/ms/RNA/obsm") as left:
        left.add_new_dense_ndarray("X_unicoord", type=pa.float64(), shape=(7, 7)).close()
    convert.add_latents(convert.AddLatentsOptions(tmp_path / "latents.h5ad", soma))
    assert_has(soma, tables)


def test_coordinates_of_others_stay_and_a_prefix_gives_names_of_their_own(soma, tmp_path, points):
    paths = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    tables = [latents_of(open_store(soma), path, seed) for seed, path in enumerate(paths)]
    convert.add_latents(convert.AddLatentsOptions(paths[0], soma))
    with pytest.raises(DataError, match=r"has obsm/X_unicoord, .* already, of other cells or .*; .*prefix"):
        convert.add_latents(convert.AddLatentsOptions(paths[1], soma))
    convert.add_latents(convert.AddLatentsOptions(paths[1], soma, "two_"))
    assert_has(soma, tables[0] | {f"two_{key}": table for key, table in tables[1].items()})
    assert soma_additions.all_additions(soma) == {}  # of which a report is made
    give(soma, "foreign_X_unicoord", points)
    with pytest.raises(DataError, match=r"has obsm/foreign_X_unicoord already, which .*; .*prefix"):
        convert.add_latents(convert.AddLatentsOptions(paths[0], soma, "foreign_"))
    assert_has(soma, {"foreign_X_unicoord": points})


def test_a_mistyped_path_of_coordinates_is_one_line(soma, tmp_path, capsys):
    assert run_command(lambda: convert.add_latents(convert.AddLatentsOptions(tmp_path / "none.zarr", soma))) == 65
    assert capsys.readouterr().err.splitlines() == [
        f"unicoord-atlas: {tmp_path / 'none.zarr'}: no such file or directory"
    ]
    anndata.AnnData(obs=pd.DataFrame(index=open_store(soma).obs([]).index)).write_h5ad(tmp_path / "empty.h5ad")
    with pytest.raises(DataError, match="holds no coordinates"):
        convert.add_latents(convert.AddLatentsOptions(tmp_path / "empty.h5ad", soma))


def test_coordinates_are_added_by_one_process_at_a_time(soma, tmp_path):
    latents_of(open_store(soma), tmp_path / "latents.h5ad")
    with held(soma), pytest.raises(DataError, match="is being written by another process"):
        convert.add_latents(convert.AddLatentsOptions(tmp_path / "latents.h5ad", soma))
