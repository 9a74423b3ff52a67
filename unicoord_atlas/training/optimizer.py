"""Adam and its learning-rate schedule.  Source: the paper, Methods, "Model training" (Adam, 5e-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

    from unicoord_atlas.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Fused Adam: one pass over weights, gradients and moments, where the loop over tensors would take five."""
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)


def even_batch_size(num_cells: int, batch_size: int) -> int:
    """The largest size up to `batch_size` that cuts the cells into even batches: hardly any is left over."""
    return num_cells // -(-num_cells // batch_size)


def learning_rate(step: int, config: TrainConfig, num_steps: int) -> float:
    """Learning rate of a step: rises linearly over the warm-up, at most a tenth of the run, then stays."""
    warmup = min(config.warmup_steps, num_steps // 10)
    return config.learning_rate * (min((step + 1) / warmup, 1.0) if warmup else 1.0)
