import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from stores import plain_columns, random_counts, write_store

from unicoord_atlas.batch import CellColumns
from unicoord_atlas.config import ModelConfig
from unicoord_atlas.jobs.diffusion import latent_table
from unicoord_atlas.loaders.neighbor_stream import NeighborSettings, NeighborStream
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.stream import CellStream
from unicoord_atlas.losses.diffusion import choose_live, diffused, neighbor_average
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.model.noise import Noise, Purpose
from unicoord_atlas.training.latent_table import LatentTable, fill_table

NUM_CELLS, NUM_GENES, K = 60, 50, 5


class Graph:
    """k random neighbours a cell, itself excluded; the last cell has none."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.lists = [
            np.sort(draw.choice(np.setdiff1d(np.arange(NUM_CELLS), [row]), K, replace=False))
            for row in range(NUM_CELLS)
        ]
        self.lists[-1] = np.array([], np.int64)

    def of(self, rows):
        lists = [self.lists[row] for row in rows]
        return np.cumsum([0, *map(len, lists)]), np.concatenate(lists).astype(np.int32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(write_store(tmp_path_factory.mktemp("graph") / "a.zarr", random_counts(NUM_CELLS, NUM_GENES)))


def _model() -> JointVAE:
    latent = LatentSpec(
        discrete=(DiscreteLatent(name="kind", num_categories=3),),
        continuous=(
            ContinuousLatent(name="time"),
            *(ContinuousLatent(name=f"u{number}", supervised=False) for number in range(4)),
        ),
        num_diffusion=2,
    )
    torch.manual_seed(0)
    spec = NetworkSpec(
        num_genes=NUM_GENES, latent=latent, model=ModelConfig(hidden=(16, 8), dropout=0.0, relu_gradient="y")
    )
    return JointVAE(spec).train()


def _stream(store, tmp_path, share=1.0, live=K, trained=None, batch_size=20, table=None) -> NeighborStream:
    columns = plain_columns(store)
    columns = CellColumns(columns.size_factors, columns.sources, columns.codes % 3, columns.values)
    return NeighborStream(
        CellStream(store, columns, batch_size=batch_size, seed=3),
        store,
        columns,
        Graph(),
        table or LatentTable(tmp_path / "table", NUM_CELLS, slice(1, 3)),
        np.ones(NUM_CELLS, np.bool_) if trained is None else trained,
        NeighborSettings(share, live, seed=3),
    )


def _dense(store) -> torch.Tensor:
    rows = store.read_ranges(np.array([[0, NUM_CELLS]]))
    x = np.zeros((NUM_CELLS, NUM_GENES), np.float32)
    x[np.repeat(np.arange(NUM_CELLS), np.diff(rows.indptr)), rows.indices] = rows.data
    return torch.from_numpy(x)


def test_neighbor_average_is_the_mean_over_live_and_remembered():
    live = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]])
    average = neighbor_average(
        live, torch.tensor([0, 0, 1]), torch.tensor([[2.0, 4.0], [1.0, 2.0]]), torch.tensor([3, 2])
    )
    torch.testing.assert_close(average, torch.tensor([[2.0, 2.0], [3.0, 3.0]]))


def test_diffused_changes_its_own_columns_only():
    latent = torch.arange(10.0).view(2, 5)
    changed = diffused(latent, torch.full((2, 2), 7.0), torch.full((2, 2), 4.0), torch.tensor([[1.0, 0], [0, -1]]), 2)
    assert changed.tolist() == [[0, 1, 9, 7, 4], [5, 6, 7, 5, 9]]


@pytest.mark.parametrize("live", [1, 3, 10])
def test_choose_live_takes_the_first_by_priority_of_each_cell(live):
    generator = np.random.default_rng(live)
    rows = np.repeat(np.arange(6), [4, 0, 1, 7, 3, 2])
    priority = generator.permutation(len(rows))
    chosen = choose_live(torch.from_numpy(rows), torch.from_numpy(priority), live).numpy()
    for row in range(6):
        inside = np.flatnonzero(rows == row)
        assert set(inside[chosen[inside]]) == set(inside[np.argsort(priority[inside])[:live]])


def test_the_whole_definition_is_the_slow_formula(store, tmp_path):
    """share = 1, live = k: each cell decoded from a sample of the average of its neighbours' posteriors."""
    model, x = _model(), _dense(store)
    batch = next(iter(_stream(store, tmp_path)))
    noise = Noise(3, 11, batch.rows_n)
    found = model(batch, noise).diffusion_error

    def encode(row: int):
        one = CellStream(store, plain_columns(store), batch_size=1, order="stored", rows=np.array([row]))
        cell = next(iter(one))
        return model.encode(model.normalized(cell), model.center(cell))

    slow = torch.zeros(())
    expected_x = torch.log1p(1e4 * x / torch.from_numpy(store.size_factors).float()[:, None])
    samples = model(batch, noise).posterior.sample(noise, model.spec.temperature)
    for position, row in enumerate(batch.rows_n.tolist()):
        near = [encode(neighbor) for neighbor in Graph().lists[row]]
        if not near:
            continue
        mean = torch.stack([each.mean_nd[0, 1:3] for each in near]).mean(dim=0)
        variance = torch.stack([each.logvar_nd[0, 1:3].exp() for each in near]).mean(dim=0)
        draw = Noise(3, 11, torch.tensor([row])).normal(Purpose.DIFFUSION_GAUSSIAN, 2)[0]
        latent = samples[position].clone()
        latent[3 + 1 : 3 + 3] = mean + variance.sqrt() * draw  # 3 categories, then time, then the diffusion dimensions
        slow = slow + (model.decode(latent[None])[0] - expected_x[row]).square().sum() / len(batch)
    torch.testing.assert_close(found, slow, rtol=1e-5, atol=0)
    wanted = torch.autograd.grad(slow, list(model.encoder.parameters()))
    got = torch.autograd.grad(found, list(model.encoder.parameters()))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_remembered_neighbours_stand_in_for_live_ones(store, tmp_path):
    """With a table of what the model says now, live neighbours or not gives the same value (float16 apart)."""
    model, table = _model(), LatentTable(tmp_path / "table", NUM_CELLS, slice(1, 3))
    fill_table(
        table, model, CellStream(store, plain_columns(store), batch_size=32, order="stored"), torch.device("cpu")
    )
    values = []
    for live in (1, K):
        batch = next(iter(_stream(store, tmp_path, live=live, table=table)))
        values.append(model(batch, Noise(3, 0, batch.rows_n)).diffusion_error)
    torch.testing.assert_close(*values, rtol=2e-3, atol=0)


def test_a_share_of_the_cells_estimates_the_whole(store, tmp_path):
    model, table = _model(), LatentTable(tmp_path / "table", NUM_CELLS, slice(1, 3))
    whole = next(iter(_stream(store, tmp_path, batch_size=NUM_CELLS, table=table)))
    expected = model(whole, Noise(3, 0, whole.rows_n)).diffusion_error
    stream, values, carrying = _stream(store, tmp_path, share=0.4, batch_size=NUM_CELLS, table=table), [], []
    for epoch in range(40):
        stream.set_epoch(epoch)
        for batch in stream:
            values.append(model(batch, Noise(3, 0, batch.rows_n)).diffusion_error.item())
            carrying.append(len(batch.neighborhood.carrying))
    assert np.mean(carrying) == pytest.approx(0.4 * (NUM_CELLS - 1), rel=0.1)
    assert np.mean(values) == pytest.approx(expected.item(), abs=4 * np.std(values) / len(values) ** 0.5)


def test_held_out_neighbours_are_never_read(store, tmp_path):
    trained = np.arange(NUM_CELLS) % 3 > 0
    for batch in _stream(store, tmp_path, live=2, trained=trained):
        near = batch.neighborhood
        assert trained[near.live.rows_n.numpy()].all()
        for row, count in zip(near.carrying.rows_n.tolist(), near.counts_m.tolist(), strict=True):
            assert count == trained[Graph().lists[row]].sum()


def test_a_neighborhood_carries_the_counts_of_its_cells(store, tmp_path):
    x = _dense(store)
    near = next(iter(_stream(store, tmp_path, share=0.5, live=2))).neighborhood
    for part in (near.carrying, near.live):
        torch.testing.assert_close(part.counts.to_dense(), x[part.rows_n])
    assert (near.owner_v.diff() >= 0).all()


def test_the_table_has_its_room_on_the_disk_from_the_start(tmp_path):
    """A page of a mapped file for which there is none ends the process with a signal."""
    path = tmp_path / "table"
    LatentTable(path, 100_000, slice(0, 2))
    assert path.stat().st_blocks * 512 >= path.stat().st_size >= 100_000 * 16


def test_the_table_goes_on_from_its_checkpoint(tmp_path):
    table = LatentTable(tmp_path / "one", 10, slice(0, 2))
    table.write(torch.tensor([3, 7]), torch.randn(2, 4), torch.rand(2, 4), step=5)
    other = LatentTable(tmp_path / "two", 10, slice(0, 2))
    other.load_state_dict(table.state_dict())
    for name, tensor in table.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor)
    assert other.median_age(np.array([0, 1, 3])) == 5.0


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_log_says_what_share_carried_the_term_and_how_many_live_neighbours_it_had(store, tmp_path, share):
    stream = _stream(store, tmp_path, share=share, live=2)
    for _ in range(2):
        carrying = sum(len(batch.neighborhood.carrying) for batch in stream)
        facts = stream.facts()
        assert facts["diffusion_share"] == carrying / NUM_CELLS
        assert (facts["diffusion_live"], facts["diffusion_rows_read"]) == (2, 2 * carrying)
    if share == 1:
        assert carrying == NUM_CELLS - 1  # the last cell has no neighbours


def test_a_stream_that_goes_on_says_the_same_of_its_epoch(store, tmp_path):
    """All of `facts`, though what is in memory of the first half is lost."""
    whole, table = [], LatentTable(tmp_path / "table", NUM_CELLS, slice(1, 3))
    stream = _stream(store, tmp_path, share=0.5, live=2, table=table)
    for _ in stream:
        whole.append((stream.state_dict(), stream.facts()))
    state, _ = whole[1]
    stopped = _stream(store, tmp_path, share=0.5, live=2, table=table)
    stopped.load_state_dict(json.loads(json.dumps(state)))
    assert len(list(stopped)) == len(whole) - 2
    assert stopped.facts() == whole[-1][1]
    stopped.set_epoch(0)
    stopped.load_state_dict(whole[-1][0])  # no batch is left, so nobody asks for one
    assert stopped.facts() == whole[-1][1]
    stopped.set_epoch(1)
    assert list(stopped.facts().values()) == [0] * 4


class Rank:
    """What a latent table asks of an Accelerator, by a rank that is a thread."""

    def __init__(self, number: int, barrier: threading.Barrier) -> None:
        self.local_process_index, self.is_main_process, self.wait_for_everyone = number, number == 0, barrier.wait


def test_ranks_of_a_node_make_one_table_and_fill_it_together(store, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    model, barrier, shares = _model(), threading.Barrier(2, timeout=60), []

    def batches(share):
        shares.append((share.rank, share.world_size))
        return CellStream(store, plain_columns(store), batch_size=8, order="stored", partition=share)

    with ThreadPoolExecutor(2) as pool:
        tables = list(
            pool.map(lambda number: latent_table(tmp_path, NUM_CELLS, model, Rank(number, barrier), batches), range(2))
        )
    assert sorted(shares) == [(0, 2), (1, 2)]
    alone = LatentTable(tmp_path / "alone", NUM_CELLS, slice(1, 3))
    fill_table(alone, model, CellStream(store, plain_columns(store), batch_size=8, order="stored"), torch.device("cpu"))
    assert (alone.state_dict()["variance"] > 0).all()
    for table in tables:
        for name in ("mean", "variance"):
            torch.testing.assert_close(table.state_dict()[name], alone.state_dict()[name], rtol=2e-3, atol=1e-3)


def test_no_neighbours_no_term(store, tmp_path):
    batch = next(iter(_stream(store, tmp_path, trained=np.zeros(NUM_CELLS, np.bool_))))
    assert batch.neighborhood is None
    assert _model()(batch, Noise(3, 0, batch.rows_n)).diffusion_error == 0
