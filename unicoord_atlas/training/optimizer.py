"""Adam and its learning-rate schedule.  Source: the paper, Methods, "Model training" (Adam, 5e-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unicoord_atlas.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from unicoord_atlas.config import TrainConfig

RULE_BATCH = 256
"""The batch that `train.learning_rate` is meant for."""
FORGET_EVERY = 100
"""Steps between calls of `forget_tiny_moments`: a first moment takes 175 from 1e-30 to the subnormal numbers."""
_TINY = 1e-30


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Fused Adam: one pass over weights, gradients and moments, where the loop over tensors would take five."""
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)


@torch.no_grad()
def forget_tiny_moments(optimizer: torch.optim.Optimizer) -> None:
    """Set Adam's moments below 1e-30 to 0; beside its epsilon of 1e-8 no weight can tell.

    The first moment of a weight whose gradient stays 0, as of a dead unit's, loses a tenth in each step, and is then
    rounded back to the same subnormal number for good.  For each of these an Intel processor takes over a hundred
    cycles: from some 900 steps on Adam took four times as long, and so a step half as long again.
    """
    for moments in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            torch.hardshrink(moments[name], _TINY, out=moments[name])


def even_batch_size(num_cells: int, batch_size: int) -> int:
    """The largest size up to `batch_size` that cuts the cells into even batches: hardly any is left over."""
    return num_cells // -(-num_cells // batch_size)


def part_size(batch_size: int, num_ranks: int, accumulate_steps: int) -> int:
    """Cells that one rank takes at a time, so that all ranks' parts of a step make up the batch.

    Raises
    ------
    ConfigError
        If there are more parts than cells.
    """
    parts = num_ranks * accumulate_steps
    if parts > batch_size:
        raise ConfigError(
            f"train.batch_size = {batch_size} cannot be cut into {parts} parts: "
            f"{num_ranks} processes x train.accumulate_steps = {accumulate_steps}"
        )
    return batch_size // parts


def learning_rate(step: int, config: TrainConfig, num_steps: int) -> float:
    """Learning rate of a step: rises linearly over the warm-up, at most a tenth of the run, then stays.

    With the rule "sqrt", `train.learning_rate` is that of a batch of 256 cells and grows with the square root of the
    batch: a batch of b cells averages the gradient's noise over b cells, and Adam divides by the gradient's own size.
    Source: Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms".
    """
    scale = (config.batch_size / RULE_BATCH) ** 0.5 if config.learning_rate_rule == "sqrt" else 1.0
    warmup = min(config.warmup_steps, num_steps // 10)
    return config.learning_rate * scale * (min((step + 1) / warmup, 1.0) if warmup else 1.0)
