"""What is wrong with a store is said with its shard and rows: by `check`, by opening and by an epoch; never a hang."""

import re
import shutil

import numpy as np
import pytest
from stores import plain_columns, random_counts, write_store

from unicoord_atlas.errors import DataError
from unicoord_atlas.jobs import check
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.stream import CellStream


def cut_off(shard):
    shard.write_bytes(shard.read_bytes()[:-10])


def grow(shard):
    shard.write_bytes(shard.read_bytes() + bytes(10))


def damage_header(shard):
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0], whole[1], whole[2], whole[3] ^ 3]) + whole[4:])


def damage_index(shard):
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


FAULTS = {
    "missing": (lambda shard: shard.unlink(), "is missing|the file is missing"),
    "cut off": (cut_off, r"has \d+ bytes, not|wrong checksum|cut off"),
    "growing": (grow, r"has \d+ bytes, not|wrong checksum"),
    "damaged chunk": (damage_header, "wrong checksum|is damaged"),
    "damaged index": (damage_index, "wrong checksum"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("atlas") / "atlas.zarr", random_counts(300, 120))


def epoch(store):
    stream = CellStream(store, plain_columns(store), batch_size=50, seed=0)
    return np.concatenate([batch.rows_n.numpy() for batch in stream])


def test_shards_are_named_with_their_rows_whatever_else_is_damaged_but_the_layout(whole, tmp_path):
    path = shutil.copytree(whole, tmp_path / "atlas.zarr")
    cut_off(path / "X/data/c/1")
    cut_off(path / "obs/size_factor/c/0")
    for read in (check.run, open_store):
        with pytest.raises(DataError, match=r"obs/size_factor/c/0 has \d+ bytes, not \d+") as error:
            read(path)
        assert re.search(r"X/data/c/1 \(shard 1, rows \d+:\d+\) has \d+ bytes", str(error.value))
    cut_off(path / "X/zarr.json")
    with pytest.raises(DataError, match=r"X/data/c/1 has \d+ bytes"):
        open_store(path)


@pytest.mark.parametrize("array", ["data", "indices"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_shard_and_rows(whole, tmp_path, fault, array):
    damage, message = FAULTS[fault]
    path = tmp_path / "atlas.zarr"
    shutil.copytree(whole, path)
    opened = open_store(path)
    damage(path / f"X/{array}/c/1")
    match = rf"X/{array}/c/1 \(shard 1, rows \d+:\d+\):? ({message}|.*({message}))"
    with pytest.raises(DataError, match=match):
        check.run(path)
    with pytest.raises(DataError, match=match):
        epoch(open_store(path))
    with pytest.raises(DataError, match=match):
        epoch(opened)
