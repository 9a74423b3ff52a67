"""What the processes of a run tell each other: sums over all cells, and whether to stop.

Each decision is taken on numbers that are the same on all ranks, so that none goes on while another waits for it.
"""

from __future__ import annotations

import signal
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import Tensor, nn

from unicoord_atlas.errors import ConfigError, UnicoordError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from accelerate.optimizer import AcceleratedOptimizer

    from unicoord_atlas.config import TrainConfig


class PeersLost(UnicoordError):
    """Another process of the run is gone."""

    exit_code = 75


def make_accelerator(config: TrainConfig, device: torch.device, folder: Path) -> Accelerator:
    """The processes of this run, as torchrun's environment says, and where its trackers write.

    Raises
    ------
    ConfigError
        If a tracker is unknown or not installed, or gradients are to be compressed where torch cannot: it does so
        between GPUs only.
    """
    if config.gradient_compression != "none" and device.type == "cpu":
        raise ConfigError(
            f"train.gradient_compression = {config.gradient_compression!r} works between GPUs only; set it to 'none'"
        )
    hook = DDPCommunicationHookType.BF16 if config.gradient_compression == "bf16" else DDPCommunicationHookType.NO
    # Buffers are facts of the atlas that never change: they need no broadcast in each step.
    wrapping = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True, comm_hook=hook)
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            log_with=list(config.trackers) or None,
            project_dir=folder,
            kwargs_handlers=[wrapping],
        )
    except ValueError as error:
        raise ConfigError(f"train.trackers = {list(config.trackers)}: {error}") from error
    missing = {*config.trackers} - {"all"} - {str(found) for found in accelerator.log_with}
    if missing:  # accelerate would go on without them
        raise ConfigError(
            f"train.trackers = {list(config.trackers)}: {', '.join(sorted(missing))} is not installed; install it, or "
            "leave it out"
        )
    return accelerator


def wrap_for_ranks(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """The model and the optimizer as they are called; with several ranks all start from the first one's weights."""
    with warnings.catch_warnings():
        # Its successor is not known to accelerate yet.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        wrapped, prepared = accelerator.prepare(model, optimizer)
    return wrapped, prepared


def sums_over_ranks(accelerator: Accelerator, values: Sequence[Tensor | float]) -> list[float]:
    """Sum of each value over all ranks, in float64: the same bits on each rank."""
    tensors = [torch.as_tensor(value, dtype=torch.float64, device=accelerator.device) for value in values]
    if not tensors:
        return []
    summed: Tensor = accelerator.reduce(torch.stack(tensors), reduction="sum")
    return [float(value) for value in summed]


def agreed_step(
    accelerator: Accelerator, terms: Mapping[str, Tensor], received: Sequence[int]
) -> tuple[dict[str, float], int]:
    """Each loss term as the mean over ranks, and the signal by which all stop now; 0 if none came to any of them."""
    noted = received[0] if received else 0
    summed, *totals = sums_over_ranks(accelerator, [float(noted), *terms.values()])
    means = [total / accelerator.num_processes for total in totals]
    return dict(zip(terms, means, strict=True)), noted or (signal.SIGTERM if summed else 0)


@contextmanager
def peers_named() -> Iterator[None]:
    """Turn the error of a broken connection into one that says that a process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise PeersLost(
            "lost the connection to another process of this run; the same command goes on from the last checkpoint"
        ) from error
