"""A program for torchrun: 20 Adam steps of a small model on this rank's share of fixed batches; rank 0 saves weights.

two_ranks.py OUT [CASE ...]
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from cells import counts_of_types, minibatch

from unicoord_atlas.config import LossConfig, ModelConfig, TrainConfig
from unicoord_atlas.errors import UnicoordError
from unicoord_atlas.losses.objective import LabelFacts, Objective
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.training.loop import run_training
from unicoord_atlas.training.ranks import make_accelerator
from unicoord_atlas.training.run import Training

BATCHES, CELLS, BAD_STEP = 20, 48, 8


class FixedBatches:
    """Batches of one data set, each cut into equal parts, of which every rank takes its own."""

    def __init__(self, rank, world_size, parts, dtype, padded=0):
        counts, types = counts_of_types(BATCHES * CELLS)
        times = torch.rand(len(counts), 1, generator=torch.Generator().manual_seed(0))
        times[::7] = torch.nan
        codes = types[:, None].copy()
        codes[::5] = -1
        size = CELLS // (world_size * parts)
        self._batches = []
        for start in range(0, len(counts), CELLS):
            for part in range(parts):
                first = start + (part * world_size + rank) * size
                cells = slice(first, first + size)
                batch = minibatch(counts[cells], codes[cells], times[cells].numpy())
                rows_n, weights_n = torch.arange(first, first + size), batch.weights_n.to(dtype)
                if padded and rank == world_size - 1 and start + CELLS >= len(counts):
                    weights_n[-padded:] = 0
                self._batches.append(replace(batch, rows_n=rows_n, weights_n=weights_n))

    def spoil(self, number):
        batch = self._batches[number]
        self._batches[number] = replace(batch, counts=replace(batch.counts, data=batch.counts.data * torch.nan))

    def __iter__(self):
        return iter(self._batches)

    def __len__(self):
        return len(self._batches)

    def set_epoch(self, epoch):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def facts(self):
        return {}


CASES = {
    "double": {},
    "double_parts": {"accumulate_steps": 2, "clip_norm": 30.0},
    "double_each_cell": {},
    "double_each_cell_parts": {"accumulate_steps": 2},
    "single": {},
    "nan": {"checkpoint_every_steps": 3},
}
"""Settings of each; those of `each_cell` have no loss that compares cells of a batch."""


def train(case: str, out: Path) -> None:
    config = TrainConfig(learning_rate=3e-3, warmup_steps=0, trackers=(), average=False, batch_size=256, **CASES[case])
    dtype = torch.float64 if case.startswith("double") else torch.float32
    out.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(config, torch.device("cpu"), out)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    latent = LatentSpec(
        discrete=(DiscreteLatent(name="cell_type", num_categories=3),),
        continuous=(ContinuousLatent(name="time"), ContinuousLatent(name="unsupervised_0", supervised=False)),
    )
    torch.manual_seed(rank)  # all start from the weights of rank 0
    small = ModelConfig(hidden=(16, 12, 8))
    seen = {"thinning": 0.5, "gene_dropout": 0.3, "gene_panels": 0.5, "num_sources": 2, "centered": True}
    model = JointVAE(NetworkSpec(num_genes=40, latent=latent, model=small, **seen)).to(dtype)
    measured = torch.stack([torch.ones(40, dtype=torch.bool), torch.arange(40) % 4 > 0])
    model.start_from(measured_sg=measured, center_g=torch.linspace(0, 3, 40))
    model.compute_dtype = dtype
    facts = LabelFacts((torch.tensor([10.0, 20.0, 30.0]),), (0.8,), torch.tensor([6 / 7]))
    losses = LossConfig(independent_of=() if "each_cell" in case else ("cell_type",))
    objective = Objective(losses, latent, facts, (), 40, torch.device("cpu"))
    training = FixedBatches(rank, world_size, config.accumulate_steps, dtype)
    if case == "nan" and rank == world_size - 1:
        training.spoil(BAD_STEP - 1)
    validation = FixedBatches(rank, world_size, 1, dtype, padded=3)
    try:
        run_training(Training(model, objective, training, validation, config, 1, BATCHES, out, accelerator))
    except UnicoordError as error:
        (out / f"error-{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:] or CASES:
        train(name, Path(sys.argv[1]) / name)
    PartialState().destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # threads of gloo that outlive their group abort a process that ends on a busy machine
