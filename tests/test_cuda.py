"""Training on a CUDA device: the same numbers as on the CPU, and a run from its start to a model that a CPU reads."""

import copy

import numpy as np
import pytest
import torch
from cells import counts_of_types, minibatch, write_cells
from stores import plain_columns, random_counts, write_store

from unicoord_atlas.config import LossConfig, ModelConfig, RunConfig
from unicoord_atlas.jobs import build_graph, ingest, train
from unicoord_atlas.loaders import CellStream, open_store
from unicoord_atlas.loaders.device_feed import DeviceFeed
from unicoord_atlas.losses.objective import LabelFacts, Objective
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.model.noise import Noise
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training import loop
from unicoord_atlas.training.metrics import read_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
GENES = 300
SETTINGS = [
    'latent.discrete=["cell_type"]',
    'latent.continuous=["time"]',
    "latent.unsupervised_continuous=4",
    "model.hidden=[32,16]",
    "train.epochs=4",
    "train.batch_size=32",
    "train.learning_rate=3e-3",
    "train.warmup_steps=0",
    "train.checkpoint_every_steps=10",
]


def _step(device: str, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss terms and gradients of one training step, on the CPU."""
    counts, types = counts_of_types(200, GENES)
    latent = LatentSpec(
        discrete=(DiscreteLatent(name="cell_type", num_categories=3),),
        continuous=(
            ContinuousLatent(name="time"),
            *(ContinuousLatent(name=f"u{i}", supervised=False) for i in range(4)),
        ),
    )
    sizes = {"num_genes": GENES, "latent": latent, "model": ModelConfig(hidden=(32, 16)), "num_sources": 2}
    spec = NetworkSpec(**sizes, thinning=0.5, gene_dropout=0.4, gene_panels=0.5, centered=True)
    torch.manual_seed(0)
    model = JointVAE(spec)
    measured = torch.rand(2, GENES, generator=torch.Generator().manual_seed(1)) < 0.8
    model.start_from(measured_sg=measured, center_g=torch.linspace(0, 3, GENES))
    model.compute_dtype = dtype
    times = np.random.default_rng(0).random((200, 1)).astype(np.float32)
    batch = minibatch(counts, types[:, None], times, np.arange(200) % 2).to(device)
    model.to(device)
    facts = LabelFacts((torch.tensor([60.0, 70.0, 70.0]),), (1.0,), torch.ones(1))
    objective = Objective(LossConfig(), latent, facts, (), GENES, torch.device(device))
    loss = objective(model(batch, Noise(3, 7, batch.rows_n)), batch, 10)
    loss.total.backward()
    return {k: v.cpu() for k, v in loss.terms.items()}, {k: p.grad.cpu() for k, p in model.named_parameters()}


def test_a_step_has_the_same_losses_and_gradients_as_on_the_cpu():
    (terms, gradients), (expected_terms, expected) = _step("cuda", torch.float32), _step("cpu", torch.float32)
    torch.testing.assert_close(terms, expected_terms, rtol=1e-4, atol=1e-6)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() < 1e-4 * expected[name].norm().clamp(min=1e-6), name


def test_a_step_in_bfloat16_is_close():
    (terms, gradients), (expected_terms, expected) = _step("cuda", torch.bfloat16), _step("cpu", torch.float32)
    torch.testing.assert_close(terms, expected_terms, rtol=0.02, atol=0.02)
    for name in ("input_layer.weight", "output_layer.weight"):
        ours, theirs = gradients[name].flatten(), expected[name].flatten()
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.995, name


def test_what_is_sent_ahead_is_the_stream_and_its_place_is_that_of_what_was_handed_out(tmp_path):
    store = open_store(write_store(tmp_path / "atlas.zarr", random_counts(500, 60)))
    streams = [CellStream(store, plain_columns(store), batch_size=32, window_cells=64, drop_last=True) for _ in "123"]
    expected = list(streams[0])
    feed, resumed = (DeviceFeed(stream, torch.device("cuda")) for stream in streams[1:])
    got = []
    for batch in feed:
        got.append(batch.to("cpu"))
        if len(got) == 5:
            state = feed.state_dict()
    resumed.load_state_dict(state)
    assert len(got) == len(feed) == len(expected)
    assert len(resumed) == len(expected) - 5
    for ours, theirs in zip([*got, *(batch.to("cpu") for batch in resumed)], [*expected, *expected[5:]], strict=True):
        torch.testing.assert_close(ours.counts.to_dense(), theirs.counts.to_dense())
        assert torch.equal(ours.rows_n, theirs.rows_n)


@pytest.mark.parametrize("diffusion", [False, True])
def test_a_run_is_stopped_goes_on_and_ends_with_a_model_that_the_cpu_reads(tmp_path, monkeypatch, diffusion):
    write_cells(tmp_path / "cells.h5ad", 1)
    atlas = tmp_path / "atlas.zarr"
    ingest.run(ingest.IngestOptions([str(tmp_path / "cells.h5ad")], atlas, labels=["cell_type"]))
    settings = list(SETTINGS)
    if diffusion:
        build_graph.run(build_graph.BuildGraphOptions(atlas, k=8, num_pcs=5))
        settings.append("latent.diffusion=2")
    options = train.TrainOptions(atlas, tmp_path / "run", RunConfig.load(None, settings))
    real_step = loop._step

    def broken(run, state, batches):
        if state.progress.step == 40:
            raise KeyboardInterrupt
        return real_step(run, state, batches)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", broken)
        with pytest.raises(KeyboardInterrupt):
            train.run(options)
    train.run(options)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert all(line["device_bytes"] > 0 for line in lines)
    reference = ReferenceModel.load(tmp_path / "run" / "model")
    assert next(copy.deepcopy(reference.model).parameters()).device.type == "cpu"
    assert reference.config.metrics["cell_type_accuracy"] > 0.8
