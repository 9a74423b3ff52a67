import json
from itertools import chain, islice

import numpy as np
import pytest
import torch
from stores import plain_columns, random_counts, write_store

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import ConfigError, DataError
from unicoord_atlas.loaders import CellStream, Partition, balanced_weights, open_store
from unicoord_atlas.loaders import stream as stream_module
from unicoord_atlas.loaders.store import CsrBuffer
from unicoord_atlas.loaders.stream import cells_in_memory
from unicoord_atlas.loaders.take_rows import take_rows, taken_indptr
from unicoord_atlas.loaders.window import _take_into

NUM_ROWS = 500
SUBSET = np.flatnonzero(np.random.default_rng(1).random(NUM_ROWS) < 0.4)


@pytest.fixture(scope="module")
def counts():
    return random_counts(NUM_ROWS, 60)


@pytest.fixture(scope="module")
def store(counts, tmp_path_factory):
    return open_store(write_store(tmp_path_factory.mktemp("atlas") / "atlas.zarr", counts))


def make(store, rank=0, world_size=1, **settings):
    sizes = {"batch_size": 16, "window_cells": 96, "block_cells": 8, "seed": 5, **settings}
    return CellStream(store, plain_columns(store), partition=Partition(rank, world_size), **sizes)


def ledger(batches):
    """Rows of the cells that count, in order."""
    return [row for batch in batches for row in batch.rows_n[batch.weights_n > 0].tolist()]


def together(ledgers):
    return list(chain.from_iterable(ledgers))


def some(stream, num_batches):
    """The first batches of an iteration that is then given up."""
    return list(islice(stream, num_batches))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rows", [None, SUBSET, SUBSET[:1]], ids=["all", "subset", "one"])
@pytest.mark.parametrize("order", ["shuffled", "stored"])
def test_every_cell_comes_once_an_epoch_over_all_ranks(store, world_size, rows, order):
    streams = [make(store, rank, world_size, rows=rows, order=order) for rank in range(world_size)]
    for _ in range(2):
        batches = [list(stream) for stream in streams]
        assert sorted(together(map(ledger, batches))) == (list(range(NUM_ROWS)) if rows is None else rows.tolist())
        assert len({tuple(map(len, of_rank)) for of_rank in batches}) == 1
        assert len(batches[0]) == len(streams[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there are fewer cores than workers
@pytest.mark.parametrize("world_size", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_workers_deliver_the_same_batches(store, world_size):
    ranks = range(world_size)
    with_workers = [make(store, rank, world_size, num_workers=2) for rank in ranks]
    iterators = [iter(stream) for stream in with_workers]
    firsts = [next(iterator) for iterator in iterators]  # all ranks' workers start together
    delivered = [[first, *iterator] for first, iterator in zip(firsts, iterators, strict=True)]
    assert sorted(together(map(ledger, delivered))) == list(range(NUM_ROWS))
    for rank in ranks:
        alone = make(store, rank, world_size)
        for one, other in zip(alone, delivered[rank], strict=True):
            assert one.rows_n.tolist() == other.rows_n.tolist()
            assert one.counts.data.tolist() == other.counts.data.tolist()
        assert with_workers[rank].state_dict() == alone.state_dict()


def test_scattered_rows_decode_no_block_twice(counts, tmp_path):
    scattered = open_store(write_store(tmp_path / "atlas.zarr", counts))
    every_fifth = np.arange(0, NUM_ROWS, 5)
    one_window = make(scattered, rows=every_fifth, order="stored", window_cells=NUM_ROWS, batch_size=10)
    assert ledger(one_window) == every_fifth.tolist()
    assert scattered.entries_decoded <= -(-counts.nnz // 200) * 200  # inner chunks of 200 entries, each once at most


def test_batches_are_handed_out_as_scipy_matrices(store, counts):
    batch = next(iter(make(store)))
    matrix = batch.counts.to_scipy()
    assert (matrix.data.dtype, matrix.indices.dtype) == (np.float32, np.int32)
    assert (matrix != counts[batch.rows_n.numpy()]).nnz == 0


def test_batches_carry_the_right_cells(store, counts):
    batches = list(make(store))
    assert (batches[0].counts.indices.dtype, batches[0].counts.data.dtype) == (torch.uint16, torch.uint16)
    for batch in batches:  # all are held at once: none may be overwritten by a later one
        rows = batch.rows_n.numpy()
        np.testing.assert_array_equal(batch.counts.to_dense().numpy(), counts[rows].toarray())
        np.testing.assert_array_equal(batch.codes_nl[:, 0].numpy(), rows)
        np.testing.assert_array_equal(batch.values_nc[:, 0].numpy(), rows)
        np.testing.assert_array_equal(batch.size_factors_n.numpy(), rows + 0.5)


def test_stored_order_is_that_of_the_store(store):
    assert ledger(make(store, order="stored")) == list(range(NUM_ROWS))
    assert ledger(make(store, order="stored", rows=SUBSET)) == SUBSET.tolist()


def test_drop_last_gives_full_batches_only(store):
    streams = [make(store, rank, 3, drop_last=True) for rank in range(3)]
    batches = [list(stream) for stream in streams]
    assert {len(batch) for of_rank in batches for batch in of_rank} == {16}
    assert [len(of_rank) for of_rank in batches] == [500 // 3 // 16] * 3
    with pytest.raises(ConfigError, match="batch_size 600 with drop_last leaves no batch of 500 cells"):
        make(store, batch_size=600, drop_last=True)


def test_order_follows_seed_and_epoch_only(store):
    stream = make(store)
    first, second = ledger(stream), ledger(stream)
    assert first != second
    again = make(store)
    again.set_epoch(1)
    assert ledger(again) == second
    assert ledger(make(store, seed=6)) != first
    stream.set_epoch(0)
    some(stream, 3)
    assert ledger(stream) == first  # one that was given up begins again


def resumed(store, state, world_size=1, **settings):
    state = json.loads(json.dumps(state))
    streams = [make(store, rank, world_size, **settings) for rank in range(world_size)]
    for stream in streams:
        stream.load_state_dict(state)
    return streams


@pytest.mark.parametrize("done", [0, 1, 7, 31, 32])
def test_resumed_stream_goes_on_as_if_never_stopped(store, done):
    whole = list(make(store))
    stopped = make(store)
    some(stopped, done) if done else None
    (stream,) = resumed(store, stopped.state_dict())
    stream.set_epoch(0)  # as a training loop does; the place is kept
    assert len(stream) == len(whole) - done
    assert [batch.rows_n.tolist() for batch in stream] == [batch.rows_n.tolist() for batch in whole[done:]]
    second = make(store)
    second.set_epoch(1)
    assert ledger(stream) == ledger(second)


@pytest.mark.parametrize("settings", [{}, {"rows": SUBSET}, {"order": "stored"}], ids=["all", "subset", "stored"])
@pytest.mark.parametrize("worlds", [(1, 2), (3, 1), (2, 3, 1, 2)])
def test_resume_on_other_numbers_of_ranks_loses_and_repeats_nothing(store, settings, worlds):
    rows = settings.get("rows", np.arange(NUM_ROWS))
    streams, seen = [make(store, rank, worlds[0], **settings) for rank in range(worlds[0])], []
    for world_size in worlds[1:]:
        seen += together(ledger(some(stream, 2)) for stream in streams)
        states = [stream.state_dict() for stream in streams]
        assert all(state == states[0] for state in states)
        streams = resumed(store, states[0], world_size, **settings)
    seen += together(ledger(stream) for stream in streams)
    assert sorted(seen) == rows.tolist()


def test_resume_with_other_sizes_loses_and_repeats_nothing(store):
    stopped = make(store)
    seen = ledger(some(stopped, 4))
    (stream,) = resumed(store, stopped.state_dict(), batch_size=10, window_cells=40, block_cells=4)
    assert sorted(seen + ledger(stream)) == list(range(NUM_ROWS))


def test_resume_refuses_the_state_of_another_stream(store, counts, tmp_path):
    state = make(store).state_dict()
    with pytest.raises(ConfigError, match="seed 5, but the stream has seed 6"):
        make(store, seed=6).load_state_dict(state)
    with pytest.raises(DataError, match="other cells"):
        make(store, rows=SUBSET).load_state_dict(state)
    other = open_store(write_store(tmp_path / "other.zarr", counts[::-1]))
    with pytest.raises(DataError, match="has the atlas changed"):
        make(other).load_state_dict(state)
    with pytest.raises(DataError, match="version 99"):
        make(store).load_state_dict({**state, "version": 99})


def test_weights_balance_categories_and_resume(store):
    codes = (np.arange(NUM_ROWS) >= 480).astype(np.int32)
    weights = balanced_weights(codes)
    stream = make(store, weights=weights)
    epochs = [ledger(stream) for _ in range(3)]
    assert [len(rows) for rows in epochs] == [NUM_ROWS] * 3
    assert epochs[0] != epochs[1]
    assert all(sum(row >= 480 for row in rows) == 250 for rows in epochs)
    stopped = make(store, weights=weights)
    seen = ledger(some(stopped, 5))
    rest = together(map(ledger, resumed(store, stopped.state_dict(), 2, weights=weights)))
    assert sorted(seen + rest) == sorted(epochs[0])


def test_repeats_of_a_cell_are_spread_over_the_epoch(store):
    weights = np.ones(NUM_ROWS)
    weights[250] = 100
    rows = np.array(ledger(make(store, weights=weights)))
    where = np.flatnonzero(rows == 250)
    assert len(where) == 84 or len(where) == 83
    assert where.std() > 100  # of 500; a uniform spread has 144


def test_windows_keep_to_the_memory_budget(store):
    budget = 20_000
    cells = cells_in_memory(store, None, 8, budget // 2)
    assert 0 < cells < NUM_ROWS
    read = []

    class Watched(CsrBuffer):
        def array(self, name, length, dtype):
            read.append(length * dtype.itemsize)
            return super().array(name, length, dtype)

    starts = np.random.default_rng(0).permutation(NUM_ROWS // 8)[: cells // 8] * 8
    for _ in range(5):
        store.read_ranges(np.stack([starts, starts + 8], axis=1), Watched())
    assert max(read) * 2 <= budget // 2


def test_windows_of_cells_that_are_drawn_often_keep_to_the_memory_budget(store, monkeypatch):
    """The longest rows, again and again: blocks of them alone are longer than any of the store."""
    lengths = np.diff(store.indptr)
    weights = np.where(lengths >= np.sort(lengths)[-20], 100.0, 1.0)
    read, inner = [], store.read_ranges
    monkeypatch.setattr(store, "read_ranges", lambda ranges, out: read.append(ranges) or inner(ranges, out))
    sizes = {"batch_size": 8, "window_cells": NUM_ROWS, "memory_bytes": 8_000}
    assert len(ledger(make(store, weights=weights, **sizes))) == NUM_ROWS
    entries = [int((store.indptr[ranges[:, 1]] - store.indptr[ranges[:, 0]]).sum()) for ranges in read]
    # Half of the budget is for what is read ahead; borders of blocks are elsewhere than where they were added up.
    assert max(entries) * store.entry_bytes <= 1.2 * 4_000


def test_memory_that_does_not_hold_a_minibatch_is_said(store):
    with pytest.warns(UserWarning, match=r"memory_bytes = 100 holds 0 of .* fewer than a minibatch of 8"):
        assert len(ledger(make(store, batch_size=8, memory_bytes=100))) == NUM_ROWS
    make(store, batch_size=8, memory_bytes=100, order="stored")


def test_windows_are_small_where_nothing_is_shuffled(store, monkeypatch):
    monkeypatch.setattr(stream_module, "_STORED_CELLS", 16)
    read, inner = [], store.read_ranges
    monkeypatch.setattr(store, "read_ranges", lambda ranges, out: read.append(ranges) or inner(ranges, out))
    for order, most in (("stored", 16), ("shuffled", NUM_ROWS)):
        read.clear()
        list(CellStream(store, plain_columns(store), batch_size=8, order=order))
        assert max(int((ranges[:, 1] - ranges[:, 0]).sum()) for ranges in read) == most


def test_a_damaged_shard_stops_the_stream_with_an_error(counts, tmp_path):
    path = write_store(tmp_path / "atlas.zarr", counts)
    damaged = open_store(path)
    shard = path / "X/data/c/1"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match=r"X/data/c/1 \(shard 1, rows \d+:\d+\): the shard index has a wrong checksum"):
        list(make(damaged))


def test_sizes_must_be_positive(store):
    for name in ("batch_size", "block_cells"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
            make(store, **{name: 0})


def test_rows_must_ascend_within_the_store(store):
    for rows in ([3, 2], [2, 2], [NUM_ROWS], [-1, 4]):
        with pytest.raises(ConfigError, match=r"rows must ascend within 0\.\.499"):
            make(store, rows=np.array(rows))


@pytest.mark.parametrize("num_picks", [0, 1, 3, 40])
def test_rows_copied_in_threads_into_memory_of_the_caller_are_the_rows(num_picks):
    """What a GPU fetches; rows of all lengths, in any order and more than once."""
    matrix = random_counts(50, 60)
    counts = CsrBlock(matrix.indptr.astype(np.int64), matrix.indices.astype(np.uint16), matrix.data.astype(np.uint32))
    picks = np.random.default_rng(0).integers(0, 50, num_picks)
    expected = take_rows(counts, picks)
    for name in ("indices", "data"):
        copy = np.empty_like(getattr(expected, name))
        _take_into(copy, counts.indptr, getattr(counts, name), picks, expected.indptr)
        np.testing.assert_array_equal(copy, getattr(expected, name))
    np.testing.assert_array_equal(taken_indptr(counts, picks), expected.indptr)
