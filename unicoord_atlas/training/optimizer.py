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


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step: rises linearly over the warm-up, then stays."""
    return (
        config.learning_rate * min((step + 1) / config.warmup_steps, 1.0)
        if config.warmup_steps
        else config.learning_rate
    )
