"""Training runs with a copy in an object store: brought down at the start, sent up behind each checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from unicoord_atlas.errors import UsageError
from unicoord_atlas.loaders.locks import held
from unicoord_atlas.loaders.object_address import object_address
from unicoord_atlas.training.checkpoint import latest_progress, read_json

from .run_identity import RUN_FACTS, refuse_differing, refuse_other

if TYPE_CHECKING:
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.loaders.object_mirror import RunMirror
    from unicoord_atlas.loaders.store import CellStore

_LATEST = "checkpoints/latest.json"
_FILES = (RUN_FACTS, "run.toml", "metrics.jsonl", "steps.jsonl", "report.html", "checkpoints/", "model/")


def mirrored(out: Path, address: str | None, store: CellStore, config: RunConfig) -> RunMirror | None:
    """The mirror of a run; `out` goes on from what it holds, if that is further.

    Raises
    ------
    UsageError
        If it is no address of an object store that can be written.
    DataError
        If another run is there.
    """
    if address is None:
        return None
    where = object_address(address)
    if where is None or where.startswith("http"):
        raise UsageError(f"--mirror {address}: it is an address in an object store: s3://, gs:// or az://")
    from unicoord_atlas.loaders.object_mirror import RunMirror  # late: obstore is an extra

    refuse_other(out, store, config)
    mirror = RunMirror(where, _FILES, _LATEST)
    if mirror.step() >= 0:
        with TemporaryDirectory() as aside:
            mirror.pull(Path(aside), [RUN_FACTS])
            refuse_differing(where, read_json(Path(aside) / RUN_FACTS), store, config)
    out.mkdir(parents=True, exist_ok=True)
    with held(out):  # of the processes on one machine the first brings it
        if mirror.step() > _own_step(out):
            mirror.pull(out)
    return mirror


def send_finished(mirror: RunMirror | None, out: Path) -> None:
    """All of a run that has ended; only its first process does so."""
    if mirror is not None and os.environ.get("RANK", "0") == "0":
        mirror.push_all(out, _own_step(out))


def _own_step(out: Path) -> int:
    return latest_progress(out / "checkpoints").step if (out / _LATEST).exists() else -1
