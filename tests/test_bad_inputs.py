"""Bad input is refused with one clear line and exit code 65 or 78; nothing is written, and there is no traceback."""

import shutil
import sys
import warnings
from unittest import mock

import bad_inputs
import pytest
from bad_inputs import (
    CONFIG,
    DATA,
    GENE_SETS,
    H5AD,
    MANIFESTS,
    OTHER_VALUES,
    REFERENCES,
    SETTINGS,
    STORES,
    TABLES,
    TOMLS,
    TREES,
)
from references import random_cells, random_reference
from stores import random_counts, write_store

from unicoord_atlas.jobs.cli import app, run_command

LONGEST = 2000


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file, a store and a reference with nothing wrong."""
    folder = tmp_path_factory.mktemp("sound")
    bad_inputs.sound_cells().write_h5ad(folder / "cells.h5ad")
    random_cells().write_h5ad(folder / "query.h5ad")
    write_store(folder / "atlas.zarr", random_counts(60, 20))
    reference = random_reference()
    (folder / "reference").mkdir()
    reference.save(folder / "reference")
    return folder


@pytest.fixture
def bring(sound, tmp_path):
    """Copies some of it."""

    def copies(*names):
        for name in names:
            copy = shutil.copytree if (sound / name).is_dir() else shutil.copy
            copy(sound / name, tmp_path / name)
        return tmp_path

    return copies


def everything(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


def refused(folder, capsys, words, code):
    """Run a command that must refuse; its one line."""
    before = everything(folder)
    capsys.readouterr()
    with mock.patch.object(sys, "argv", ["unicoord-atlas", *map(str, words)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        found = run_command(app)
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("unicoord-atlas: ")]
    assert (found, len(said)) == (code, 1), lines[-5:]
    assert lines[-1] == said[0], lines[-5:]  # the message has no second line
    assert said[0].isprintable() and len(said[0]) < LONGEST
    assert everything(folder) == before
    return said[0]


@pytest.mark.parametrize("fault", H5AD)
def test_ingest_and_map_query_refuse_a_bad_file(bring, capsys, fault):
    folder = bring("cells.h5ad", "reference")
    path = folder / "cells.h5ad"
    H5AD[fault](path)
    ingest = ["ingest", path, "--label", "cell_type", "--out", folder / "out.zarr"]
    assert "cells" in refused(folder, capsys, ingest, DATA)
    if fault not in ("obs column missing", "cell names twice", "huge cell name twice", "control characters twice"):
        query = ["map-query", path, "--reference", folder / "reference", "--out", folder / "mapped.h5ad"]
        assert "cells" in refused(folder, capsys, query, DATA)


@pytest.mark.parametrize("fault", [*MANIFESTS, *STORES])
def test_a_bad_store_is_refused(bring, capsys, fault):
    folder = bring("atlas.zarr")
    path = folder / "atlas.zarr"
    (MANIFESTS | STORES)[fault](path)
    assert "atlas.zarr" in refused(folder, capsys, ["check", path], DATA)
    train = ["train", path, "--discrete", "cell_type", "--out", folder / "run"]
    assert "atlas.zarr" in refused(folder, capsys, train, DATA)


@pytest.mark.parametrize("fault", [fault for fault in STORES if fault not in OTHER_VALUES])
def test_a_bad_store_is_refused_where_it_is_read_if_its_manifest_tells_it_as_it_is(bring, capsys, fault):
    folder = bring("atlas.zarr")
    path = folder / "atlas.zarr"
    STORES[fault](path)
    bad_inputs.resealed(path)
    train = ["train", path, "--discrete", "cell_type", "--out", folder / "run"]
    assert "atlas.zarr" in refused(folder, capsys, train, DATA)


@pytest.mark.parametrize("fault", TOMLS)
def test_a_bad_file_of_settings_is_refused(bring, capsys, fault):
    folder = bring("atlas.zarr")
    content = TOMLS[fault]
    path = folder / "settings.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    words = ["train", folder / "atlas.zarr", "--out", folder / "run", "--config", path]
    assert "settings.toml" in refused(folder, capsys, words, CONFIG)


@pytest.mark.parametrize("fault", SETTINGS)
def test_a_bad_setting_is_refused(bring, capsys, fault):
    folder = bring("atlas.zarr")
    refused(folder, capsys, ["train", folder / "atlas.zarr", "--out", folder / "run", "--set", SETTINGS[fault]], CONFIG)


@pytest.mark.parametrize("fault", REFERENCES)
def test_a_bad_reference_is_refused(bring, capsys, fault):
    folder = bring("query.h5ad", "reference")
    REFERENCES[fault](folder / "reference")
    words = ["map-query", folder / "query.h5ad", "--reference", folder / "reference", "--out", folder / "mapped.h5ad"]
    assert "reference" in refused(folder, capsys, words, DATA)


@pytest.mark.parametrize("fault", TABLES)
def test_a_bad_table_is_refused(bring, capsys, fault):
    folder = bring("cells.h5ad")
    option, content = TABLES[fault]
    path = folder / "table.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    words = ["ingest", folder / "cells.h5ad", "--label", "cell_type", option, path, "--out", folder / "out.zarr"]
    line = refused(folder, capsys, words, DATA)
    assert "table.txt" in line or "no genes in common" in line


@pytest.mark.parametrize("fault", TREES)
def test_a_bad_tree_is_refused(bring, capsys, fault):
    folder = bring("atlas.zarr")
    content = TREES[fault]
    path = folder / "tree.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    words = ["train", folder / "atlas.zarr", "--out", folder / "run", "--discrete", "cell_type", "--hierarchy", path]
    assert "tree.csv" in refused(folder, capsys, words, DATA)


@pytest.mark.parametrize("fault", GENE_SETS)
def test_a_bad_file_of_gene_sets_is_refused(bring, capsys, fault):
    folder = bring("atlas.zarr")
    content = GENE_SETS[fault]
    path = folder / "sets.gmt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    words = ["select-gene-sets", folder / "atlas.zarr", "--gmt", path, "--label", "cell_type", "--min-genes", "1"]
    assert "sets.gmt" in refused(folder, capsys, [*words, "--out", folder / "tables"], DATA)
