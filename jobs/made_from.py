"""Outputs that are one file know by themselves what they were made from: there is no manifest in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py

from unicoord_atlas.errors import AlreadyDone, DataError

from .workdir import check_output, origin_of, require_local

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MADE_FROM = "made_from"
"""Of uns["unicoord"]: inputs and settings, as JSON."""


def made_from(inputs: Sequence[Path], settings: Mapping[str, Any]) -> dict[str, str]:
    """The entry of uns["unicoord"] by which `check_written` knows a file."""
    return {MADE_FROM: json.dumps(origin_of(inputs, settings))}


def check_written(out: Path, inputs: Sequence[Path], settings: Mapping[str, Any]) -> None:
    """Look at an existing `out`, .h5ad or .zarr, before a job has done any work.

    Raises
    ------
    AlreadyDone
        If it is finished from the same inputs and settings: a kill may have come just after it got its name.
    DataError
        If it is something else.
    """
    if out.suffix == ".zarr":
        check_output(out, inputs, settings)
        return
    require_local(out)
    if not out.exists():
        return
    if _told_by(out) == origin_of(inputs, settings):
        raise AlreadyDone(out)
    raise DataError(f"{out} exists and was not made from these inputs and settings; remove it or choose another --out")


def _told_by(path: Path) -> Any:
    """What an .h5ad says that it was made from; None if it does not say it, or is none."""
    try:
        with h5py.File(path, "r") as file:
            return json.loads(file[f"uns/unicoord/{MADE_FROM}"].asstr()[()])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return None
