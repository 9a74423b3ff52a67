"""The training loop: epochs of steps, validation, early stopping, checkpoints.  Reads top to bottom.

Source: the paper, Methods, "Model training".
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from unicoord_atlas.model.noise import Noise

from .averaging import AveragedWeights
from .checkpoint import Parts, Progress, load_checkpoint, save_best, save_checkpoint
from .metrics import (
    FirstNotFinite,
    RunningMeans,
    append_metrics,
    drop_metrics_after,
    require_finite,
    require_finite_weights,
)
from .optimizer import FORGET_EVERY, forget_tiny_moments, learning_rate, make_optimizer
from .ranks import agreed_step, peers_named, wrap_for_ranks
from .run import EpochClock, Training
from .signals import Stopped, noted_signals
from .validation import validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from unicoord_atlas.batch import MiniBatch

_LOOK_EVERY = 50
"""Steps between lines of the log, and between looks at the losses where a look makes the host wait for a device."""


@dataclass
class _State:
    """What changes while a run goes on."""

    wrapped: Any
    """The model as it is called: synchronizes gradients where there are several ranks."""
    optimizer: Any
    parts: Parts
    progress: Progress
    received: list[int]
    saved_at: float
    unread: FirstNotFinite = field(default_factory=FirstNotFinite)
    """Of the terms of steps whose losses were not read on the host."""


def run_training(run: Training) -> Progress:
    """Train, or go on training, until the last epoch or early stopping; returns where it ended.

    Raises
    ------
    Stopped
        After SIGTERM or SIGINT on any rank, once the run is saved.
    PeersLost
        If another rank is gone.
    UnicoordError
        If a loss on any rank is not finite, or a checkpoint cannot be written.
    """
    optimizer = make_optimizer(run.model, run.config)
    wrapped, prepared = wrap_for_ranks(run.accelerator, run.model, optimizer)
    averaged = AveragedWeights(run.model, _steps_per_epoch(run)) if run.config.average else None
    parts = Parts(run.model, optimizer, averaged, run.table)
    progress = load_checkpoint(run.folder / "checkpoints", parts, run.accelerator.device) or Progress()
    if progress.finished:
        return progress
    if run.accelerator.is_main_process:
        if progress.step:
            print(f"going on after step {progress.step} (epoch {progress.epoch + 1})", file=sys.stderr)
        drop_metrics_after(run.folder / "metrics.jsonl", progress.step, progress.epoch)
        drop_metrics_after(run.folder / "steps.jsonl", progress.step)
    with noted_signals() as received, peers_named():
        state = _State(wrapped, prepared, parts, progress, received, time.monotonic())
        while progress.epoch < run.num_epochs and not _out_of_patience(progress, run.config.early_stopping_patience):
            _epoch(run, state)
        run.accelerator.wait_for_everyone()
        if told := _told(run, state):  # all is saved: the same command has only the rest to do
            raise Stopped(told, progress.step)
    return progress


def _epoch(run: Training, state: _State) -> None:
    """Train on what is left of the epoch, validate, save what is best and, where it is due, all."""
    progress = state.progress
    run.training.set_epoch(progress.epoch)
    if progress.stream:
        run.training.load_state_dict(progress.stream)
    trained = _train_epoch(run, state)
    require_finite_weights(run.model, progress.step)  # else they would pass for the best: nan is never worse
    with _weights_to_keep(state):
        validated = validate(run, lambda: bool(_told(run, state)))
        if validated is not None:
            progress.epoch, progress.stream, progress.means = progress.epoch + 1, {}, {}
            if _note_best(progress, validated.get("validation_loss")) and run.accelerator.is_main_process:
                save_best(run.folder / "checkpoints", run.model, progress.epoch)
    if validated is None:  # the same command finds no step left of this epoch, and validates
        _stop(run, state, _told(run, state))
    patience = run.config.early_stopping_patience
    progress.finished = progress.epoch == run.num_epochs or _out_of_patience(progress, patience)
    entry = {"epoch": progress.epoch - 1, "step": progress.step, **trained, **validated}
    run.accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=progress.step)
    if run.accelerator.is_main_process:
        append_metrics(run.folder / "metrics.jsonl", entry)
    if progress.finished or _due(run, state):
        _save(run, state)


def _weights_to_keep(state: _State) -> AbstractContextManager[None]:
    """The averaged ones, where there are such."""
    return state.parts.averaged.applied() if state.parts.averaged else nullcontext()


def _told(run: Training, state: _State) -> int:
    """The signal by which all ranks stop now; 0 if none came to any of them."""
    return agreed_step(run.accelerator, {}, state.received)[1]


def _stop(run: Training, state: _State, number: int) -> NoReturn:
    """Save and raise Stopped; after Ctrl-C before any epoch's end the weights so far are the best there are."""
    progress = state.progress
    if number == signal.SIGINT and progress.best_epoch < 0:
        progress.best_epoch = 0
        if run.accelerator.is_main_process:
            with _weights_to_keep(state):
                save_best(run.folder / "checkpoints", run.model, 0)
    _save(run, state)
    run.accelerator.wait_for_everyone()  # the first to leave would take the one that saves with it
    raise Stopped(number, progress.step)


def _steps_per_epoch(run: Training) -> int:
    return len(run.training) // run.config.accumulate_steps


def _train_epoch(run: Training, state: _State) -> dict[str, float]:
    """All remaining steps of an epoch; returns mean losses over all ranks, and speed."""
    progress = state.progress
    means, clock = RunningMeans(progress.means), EpochClock(run.accelerator.num_processes)
    num_steps = _steps_per_epoch(run)
    bar = run.bar(range(num_steps), num_steps, f"epoch {progress.epoch + 1}/{run.num_epochs}")
    run.model.train()
    with closing(batch for batch in run.training) as batches:  # or what reads ahead would live as long as a traceback
        _train_steps(run, state, bar, batches, means, clock)
    progress.seconds += clock.seconds
    progress.stream, progress.means = run.training.state_dict(), means.saved()
    state.unread.require_none()
    losses = means.over_ranks(run.accelerator)
    require_finite(losses, progress.step)
    speed = clock.speed()
    if run.accelerator.device.type == "cuda":
        speed["device_bytes"] = float(torch.cuda.max_memory_allocated(run.accelerator.device))
    return {**losses, "loss": sum(losses.values()), **run.training.facts(), **speed}


def _train_steps(
    run: Training, state: _State, bar: Any, batches: Iterator[MiniBatch], means: RunningMeans, clock: EpochClock
) -> None:
    """Step after step; Stopped after a signal, once the run is saved."""
    progress = state.progress
    for _ in bar:
        terms = _step(run, state, _parts_of_step(run, batches, clock))
        progress.step += 1
        if state.parts.averaged is not None:
            state.parts.averaged.update(progress.step)
        stop = state.received[0] if state.received else 0
        if _looks(run, progress.step):
            agreed, stop = agreed_step(run.accelerator, terms, state.received)
            state.unread.require_none()
            require_finite(agreed, progress.step)
            means.add(agreed)
            _log_step(run, progress.step, agreed)
            bar.set_postfix_str(_shown(clock, agreed), refresh=False)
        else:
            means.add(terms)
            state.unread.add(terms, progress.step)
        if stop or _due(run, state):
            progress.stream, progress.means = run.training.state_dict(), means.saved()
            _stop(run, state, stop) if stop else _save(run, state)


def _log_step(run: Training, step: int, terms: Mapping[str, float]) -> None:
    """Every 50 steps, the losses of that step."""
    if step % _LOOK_EVERY == 0:
        run.accelerator.log({f"step_{name}": value for name, value in terms.items()}, step=step)
        if run.accelerator.is_main_process:
            append_metrics(run.folder / "steps.jsonl", {"step": step, **terms})


def _parts_of_step(run: Training, batches: Iterator[MiniBatch], clock: EpochClock) -> Iterator[MiniBatch]:
    for _ in range(run.config.accumulate_steps):
        with clock.waiting():
            batch = next(batches)
        clock.cells += len(batch)
        yield batch.to(run.accelerator.device)


def _step(run: Training, state: _State, batches: Iterator[MiniBatch]) -> Mapping[str, torch.Tensor]:
    """One optimizer step; returns this rank's weighted loss terms without waiting for the device."""
    step, parts = state.progress.step, run.config.accumulate_steps
    for group in state.parts.optimizer.param_groups:
        group["lr"] = learning_rate(step, run.config, run.num_steps)
    sums: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches, 1):
        # Only the last part's backward pass sends gradients, the sum over all parts.
        with nullcontext() if number == parts else run.accelerator.no_sync(state.wrapped):
            output = state.wrapped(batch, Noise(run.config.seed, step, batch.rows_n))
            loss = run.objective(output, batch, step)
            run.accelerator.backward(loss.total if parts == 1 else loss.total / parts)
        if run.table is not None:
            run.table.write(batch.rows_n, output.posterior.mean_nd, output.posterior.logvar_nd.exp(), step)
        for name, term in loss.terms.items():
            sums[name] = sums[name] + term / parts if name in sums else term / parts
    if run.config.clip_norm > 0:
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip_norm)
    state.optimizer.step()
    if (step + 1) % FORGET_EVERY == 0:
        forget_tiny_moments(state.optimizer)
    state.optimizer.zero_grad(set_to_none=True)
    return sums


def _looks(run: Training, step: int) -> bool:
    """Whether losses are read on the host after this step; with several ranks always, for they must stop together."""
    accelerator = run.accelerator
    return accelerator.device.type == "cpu" or accelerator.num_processes > 1 or step % _LOOK_EVERY == 0


def _due(run: Training, state: _State) -> bool:
    late = time.monotonic() - state.saved_at > 60 * run.config.checkpoint_every_minutes
    return late or state.progress.step % run.config.checkpoint_every_steps == 0


def _save(run: Training, state: _State) -> None:
    """Save on the main process, never weights that are not finite: those are the same on all ranks."""
    state.unread.require_none()  # a term tells more than a parameter
    require_finite_weights(run.model, state.progress.step)
    if run.accelerator.is_main_process:
        if run.mirror is not None:
            run.mirror.wait()
        save_checkpoint(run.folder / "checkpoints", state.parts, state.progress)
        if run.mirror is not None:
            run.mirror.push(run.folder, state.progress.step)
    state.saved_at = time.monotonic()


def _shown(clock: EpochClock, terms: Mapping[str, float]) -> str:
    speed = clock.speed()
    each = ", ".join(f"{name} {value:.1f}" for name, value in terms.items())
    return f"{speed['cells_per_second']:,.0f} cells/s, data wait {speed['data_wait']:.0%}, {each}"


def _note_best(progress: Progress, loss: float | None) -> bool:
    """Whether this epoch is the best so far; without validation cells the newest is."""
    if loss is not None and progress.best_loss is not None and loss >= progress.best_loss:
        return False
    progress.best_loss, progress.best_epoch = loss, progress.epoch
    return True


def _out_of_patience(progress: Progress, patience: int) -> bool:
    return bool(patience) and progress.best_loss is not None and progress.epoch - progress.best_epoch >= patience
