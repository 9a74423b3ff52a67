"""How long a run will take and how much memory: said before it starts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from unicoord_atlas.model.noise import Noise

if TYPE_CHECKING:
    from .run import Training

_BYTES_PER_WEIGHT = 16  # float32 weight, gradient and Adam's two moments


def estimate(run: Training, window_bytes: int) -> str:
    """One line: minutes and GiB, and what would shorten it.  Times a real step, or part of one; weights stay."""
    batch = next(iter(run.training)).to(run.accelerator.device)
    seconds = min(_step_seconds(run, batch) for _ in range(2))
    parts = len(run.training) * run.num_epochs
    weights = sum(p.numel() for p in run.model.parameters()) * _BYTES_PER_WEIGHT
    minutes = seconds * parts / 60
    line = f"about {minutes:.0f} min" if minutes >= 1.5 else f"about {seconds * parts:.0f} s"
    dtype = str(run.model.compute_dtype).removeprefix("torch.")
    line += f" on {run.accelerator.device.type} in {dtype} for {run.num_epochs} epochs"
    line += f" of {len(run.training) // run.config.accumulate_steps:,} steps"
    line += f"; {(weights + window_bytes) / 2**30:.1f} GiB of memory"
    if minutes > 10:
        line += "; fewer --epochs, data.max_cells or data.genes = 'highly_variable' would shorten it"
    return line


def _step_seconds(run: Training, batch: object) -> float:
    start = time.perf_counter()
    output = run.model(batch, Noise(run.config.seed, 0, batch.rows_n))  # type: ignore[attr-defined]
    run.objective(output, batch, 0).total.backward()  # type: ignore[arg-type]
    run.model.zero_grad(set_to_none=True)
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize(run.accelerator.device)
    return time.perf_counter() - start
