"""Means over the steps of an epoch, kept on the device, and the run's metrics.jsonl (epochs) and steps.jsonl."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unicoord_atlas.errors import UnicoordError

from .ranks import sums_over_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from accelerate import Accelerator

SPEED = ("seconds", "cells_per_second", "data_wait", "device_bytes")
"""Of a line of metrics.jsonl: what is no loss, and differs between two runs of the same."""

_WAY_OUT = (
    "the last checkpoint is untouched. Lower train.learning_rate or set train.clip_norm, and train with another --out"
)


class RunningMeans:
    """Weighted means of scalars in float64; adding never waits for the device."""

    def __init__(self, saved: Mapping[str, Sequence[float]] | None = None) -> None:
        self._sums: dict[str, Tensor | float] = {name: total for name, (total, _) in (saved or {}).items()}
        self._weights: dict[str, Tensor | float] = {name: weight for name, (_, weight) in (saved or {}).items()}

    def add(self, values: Mapping[str, Tensor | float], weight: Tensor | float = 1.0) -> None:
        """Add scalars with a weight."""
        for name, value in values.items():
            exact = value.detach().double() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + exact * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def saved(self) -> dict[str, tuple[float, float]]:
        """Sum and weight by name, for a later RunningMeans to go on from."""
        return {name: (float(total), float(self._weights[name])) for name, total in self._sums.items()}

    def over_ranks(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over what all ranks added: the sum of the sums over the sum of the weights; without weight, none."""
        names = list(self._sums)
        summed = sums_over_ranks(accelerator, [*self._sums.values(), *(self._weights[name] for name in names)])
        return {name: summed[at] / weight for at, name in enumerate(names) if (weight := summed[len(names) + at]) > 0}


class FirstNotFinite:
    """The first step at which each loss term was NaN or infinite, kept on the device; adding never waits for it."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Look at the scalars of a step that comes after all before."""
        for name, term in terms.items():
            first = self._first.get(name)
            if first is None:
                first = torch.full_like(term, -1, dtype=torch.int64)
            self._first[name] = first.masked_fill((first < 0) & ~term.isfinite(), step)

    def require_none(self) -> None:
        """Raise an error that names the first such step and its term; this waits for the device."""
        if not self._first:
            return
        steps = dict(zip(self._first, torch.stack(list(self._first.values())).tolist(), strict=True))
        bad = [name for name, step in steps.items() if step >= 0]
        if bad:
            name = min(bad, key=lambda name: steps[name])
            raise UnicoordError(f"step {steps[name]}: loss term {name!r} was not finite; {_WAY_OUT}")


def require_finite(terms: Mapping[str, float], step: int) -> None:
    """Raise an error that names step and term if any is NaN or infinite."""
    for name, value in terms.items():
        if not math.isfinite(value):
            raise UnicoordError(f"step {step}: loss term {name!r} is {value}; {_WAY_OUT}")


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raise an error that names a parameter with a NaN or infinity in it: such weights are not saved."""
    for name, parameter in model.named_parameters():
        if not math.isfinite(parameter.detach().sum()):
            raise UnicoordError(f"step {step}: the gradient of {name!r} was not finite; {_WAY_OUT}")


def append_metrics(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of such a file; a last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def drop_metrics_after(path: Path, step: int, epoch: int | None = None) -> None:
    """Keep the lines up to this step, and of epochs those that had ended: what comes after is written again."""
    kept = [entry for entry in read_metrics(path) if entry["step"] <= step]
    if epoch is not None:  # a checkpoint of an epoch's last step may be older than its line
        kept = [entry for entry in kept if entry["epoch"] < epoch]
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    aside.replace(path)
