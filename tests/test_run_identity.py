"""With what a training run goes on: the cells, labels, tables and graph that it began with."""

import json

import pytest
from test_graph import build, clustered_counts, give_table, points_of_cells, store_of

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import DataError
from unicoord_atlas.jobs.run_identity import claim, refuse_other
from unicoord_atlas.loaders.store import open_store

CONFIG = RunConfig.load(
    None,
    [
        'latent.discrete=["cell_type"]',
        'latent.continuous=["size_factor", "obsm:X_given"]',
        "latent.diffusion=2",
        'data.exclude=["source=two"]',
    ],
)


@pytest.fixture
def atlas(tmp_path):
    path = store_of(tmp_path / "atlas.zarr", clustered_counts())
    give_table(path, points_of_cells())
    build(path)
    return path


@pytest.fixture
def run(atlas, tmp_path):
    claim(tmp_path / "run", open_store(atlas), CONFIG)
    return tmp_path / "run"


def change_file(atlas, start):
    """As if a file, of which only the manifest's checksum is looked at, had been written with other content."""
    manifest = json.loads((atlas / "manifest.json").read_text())
    name = next(name for name in manifest["files"] if name.startswith(start))
    manifest["files"][name]["crc32c"] = "00000000"
    (atlas / "manifest.json").write_text(json.dumps(manifest))


def test_another_graph_or_table_makes_another_run(atlas, run):
    refuse_other(run, open_store(atlas), CONFIG)
    build(atlas, k=4, replace=True)
    with pytest.raises(DataError, match=r"run is another run \(graph differ\); choose another one"):
        refuse_other(run, open_store(atlas), CONFIG)
    build(atlas, replace=True)
    give_table(atlas, points_of_cells(seed=1), replace=True)
    with pytest.raises(DataError, match=r"\(obsm/X_given differ\)"):
        refuse_other(run, open_store(atlas), CONFIG)
    give_table(atlas, points_of_cells(), replace=True)
    refuse_other(run, open_store(atlas), CONFIG)


@pytest.mark.parametrize(
    ("start", "named"),
    [
        ("obs/cell_type/codes/c", "obs/cell_type"),
        ("obs/size_factor/c", "obs/size_factor"),
        ("obs/source/", "obs/source"),
        ("obs/_index/c", "cells"),
    ],
)
def test_other_labels_or_names_of_cells_make_another_run(atlas, run, start, named):
    change_file(atlas, start)
    with pytest.raises(DataError, match=rf"\({named} differ\)"):
        refuse_other(run, open_store(atlas), CONFIG)


def test_what_a_run_does_not_read_may_change(atlas, run):
    less = RunConfig.load(None, ['latent.discrete=["cell_type"]'])
    claim(run.parent / "less", open_store(atlas), less)
    change_file(atlas, "obs/source/")
    build(atlas, k=4, replace=True)
    refuse_other(run.parent / "less", open_store(atlas), less)


def test_a_run_of_an_earlier_version_noted_less_and_goes_on(atlas, run):
    facts = json.loads((run / "run.json").read_text())
    del facts["read"]["graph"]
    (run / "run.json").write_text(json.dumps(facts))
    build(atlas, k=4, replace=True)
    refuse_other(run, open_store(atlas), CONFIG)
    del facts["read"]
    (run / "run.json").write_text(json.dumps(facts))
    give_table(atlas, points_of_cells(seed=1), replace=True)
    refuse_other(run, open_store(atlas), CONFIG)
