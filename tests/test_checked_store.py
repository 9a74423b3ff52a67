"""What is read of an atlas on this machine is what its manifest says, whichever file it lies in."""

import pickle
import shutil

import numpy as np
import pytest
import zarr
from stores import random_counts, write_store

from unicoord_atlas.errors import DataError
from unicoord_atlas.jobs.amend_store import ADDITIONS, amended_store
from unicoord_atlas.jobs.mapped_file import read_mapped
from unicoord_atlas.jobs.report_inputs import Latents
from unicoord_atlas.loaders.graph_store import write_table
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.store_files import LocalFiles, open_output, open_zarr

TABLE = np.arange(900, dtype=np.float32).reshape(300, 3)
READS = {
    "zarr.json": lambda store: store.n_obs,
    "X/indptr/c/0": lambda store: store.indptr,
    "uns/unicoord/schema/c/0": lambda store: store.schema,
    "uns/unicoord/normalization/mean/c/0": lambda store: store.normalization,
    "obs/size_factor/c/0": lambda store: store.size_factors,
    "obs/cell_type/codes/c/0": lambda store: store.obs(["cell_type"]),
    "obs/_index/c/0": lambda store: store.obs([], arrow_names=True),
    "var/_index/c/0": lambda store: store.var(),
    "obsm/X_some/c/0/0": lambda store: store.obsm("X_some"),
    "X/data/c/0": lambda store: store.to_anndata(lazy=False),
}
"""Files, and what reads them."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store to which a table was added."""
    path = write_store(tmp_path_factory.mktemp("atlas") / "atlas.zarr", random_counts(300, 120))
    with amended_store(path, "table", {"k": 1}) as folder:
        group = zarr.open_group(folder / ADDITIONS, mode="w", zarr_format=3)
        write_table(group.require_group("obsm"), "X_some", TABLE)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "atlas.zarr")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", READS)
def test_a_flipped_byte_is_never_read(copy, name):
    READS[name](open_store(copy))
    flip(copy / name)
    with pytest.raises(DataError, match=rf"atlas\.zarr/{name} has a wrong checksum: restore what is damaged"):
        READS[name](open_store(copy))


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_coordinates_are_compared_wherever_they_are_read(copy, damage):
    """report, browse, evaluate and others read what export-latents finished; a manifest.json of others is not ours."""
    read = (lambda: read_mapped(copy), lambda: Latents(copy).table("X_some", np.arange(9)))
    for each in read:
        each()
    damage(copy / "obsm" / "X_some" / "c" / "0" / "0")
    for each in read:
        with pytest.raises(DataError, match="restore what is damaged"):
            each()
    (copy / "manifest.json").write_text('{"made by": "others"}')
    assert "cell_type" in open_output(copy)["obs"]


def test_a_file_that_is_gone_since_the_store_was_opened_is_not_read_as_zeros(copy):
    store = open_store(copy)
    (copy / "obs/size_factor/c/0").unlink()
    with pytest.raises(DataError, match=r"obs/size_factor/c/0 is missing"):
        store.obs()
    assert len(store.obs(["cell_type"])) == 300


def test_a_part_of_a_damaged_file_is_not_read_either(copy):
    table = open_zarr(copy)["obsm/X_some"]
    np.testing.assert_array_equal(table[10:12], TABLE[10:12])
    flip(copy / "obsm/X_some/c/0/0")
    with pytest.raises(DataError, match=r"obsm/X_some/c/0/0 has a wrong checksum"):
        open_zarr(copy)["obsm/X_some"][10:12]


def test_a_file_that_the_manifest_does_not_name_is_read_as_it_is(copy):
    zarr.create_array(copy / "own", data=np.arange(5))
    opened = zarr.open_array(LocalFiles(copy).zarr(), path="own", mode="r")
    np.testing.assert_array_equal(opened[:], np.arange(5))


def test_a_copy_in_another_process_compares_as_well(copy):
    store = pickle.loads(pickle.dumps(LocalFiles(copy).zarr()))
    assert store == LocalFiles(copy).zarr()
    flip(copy / "obs/size_factor/c/0")
    with pytest.raises(DataError, match="has a wrong checksum"):
        zarr.open_group(store, mode="r")["obs/size_factor"][:]
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_group(store, mode="r+")
