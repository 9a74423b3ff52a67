"""Means over the steps of an epoch, kept on the device, and the run's metrics.jsonl."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unicoord_atlas.errors import UnicoordError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class RunningMeans:
    """Weighted means of scalars; adding never waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor | float] = {}

    def add(self, values: Mapping[str, Tensor], weight: Tensor | float = 1.0) -> None:
        """Add scalars with a weight."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach() * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        """Means so far; this waits for the device."""
        return {name: float(total) / max(float(self._weights[name]), 1e-12) for name, total in self._sums.items()}

    @property
    def finite(self) -> bool:
        """Whether no NaN or infinity was added."""
        return all(bool(torch.isfinite(total)) for total in self._sums.values())


def require_finite(terms: Mapping[str, float], step: int) -> None:
    """Raise an error that names step and term if any is NaN or infinite."""
    for name, value in terms.items():
        if not math.isfinite(value):
            raise UnicoordError(
                f"step {step}: loss term {name!r} is {value}; the last checkpoint is untouched. "
                "Lower train.learning_rate or set train.clip_norm, and start the same command again"
            )


def append_metrics(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl; a last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def drop_metrics_after(path: Path, epoch: int) -> None:
    """Keep the lines up to this number of finished epochs: those after the checkpoint are written again."""
    kept = [entry for entry in read_metrics(path) if entry["epoch"] < epoch]
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    aside.replace(path)
