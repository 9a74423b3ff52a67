import json
import shutil
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import AlreadyDone, ConfigError, DataError, UsageError
from unicoord_atlas.jobs import (
    activities,
    build_graph,
    check,
    export_reference,
    gene_set_tables,
    ingest,
    map_query,
    reorder,
    train,
)
from unicoord_atlas.jobs.select_gene_sets import SelectGeneSetsOptions, run
from unicoord_atlas.loaders.graph_store import Neighbors, fingerprint_of
from unicoord_atlas.loaders.store import open_store

NUM_CELLS, NUM_GENES, WIDTH = 360, 400, 20
TYPES = ("B", "Mono", "T")
SMALL = {
    "min_genes": 10, "top_share": 0.2, "cells": 200, "null_draws": 200, "null_sizes": 3, "null_cells": 100,
    "p": 0.05, "trees": 20, "top": 6, "groups": 3,
}  # fmt: skip


class Killed(BaseException):
    pass


def some_cells(seed: int = 0, num_cells: int = NUM_CELLS) -> anndata.AnnData:
    """Each type has a programme of 20 genes, and a fourth programme follows a gradient over all cells."""
    rng = np.random.default_rng(seed)
    types = np.arange(num_cells) % 3
    rates = np.tile(np.random.default_rng(7).gamma(0.4, 0.5, NUM_GENES), (num_cells, 1))
    for number in range(4):
        own = (types == number) | (number == 3)
        strength = np.where(own, 8.0, 1.0) * rng.random(num_cells) ** 2
        rates[:, number * WIDTH : (number + 1) * WIDTH] += strength[:, None]
    obs = pd.DataFrame({"cell_type": np.array(TYPES)[types]}, index=[f"c{i}" for i in range(num_cells)])
    var = pd.DataFrame(index=[f"g{i}" for i in range(NUM_GENES)])
    return anndata.AnnData(rng.poisson(rates).astype(np.float32), obs=obs, var=var)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An atlas without scores, and a file with the four programmes, halves of them, and sets of chance."""
    folder = tmp_path_factory.mktemp("sets")
    some_cells().write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    rng = np.random.default_rng(3)
    sets = {f"GO:{i}\tprogramme {i}/p": np.arange(i * WIDTH, (i + 1) * WIDTH) for i in range(4)}
    sets |= {f"GO:1{i}\thalf {i}": np.arange(i * WIDTH, i * WIDTH + 12) for i in range(4)}
    sets |= {f"GO:2{i}\tchance {i}": 80 + rng.choice(320, 15, replace=False) for i in range(6)}
    lines = ["\t".join([name, *(f"g{i}" for i in genes)]) for name, genes in sets.items()]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def fresh(made, tmp_path):
    shutil.copytree(made / "atlas.zarr", tmp_path / "atlas.zarr")
    return tmp_path / "atlas.zarr"


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options(store, made, **changes) -> SelectGeneSetsOptions:
    return SelectGeneSetsOptions(store, made / "sets.gmt", "cell_type", **{**SMALL, **changes})


def test_planted_programmes_are_chosen_and_scored_by_name(made, fresh):
    result = run(options(fresh, made))
    assert len(result["sets"]) == 3
    cells = anndata.read_zarr(fresh)
    scores = cells.obsm["X_gene_sets"]
    assert list(scores.columns) == result["sets"]
    assert scores.index.equals(cells.obs_names)
    assert json.loads(cells.uns["unicoord_gene_sets"]["settings"])["null_draws"] == 200
    table = pd.read_csv(fresh.parent / "atlas.gene-sets" / "sets.csv", index_col="set")
    assert not table[table["title"].str.startswith("chance")]["chosen"].any()
    chosen = table[table["chosen"]]
    programmes = chosen["title"].str.extract(r"(\d)")[0]
    assert programmes.nunique() == 3  # of a programme and its half, which correlate, one
    best = chosen.loc[chosen.groupby("group")["entropy"].idxmax()]
    assert sorted(best["title"]) == sorted(result["sets"])
    assert (table["above_chance"] == (table["p"] < 0.05)).all()
    rows = pd.read_parquet(fresh.parent / "atlas.gene-sets" / "scores.parquet")
    same = scores.loc[rows.index, list(chosen["title"])].to_numpy()
    np.testing.assert_array_equal(rows[list(chosen.index)].to_numpy(), same)
    check.run(fresh)
    assert run(options(fresh, made))["already_done"]


def test_same_settings_write_the_same_bytes_whatever_the_threads_and_kills(made, fresh, tmp_path, monkeypatch):
    twin = tmp_path / "twin" / "atlas.zarr"
    shutil.copytree(fresh, twin)
    run(options(twin, made, threads=1))

    def killed(*_args, **_kwargs):
        raise Killed

    monkeypatch.setattr(gene_set_tables, "forest_importance", killed)
    with pytest.raises(Killed):
        run(options(fresh, made, threads=2))
    monkeypatch.undo()
    monkeypatch.setattr(gene_set_tables, "null_entropies", killed)  # done before the kill, and kept
    run(options(fresh, made, threads=2))
    for name in ("atlas.zarr", "atlas.gene-sets"):
        assert files_of(tmp_path / name) == files_of(twin.parent / name)
        assert files_of(tmp_path / name) == files_of(twin.parent / name)


def test_dask_writes_the_same_scores(made, fresh):
    run(options(fresh, made, dask="local:2"))
    alone = made / "alone.zarr"
    shutil.copytree(made / "atlas.zarr", alone)
    run(options(alone, made))
    np.testing.assert_array_equal(open_store(fresh).obsm("X_gene_sets"), open_store(alone).obsm("X_gene_sets"))


def test_other_settings_need_replace(made, fresh, tmp_path):
    run(options(fresh, made))
    with pytest.raises(DataError, match=r"atlas\.gene-sets exists, made from other config"):
        run(options(fresh, made, seed=1))
    with pytest.raises(DataError, match=r"has another gene_sets .*seed"):
        run(options(fresh, made, seed=1, out=tmp_path / "other"))
    result = run(options(fresh, made, seed=1, out=tmp_path / "other", replace=True))
    assert list(open_store(fresh).obsm("X_gene_sets").columns) == result["sets"]
    check.run(fresh)


def test_sets_that_got_other_genes_under_their_names_need_replace(made, fresh, tmp_path):
    run(options(fresh, made))
    lines = (made / "sets.gmt").read_text().splitlines()
    (tmp_path / "sets.gmt").write_text("\n".join(line.rpartition("\t")[0] for line in lines) + "\n")  # one gene less
    changed = replace(options(fresh, made, out=tmp_path / "other"), gmt=tmp_path / "sets.gmt")
    with pytest.raises(DataError, match=r"has another gene_sets \((sets, )?members differ\); say --replace"):
        run(changed)
    titles = run(replace(changed, replace=True))["sets"]
    assert list(open_store(fresh).obsm("X_gene_sets").columns) == titles
    assert run(changed)["already_done"]


def test_trees_may_split_between_all_scores(made, fresh, tmp_path):
    run(options(fresh, made))
    run(options(fresh, made, levels=0, out=tmp_path / "all", replace=True))
    of_levels, of_all = (
        pd.read_parquet(folder / "importance.parquet")["importance"]
        for folder in (fresh.parent / "atlas.gene-sets", tmp_path / "all")
    )
    assert of_levels.index.equals(of_all.index)
    assert not np.array_equal(of_levels, of_all)


def test_a_selection_that_does_not_say_its_levels_is_refused_in_a_line(made, fresh):
    run(options(fresh, made))
    path = fresh.parent / "atlas.gene-sets" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["config"]["levels"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"atlas\.gene-sets exists, made from other config"):
        run(options(fresh, made))


def test_activities_of_scores_that_were_replaced_are_others(made, fresh, tmp_path):
    run(options(fresh, made))
    asked = activities.ActivitiesOptions(fresh, "cell_type", tmp_path / "active")
    activities.run(asked)
    with pytest.raises(AlreadyDone):
        activities.run(asked)
    run(options(fresh, made, score="mean_z", out=tmp_path / "other", replace=True))
    with pytest.raises(DataError, match="active exists, made from other config"):
        activities.run(asked)


def test_scores_that_a_graph_was_made_of_are_put_in_order_with_it(made, fresh, tmp_path):
    run(options(fresh, made))
    build_graph.run(build_graph.BuildGraphOptions(fresh, k=5, use_rep="X_gene_sets"))
    reorder.run(reorder.ReorderOptions(fresh, tmp_path / "near.zarr"))
    old, new = anndata.read_zarr(fresh), anndata.read_zarr(tmp_path / "near.zarr")
    order = new.obs[reorder.ORIGINAL_ROW].to_numpy()
    pd.testing.assert_frame_equal(new.obsm["X_gene_sets"], old.obsm["X_gene_sets"].iloc[order])
    near = open_store(tmp_path / "near.zarr")
    assert new.uns["unicoord_gene_sets"]["fingerprint"] == fingerprint_of(near)
    assert list(new.uns["unicoord_gene_sets"]["titles"]) == list(old.obsm["X_gene_sets"].columns)
    assert len(Neighbors(near).indptr) == NUM_CELLS + 1
    check.run(tmp_path / "near.zarr")
    run(options(tmp_path / "near.zarr", made, score="mean_z", replace=True))  # is known as what it is


def test_mean_z_and_random_zeros_are_chosen_by_name(made, fresh, tmp_path):
    for number, changes in enumerate(({"score": "mean_z"}, {"zeros": "random"})):
        run(options(fresh, made, out=tmp_path / str(number), replace=True, **changes))
        table = pd.read_csv(tmp_path / str(number) / "chosen.csv")
        assert not table["title"].str.startswith("chance").any()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"min_genes": 30, "max_genes": 20}, ConfigError, "min_genes = 30"),
        ({"score": "ssgsea"}, ConfigError, "score 'ssgsea' is unknown; it can be aucell or mean_z"),
        ({"p": 0.0}, ConfigError, "p must be over 0"),
        ({"levels": 1}, ConfigError, "levels must be 0, for all scores, or 2 or more, got 1"),
        ({"min_genes": 300}, DataError, "none of its 14 sets has 300 to 500"),
        ({"p": 1e-6}, DataError, r"no set's entropy is above .* p < 1e-06 \(the least p is 0.005\)"),
    ],
)
def test_bad_settings_are_named(made, fresh, changes, error, message):
    with pytest.raises(error, match=message):
        run(options(fresh, made, **changes))
    assert not (fresh.parent / "atlas.gene-sets").exists()


def test_supervised_sets_reach_a_query_by_name_and_its_table_of_activities(made, fresh, tmp_path, capsys):
    titles = run(options(fresh, made))["sets"]
    tree = tmp_path / "tree.csv"
    tree.write_text("father,child\n,Blood\nBlood,Lymphoid\nBlood,Myeloid\nLymphoid,B\nLymphoid,T\nMyeloid,Mono\n")
    config = RunConfig.load(
        None,
        [
            'latent.discrete=["cell_type"]', 'latent.continuous=["obsm:X_gene_sets"]', f'latent.hierarchy=["{tree}"]',
            "latent.unsupervised_continuous=4", "model.hidden=[64, 32]", "train.epochs=40", "train.batch_size=32",
            "train.learning_rate=0.002", "augment.thinning=0.3", "augment.gene_dropout=0", "train.precision=fp32",
        ],
    )  # fmt: skip
    train.run(train.TrainOptions(fresh, tmp_path / "run", config))
    export_reference.run(export_reference.ExportReferenceOptions(tmp_path / "run", tmp_path / "reference"))
    some_cells(seed=5, num_cells=150).write_h5ad(tmp_path / "new.h5ad")
    mapped = tmp_path / "mapped.h5ad"
    map_query.run(map_query.MapQueryOptions(tmp_path / "new.h5ad", tmp_path / "reference", mapped, consistent=True))
    cells = anndata.read_h5ad(mapped)
    table = cells.obsm["X_gene_sets"]
    assert list(table.columns) == titles
    np.testing.assert_array_equal(table.to_numpy(), cells.obsm["X_unicoord"][:, :3])
    stored = tmp_path / "mapped.zarr"
    beside = {"consistent": True, "with_counts": True}
    map_query.run(map_query.MapQueryOptions(tmp_path / "new.h5ad", tmp_path / "reference", stored, **beside))
    pd.testing.assert_frame_equal(anndata.read_zarr(tmp_path / "mapped.zarr").obsm["X_gene_sets"], table)
    parents = cells.obs["cell_type_predicted"].astype(str).map({"B": "Lymphoid", "T": "Lymphoid", "Mono": "Myeloid"})
    assert (parents == cells.obs["cell_type_level1_predicted"].astype(str)).all()
    metrics = json.loads((tmp_path / "reference" / "config.json").read_text())["metrics"]
    assert metrics["cell_type_agrees_with_cell_type_level1"] > 0.7
    assert metrics["cell_type_hierarchical_f1"] > 0.7

    result = activities.run(activities.ActivitiesOptions(mapped, "cell_type_predicted", tmp_path / "new"))
    of_atlas = activities.run(activities.ActivitiesOptions(fresh, "cell_type", tmp_path / "old"))
    assert {name: sets[0] for name, sets in result["top"].items()} == {
        name: sets[0] for name, sets in of_atlas["top"].items()
    }
    assert (tmp_path / "new" / "activities.png").stat().st_size > 1000
    # Beside counts and a manifest it is still no atlas.
    of_stored = activities.run(activities.ActivitiesOptions(stored, "cell_type_predicted", tmp_path / "stored"))
    assert of_stored["top"] == result["top"]
    with pytest.raises(UsageError, match="obsm has no 'X_sets'"):
        activities.run(activities.ActivitiesOptions(mapped, "cell_type_predicted", tmp_path / "no", "X_sets"))
    with pytest.raises(UsageError, match="obs has no column 'kind'"):
        activities.run(activities.ActivitiesOptions(mapped, "kind", tmp_path / "no"))


def test_a_tree_with_several_parents_is_said_before_training(made, tmp_path, capsys):
    tree = tmp_path / "tree.csv"
    tree.write_text("father,child\n,A\nA,L\nA,M\nL,B\nM,B\nL,T\nM,Mono\n")
    settings = ['latent.discrete=["cell_type"]', f'latent.hierarchy=["{tree}"]', "train.epochs=1"]
    config = RunConfig.load(None, [*settings, "model.hidden=[16]"])
    train.run(train.TrainOptions(made / "atlas.zarr", tmp_path / "run", config))
    assert "1 labels have more than one parent and contribute to each: B (L, M)" in capsys.readouterr().err
