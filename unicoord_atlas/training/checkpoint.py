"""Checkpoints: safetensors and JSON in a directory each, written aside and renamed.

    checkpoints/step-00000500/model.safetensors       weights and buffers
                              averaged.safetensors    running average of the weights, where train.average is on
                              optimizer.safetensors   Adam's moments and step counts
                              latent_table.safetensors  the latent table, where the diffusion loss is on
                              state.json              step, epoch, stream position, early stopping
    checkpoints/best-000012.safetensors               weights after the epoch that was best on validation: the averaged
                                                      ones where train.average is on
    checkpoints/latest.json                           which checkpoint to go on from

latest.json is written last.  Of the best weights two files may be there: those that the latest checkpoint knows of, and
those of a better epoch since then.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from .averaging import AveragedWeights
    from .latent_table import LatentTable

KEPT = 2
_LATEST = "latest.json"


@dataclass
class Progress:
    """Where a run stands; everything in it is JSON."""

    step: int = 0
    epoch: int = 0
    stream: Mapping[str, Any] = field(default_factory=dict)
    means: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Sum and weight of each loss over the steps of an unfinished epoch."""
    best_loss: float | None = None
    best_epoch: int = -1
    seconds: float = 0.0
    finished: bool = False


@dataclass(frozen=True)
class Parts:
    """What a checkpoint holds beside its progress."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: AveragedWeights | None = None
    table: LatentTable | None = None


def save_checkpoint(folder: Path, parts: Parts, progress: Progress) -> Path:
    """Write one checkpoint and point to it; what is older is removed afterwards.

    Raises
    ------
    DataError
        If it cannot be written, as on a full disk; the checkpoints before it stay as they are.
    """
    target = folder / f"step-{progress.step:08d}"
    with _room_named(target):
        if _latest(folder) == target.name:  # the same step again, at the end of an epoch: the tensors are the same
            write_json(target / "state.json", asdict(progress))
        else:
            if target.exists():  # of a run that was killed before it was pointed to, and that may have gone elsewhere
                shutil.rmtree(target)
            _write_aside(target, parts, progress)
        best = best_weights(folder, progress.best_epoch)
        if best.exists():
            _sync(best)
        write_json(folder / "latest.json", {"checkpoint": target.name})
    _prune(folder, {progress.best_epoch})
    return target


def save_best(folder: Path, model: nn.Module, epoch: int) -> None:
    """Write the weights of the best epoch so far; DataError as for a checkpoint.

    A run that is killed goes on from its latest checkpoint: what is best there stays until the next one.
    """
    target = best_weights(folder, epoch)
    with _room_named(target):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, _aside(target))
        os.replace(_aside(target), target)
    _prune(folder, {epoch, latest_progress(folder).best_epoch if (folder / _LATEST).exists() else epoch})


def best_weights(folder: Path, epoch: int) -> Path:
    """Where the weights are that were best, after that many epochs."""
    return folder / f"best-{epoch:06d}.safetensors"


@contextmanager
def _room_named(target: Path) -> Iterator[None]:
    """A write that fails says how to go on, and leaves nothing half-written."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says of a full disk
        aside = _aside(target)
        aside.unlink(missing_ok=True) if aside.is_file() else shutil.rmtree(aside, ignore_errors=True)
        raise DataError(
            f"{target}: cannot be saved ({error}); the checkpoint before it stays. "
            "Free some space and give the same command again"
        ) from error


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _write_aside(target: Path, parts: Parts, progress: Progress) -> None:
    aside = _aside(target)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in parts.model.state_dict().items()}, aside / "model.safetensors")
    save_file(_optimizer_tensors(parts.optimizer), aside / "optimizer.safetensors")
    if parts.averaged is not None:
        save_file(parts.averaged.state_dict(), aside / "averaged.safetensors")
    if parts.table is not None:
        save_file(parts.table.state_dict(), aside / "latent_table.safetensors")
    write_json(aside / "state.json", asdict(progress))
    for file in aside.iterdir():
        _sync(file)
    os.replace(aside, target)
    _sync(target.parent)


def load_checkpoint(folder: Path, parts: Parts, device: torch.device) -> Progress | None:
    """Load the latest checkpoint into its parts; None if there is none yet."""
    if not (folder / _LATEST).exists():
        return None
    target = latest_checkpoint(folder)
    load_weights(target / "model.safetensors", parts.model, device)
    if parts.averaged is not None:
        parts.averaged.load_state_dict(_tensors(target / "averaged.safetensors", device))
    if parts.table is not None:
        parts.table.load_state_dict(_tensors(target / "latent_table.safetensors", torch.device("cpu")))
    optimizer = parts.optimizer
    saved = _tensors(target / "optimizer.safetensors", device)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        prefix = f"{number}."
        optimizer.state[parameter] = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
    return Progress(**read_json(target / "state.json"))


def load_best(folder: Path, model: nn.Module, device: torch.device) -> None:
    """Load the weights of the best epoch that the latest checkpoint knows of."""
    load_weights(best_weights(folder, latest_progress(folder).best_epoch), model, device)


def latest_progress(folder: Path) -> Progress:
    """Where the latest checkpoint stands; DataError if there is none."""
    return Progress(**read_json(latest_checkpoint(folder) / "state.json"))


def load_weights(file: Path, model: nn.Module, device: torch.device) -> None:
    """Load saved weights; DataError if they do not fit the model."""
    try:
        model.load_state_dict(_tensors(file, device))
    except RuntimeError as error:
        raise DataError(f"{file}: weights do not fit this run's model ({error}); was run.toml changed?") from error


def _latest(folder: Path) -> str:
    """Name of the checkpoint that latest.json points to; empty if there is none."""
    return str(read_json(folder / _LATEST).get("checkpoint", "")) if (folder / _LATEST).exists() else ""


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint that latest.json points to."""
    name = _latest(folder)
    target = folder / name
    if not name.startswith("step-") or target.parent != folder or not (target / "state.json").exists():
        raise DataError(
            f"{folder / _LATEST}: names checkpoint {name!r}, which is not there; remove the file to start anew"
        )
    return target


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write aside, sync, rename."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _sync(aside)
    os.replace(aside, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; DataError names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: should be a JSON object, is a {type(content).__name__}")
    return content


def _tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return dict(load_file(path, device="cpu" if device.type == "cpu" else str(device)))  # not cpu:0
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{number}.{name}": tensor.contiguous()
        for number, parameter in enumerate(parameters)
        for name, tensor in optimizer.state[parameter].items()
    }


def _prune(folder: Path, best_epochs: set[int]) -> None:
    steps = sorted(path for path in folder.glob("step-*") if path.is_dir())
    latest = latest_checkpoint(folder) if (folder / _LATEST).exists() else None
    for path in steps[:-KEPT]:
        if path != latest:
            shutil.rmtree(path)
    for path in set(folder.glob("best-*.safetensors")) - {best_weights(folder, epoch) for epoch in best_epochs}:
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
