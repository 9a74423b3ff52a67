"""Properties: whatever an input holds, a command either takes it or refuses it with one line, 65 or 78."""

import json
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from unittest import mock

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from bad_inputs import CONFIG, DATA, sound_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn_arrays
from stores import random_counts, write_store

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import AlreadyDone, ConfigError, DataError
from unicoord_atlas.jobs.amend_store import amended_store, check_amendment
from unicoord_atlas.jobs.check import run as check
from unicoord_atlas.jobs.cli import app, run_command
from unicoord_atlas.jobs.console_text import one_line
from unicoord_atlas.jobs.workdir import describe_input
from unicoord_atlas.loaders.manifest import read_manifest
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.store_files import open_files

QUICK = settings(max_examples=15, derandomize=True)  # HDF5 hangs on some damaged files: docs/security.md
MANY = settings(max_examples=2000)
DTYPES = st.one_of(
    drawn_arrays.integer_dtypes(), drawn_arrays.unsigned_integer_dtypes(), drawn_arrays.floating_dtypes(sizes=(32, 64))
)
NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = tuple(name for name in RunConfig.model_fields if name != "recipe")
KEYS = tuple(key for name in SECTIONS for key in type(getattr(RunConfig(), name)).model_fields)


@st.composite
def matrices(draw):
    shape = draw(st.tuples(st.integers(0, 6), st.integers(0, 5)))
    values = draw(drawn_arrays.arrays(draw(DTYPES), shape))
    form = draw(st.sampled_from([np.asarray, sp.csr_matrix, sp.csc_matrix]))
    return form(values) if form is np.asarray else form(values.astype(values.dtype.newbyteorder("=")))


@st.composite
def tables(draw):
    """AnnData of any numbers, any names."""
    counts = draw(matrices())
    obs, var = (draw(st.lists(NAMES, min_size=n, max_size=n)) for n in counts.shape)
    cells = pd.DataFrame({"cell_type": draw(st.lists(NAMES, min_size=len(obs), max_size=len(obs)))}, index=obs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique")
        return anndata.AnnData(counts, obs=cells.astype(object), var=pd.DataFrame(index=var))


def ingested(path, out):
    """Exit code of ingest; whether anything was written is checked."""
    with mock.patch.object(sys, "argv", ["", "ingest", str(path), "--label", "cell_type", "--out", str(out)]):
        code = run_command(app)
    assert code in (0, DATA)
    assert out.exists() == (code == 0) and not list(out.parent.glob(".*"))
    return code


def any_table(adata):
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique")
        path, out = Path(name) / "cells.h5ad", Path(name) / "out.zarr"
        adata.write_h5ad(path)
        if ingested(path, out) == 0:
            stored = open_store(out).to_anndata(lazy=False)
            assert stored.n_obs == adata.n_obs
            expected = np.asarray(adata.X.todense() if sp.issparse(adata.X) else adata.X, float)
            assert stored.X.sum() == expected.sum()  # what is taken is taken whole


def any_bytes(flips):
    """A sound file with some of its bytes changed."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "cells.h5ad"
        sound_cells().write_h5ad(path)
        content = bytearray(path.read_bytes())
        for place, value in flips:
            content[place % len(content)] = value
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged names and times
            ingested(path, Path(name) / "out.zarr")


def any_settings(tree):
    """TOML of whatever JSON can say."""
    try:
        config = RunConfig.of(tree)
    except ConfigError as error:
        assert len(one_line(str(error))) < 2000
    else:
        assert RunConfig.of(config.model_dump(mode="json")) == config


def any_toml(text):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.toml"
        path.write_bytes(text)
        try:
            RunConfig.load(path)
        except ConfigError as error:
            assert "run.toml" in str(error) and error.exit_code == CONFIG


def any_manifest(found):
    """Read by all that read one before the files that it names."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "atlas.zarr"
        path.mkdir()
        (path / "manifest.json").write_text(json.dumps(found))
        assert describe_input(path)["name"] == "atlas.zarr"
        try:
            manifest = read_manifest(open_files(path))
        except DataError as error:
            assert name in str(error)
            return
        assert manifest["format_version"] == 1 and isinstance(manifest["files"], dict)
        with suppress(AlreadyDone):
            check_amendment(path, "graph", {"k": 1})
        with suppress(AlreadyDone, DataError), amended_store(path, "graph", {"k": 1}):
            raise AlreadyDone(path)  # what it would be made of is another matter


SETTINGS_DRAWN = st.dictionaries(
    st.sampled_from([*SECTIONS, "recipe"]) | st.text(max_size=5),
    JSON | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), JSON, max_size=4),
    max_size=4,
)
TOML_DRAWN = st.binary(max_size=60) | st.text(
    st.sampled_from("[]{}=\"'.,#\n\\ abtrain.seed1e9_-+:TZ"), max_size=60
).map(str.encode)
FILES = st.sampled_from(["zarr.json", "obsp/distances/data/c/0", "../up"])
FILES_TOLD = st.dictionaries(
    FILES, st.fixed_dictionaries({"bytes": st.integers(), "crc32c": st.text(max_size=8)}) | JSON
)
ADDED = st.fixed_dictionaries({}, optional={"config": st.just({"k": 1}) | JSON, "files": st.lists(FILES) | JSON})
NEARLY_MANIFESTS = st.fixed_dictionaries(
    {"format_version": st.just(1), "files": FILES_TOLD},
    optional={"additions": st.dictionaries(st.just("graph"), ADDED | JSON) | JSON, "replaced": FILES_TOLD | JSON},
)
MANIFESTS = (
    JSON | st.dictionaries(st.sampled_from(["format_version", "files", "additions", "inputs"]), JSON) | NEARLY_MANIFESTS
)
FLIPS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4)
CASES = {
    "tables": (any_table, tables()),
    "flipped bytes": (any_bytes, FLIPS),
    "settings": (any_settings, SETTINGS_DRAWN),
    "TOML": (any_toml, TOML_DRAWN),
    "manifests": (any_manifest, MANIFESTS),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_it_holds_it_is_taken_or_refused(case):
    function, values = CASES[case]
    QUICK(given(values)(function))()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_whatever_it_holds_it_is_taken_or_refused_many_times(case):
    function, values = CASES[case]
    MANY(given(values)(function))()


@settings(max_examples=10)
@given(st.integers(0, 1 << 20), st.integers(1, 255))
def test_check_finds_any_changed_byte_of_a_store(place, mask):
    with tempfile.TemporaryDirectory() as name:
        path = write_store(Path(name) / "atlas.zarr", random_counts(40, 20))
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json")
        file = files[place % len(files)]
        content = bytearray(file.read_bytes())
        content[place % len(content)] ^= mask
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"checksum|JSON|damaged|cannot be read"):
            check(path)


def test_names_of_any_letters_survive(tmp_path):
    strange = ["é", "名", "\x1b[2J", "a\nb", "x" * 10_000, " ", "🧬", "../up", "'\"", "NaN", "-1", "\t"]
    adata = sound_cells()
    adata.obs_names = strange
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert ingested(tmp_path / "cells.h5ad", tmp_path / "out.zarr") == 0
    found = open_store(tmp_path / "out.zarr").obs()
    assert found.index.tolist() == [f"cells:{name}" for name in strange]


def test_a_file_with_parts_in_other_files_is_refused_whatever_they_are(tmp_path):
    sound_cells().write_h5ad(tmp_path / "other.h5ad")
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5ad", "X/data", (3,))
    for number, place in enumerate(("obs/link", "uns/deep/link", "X/data")):
        path = tmp_path / f"cells{number}.h5ad"
        sound_cells().write_h5ad(path)
        with h5py.File(path, "r+") as file:
            if place == "X/data":
                del file[place]
                file.create_virtual_dataset(place, layout)
            else:
                file.require_group(place.rpartition("/")[0])["link"] = h5py.ExternalLink("/etc/hostname", "/")
            file["uns/round"] = file["uns"]  # a circle, which is no fault
        assert ingested(path, tmp_path / "out.zarr") == DATA
