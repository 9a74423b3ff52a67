"""Minibatches one ahead: the next one is read, augmented and sorted while the model works at this one.

That work is half a dozen passes over the non-zeros that one core does as fast as two; behind the step it leaves the
other cores idle for a tenth of it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from unicoord_atlas.model.noise import Noise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.model.joint_vae import Prepared

    from .run import EpochClock, Training


@dataclass(frozen=True, slots=True)
class StepInput:
    """A minibatch, or a part of one, as the model takes it in training."""

    batch: MiniBatch
    noise: Noise
    prepared: Prepared
    stream: Mapping[str, Any]
    """Where the stream is behind it."""


def step_inputs(run: Training, first_step: int, num_steps: int, clock: EpochClock) -> Iterator[StepInput]:
    """All parts of so many steps, of which the first has the number `first_step`."""
    parts, batches = run.config.accumulate_steps, iter(run.training)

    def take(number: int) -> StepInput:
        batch = next(batches).to(run.accelerator.device)
        stream = run.training.state_dict()
        noise = Noise(run.config.seed, first_step + number // parts, batch.rows_n)
        return StepInput(batch, noise, run.model.prepared(batch, noise), stream)

    numbers = range(num_steps * parts)
    if not _has_idle_cores(run):
        for number in numbers:
            with clock.waiting():
                found = take(number)
            yield found
        return
    with ThreadPoolExecutor(1) as pool:
        threads = torch.get_num_threads()
        pool.submit(torch.set_num_threads, 1).result()  # of that thread; of the matrix library's it is everybody's,
        torch.set_num_threads(threads)  # hence again
        following = pool.submit(take, 0) if numbers else None
        for number in numbers:
            assert following is not None
            with clock.waiting():
                found = following.result()
            following = pool.submit(take, number + 1) if number + 1 < len(numbers) else None
            yield found


def _has_idle_cores(run: Training) -> bool:
    """Not where neighbours come from the latent table: a step writes what the next minibatch reads there."""
    return run.accelerator.device.type == "cpu" and torch.get_num_threads() > 1 and run.table is None
