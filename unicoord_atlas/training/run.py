"""The parts of a run, and how it shows itself while it runs."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from accelerate import Accelerator

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.config import TrainConfig
    from unicoord_atlas.losses.objective import Objective
    from unicoord_atlas.model.joint_vae import JointVAE

    from .latent_table import LatentTable


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

    def facts(self) -> dict[str, float]:
        """What it has to say of the epoch so far, for the log."""
        ...


class Mirror(Protocol):
    """What keeps a copy of the run elsewhere."""

    def wait(self) -> None:
        """Until the copy is whole: files may be removed after it."""
        ...

    def push(self, folder: Path, step: int) -> None:
        """Begin to copy what has changed."""
        ...


@dataclass
class Training:
    """The parts of a run."""

    model: JointVAE
    objective: Objective
    training: BatchStream
    """This rank's share; each batch is one part of a step."""
    validation: BatchStream | None
    config: TrainConfig
    num_epochs: int
    num_steps: int
    """Of the whole run."""
    folder: Path
    accelerator: Accelerator
    table: LatentTable | None = None
    """Where the diffusion loss is on."""
    mirror: Mirror | None = None

    def bar(self, things: Iterable[Any], total: int, title: str) -> Any:
        """Progress over things, shown by the main process where stderr is a terminal."""
        shown = self.accelerator.is_main_process and sys.stderr.isatty()
        return tqdm(things, total=total, desc=title, unit="step", leave=False, disable=not shown)


class EpochClock:
    """Cells of this process, seconds, and the seconds of them in which the model waited for cells."""

    def __init__(self, num_processes: int) -> None:
        self._started, self._waited, self.cells = time.perf_counter(), 0.0, 0
        self._num_processes = num_processes

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Seconds since the epoch, or its remainder, began."""
        return time.perf_counter() - self._started

    def speed(self) -> dict[str, float]:
        """Seconds, cells a second over all processes, and the share of time that this one spent waiting for them."""
        seconds, cells = self.seconds, self.cells * self._num_processes
        return {"seconds": seconds, "cells_per_second": cells / seconds, "data_wait": self._waited / seconds}
