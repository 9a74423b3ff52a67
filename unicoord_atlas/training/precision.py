"""In which precision matrix products over genes run: decided by a probe, not by a list of chips."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

from unicoord_atlas.errors import ConfigError

if TYPE_CHECKING:
    from unicoord_atlas.config import TrainConfig

_WORTHWHILE = 1.2


def choose_device(config: TrainConfig) -> torch.device:
    """The device asked for; ConfigError if it is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = 'cuda', but torch sees no CUDA device here; use 'auto' or 'cpu'")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """bfloat16 or float32 for matrix products; "auto" takes bfloat16 where it is measurably faster."""
    if config.precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else bf16_speedup() > _WORTHWHILE
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def bf16_speedup() -> float:
    """Time of a float32 product over that of the same product in bfloat16 on this CPU."""
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _product_seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones((256, 512), dtype=dtype), torch.ones((512, 2048), dtype=dtype)
    left @ right
    laps = []
    for _ in range(5):
        start = time.perf_counter()
        left @ right
        laps.append(time.perf_counter() - start)
    return statistics.median(laps)
