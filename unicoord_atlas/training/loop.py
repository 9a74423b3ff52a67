"""The training loop: epochs of minibatches, validation, early stopping, checkpoints.  Reads top to bottom.

Source: the paper, Methods, "Model training".
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from tqdm import tqdm

from unicoord_atlas.errors import UnicoordError
from unicoord_atlas.model.noise import Noise

from .averaging import AveragedWeights
from .checkpoint import Parts, Progress, load_checkpoint, save_checkpoint
from .metrics import RunningMeans, append_metrics, drop_metrics_after, require_finite
from .optimizer import learning_rate, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from accelerate import Accelerator

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.config import TrainConfig
    from unicoord_atlas.losses.objective import Objective
    from unicoord_atlas.model.joint_vae import JointVAE, StepOutput


class BatchStream(Protocol):
    """What the loop needs of a CellStream."""

    def __iter__(self) -> Iterator[MiniBatch]: ...
    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration yields."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as JSON types."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class Stopped(UnicoordError):
    """A signal came; the run was saved and goes on with the same command."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}; the same command goes on from there"
        )
        self.exit_code = 128 + signal_number


@dataclass
class Training:
    """The parts of a run."""

    model: JointVAE
    objective: Objective
    training: BatchStream
    validation: BatchStream | None
    config: TrainConfig
    num_epochs: int
    num_steps: int
    """Of the whole run."""
    folder: Path
    accelerator: Accelerator


def run_training(run: Training) -> Progress:
    """Train, or go on training, until the last epoch or early stopping; returns where it ended."""
    optimizer = make_optimizer(run.model, run.config)
    wrapped, prepared = run.accelerator.prepare(run.model, optimizer)
    parts = Parts(run.model, optimizer, AveragedWeights(run.model) if run.config.average else None)
    checkpoints, metrics = run.folder / "checkpoints", run.folder / "metrics.jsonl"
    progress = load_checkpoint(checkpoints, parts, run.accelerator.device) or Progress()
    if progress.finished:
        return progress
    if progress.step and run.accelerator.is_main_process:
        print(f"going on after step {progress.step} (epoch {progress.epoch + 1})", file=sys.stderr)
    drop_metrics_after(metrics, progress.epoch)
    with _signals() as received:
        while progress.epoch < run.num_epochs and not _out_of_patience(progress, run.config):
            run.training.set_epoch(progress.epoch)
            if progress.stream:
                run.training.load_state_dict(progress.stream)
            entry = _train_epoch(run, parts, wrapped, prepared, progress, received)
            with parts.averaged.applied() if parts.averaged else nullcontext():
                validated = _validate(run)
            progress.epoch, progress.stream = progress.epoch + 1, {}
            best = _note_best(progress, validated)
            progress.finished = progress.epoch == run.num_epochs or _out_of_patience(progress, run.config)
            if run.accelerator.is_main_process:
                append_metrics(metrics, {"epoch": progress.epoch - 1, "step": progress.step, **entry, **validated})
                save_checkpoint(checkpoints, parts, progress, best=best)
    return progress


def _train_epoch(
    run: Training, parts: Parts, wrapped: Any, prepared: Any, progress: Progress, received: list[int]
) -> dict[str, float]:
    """All remaining steps of an epoch; returns mean losses and speed."""
    means, started, last_save, data_seconds, cells = RunningMeans(), time.perf_counter(), time.monotonic(), 0.0, 0
    run.model.train()
    bar = _bar(run.training, f"epoch {progress.epoch + 1}/{run.num_epochs}", run.accelerator.is_main_process)
    waiting_since = time.perf_counter()
    for batch in bar:
        data_seconds += time.perf_counter() - waiting_since
        terms = _step(run, wrapped, prepared, parts.optimizer, batch.to(run.accelerator.device), progress.step)
        means.add(terms)
        progress.step, cells = progress.step + 1, cells + len(batch)
        if parts.averaged is not None:
            parts.averaged.update(progress.step)
        if run.accelerator.device.type == "cpu" or progress.step % 50 == 0:
            require_finite({name: float(value) for name, value in terms.items()}, progress.step)
            seconds = time.perf_counter() - started
            bar.set_postfix_str(
                f"{cells / seconds:,.0f} cells/s, loss {sum(means.means().values()):.1f}", refresh=False
            )
        due = time.monotonic() - last_save > 60 * run.config.checkpoint_every_minutes
        if received or due or progress.step % run.config.checkpoint_every_steps == 0:
            progress.stream = run.training.state_dict()
            if run.accelerator.is_main_process:
                save_checkpoint(run.folder / "checkpoints", parts, progress)
            last_save = time.monotonic()
        if received:
            raise Stopped(received[0], progress.step)
        waiting_since = time.perf_counter()
    seconds = time.perf_counter() - started
    progress.seconds += seconds
    losses = means.means()
    require_finite(losses, progress.step)
    return {
        **losses,
        "loss": sum(losses.values()),
        "cells_per_second": cells / seconds,
        "data_wait": data_seconds / seconds,
    }


def _step(
    run: Training, wrapped: Any, prepared: Any, optimizer: torch.optim.Optimizer, batch: MiniBatch, step: int
) -> Mapping[str, torch.Tensor]:
    """One optimizer step; returns the weighted loss terms without waiting for the device."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, run.config, run.num_steps)
    output = wrapped(batch, Noise(run.config.seed, step, batch.rows_n))
    loss = run.objective(output, batch, step)
    run.accelerator.backward(loss.total)
    if run.config.clip_norm > 0:
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip_norm)
    prepared.step()
    prepared.zero_grad(set_to_none=True)
    return loss.terms


@torch.no_grad()
def _validate(run: Training) -> dict[str, float]:
    """Mean deterministic losses and accuracies over the validation cells, if there are any."""
    if run.validation is None:
        return {}
    run.model.eval()
    means = RunningMeans()
    for batch in _bar(run.validation, "validation", run.accelerator.is_main_process):
        on_device = batch.to(run.accelerator.device)
        output = run.model(on_device)
        cells = on_device.weights_n.sum()
        terms = run.objective(output, on_device, step=10**9).terms
        means.add({"loss": torch.stack(list(terms.values())).sum(), **terms}, cells)
        for name, hits, labelled in accuracy_counts(run.model, output, on_device):
            means.add({f"accuracy_{name}": hits / labelled.clamp(min=1)}, labelled)
    return {f"validation_{name}": value for name, value in means.means().items()}


def accuracy_counts(
    model: JointVAE, output: StepOutput, batch: MiniBatch
) -> Iterable[tuple[str, torch.Tensor, torch.Tensor]]:
    """For each supervised discrete dimension: name, cells right, cells labelled."""
    for number, latent in enumerate(model.spec.latent.discrete[: model.spec.latent.num_supervised_discrete]):
        codes_n = batch.codes_nl[:, number]
        labelled_n = (codes_n >= 0) & (batch.weights_n > 0)
        right_n = (output.posterior.logits[number].argmax(dim=1) == codes_n) & labelled_n
        yield latent.name, right_n.sum(), labelled_n.sum()


def _note_best(progress: Progress, validated: Mapping[str, float]) -> bool:
    """Whether this epoch is the best so far; without validation cells the newest is."""
    loss = validated.get("validation_loss")
    if loss is not None and progress.best_loss is not None and loss >= progress.best_loss:
        return False
    progress.best_loss, progress.best_epoch = loss, progress.epoch
    return True


def _out_of_patience(progress: Progress, config: TrainConfig) -> bool:
    patience = config.early_stopping_patience
    return bool(patience) and progress.best_loss is not None and progress.epoch - progress.best_epoch >= patience


def _bar(stream: BatchStream, title: str, shown: bool) -> Any:
    return tqdm(
        stream, total=len(stream), desc=title, unit="batch", leave=False, disable=not shown or not sys.stderr.isatty()
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT; the loop saves and stops at the next step.  A second one stops at once."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: a notebook's or a test's caller handles signals itself
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
