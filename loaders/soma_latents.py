"""Coordinates that are written back into obsm of the experiment that they were made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicoord_atlas.checksums import checksum
from unicoord_atlas.errors import DataError

from .soma_additions import LATENTS, addition_of, opened, put_addition

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_ROWS_TOGETHER = 65_536
_WAY_OUT = "choose other names by --prefix"


def put_latents(path: Path, prefix: str, tables: Mapping[str, NDArray[np.float32]]) -> bool:
    """Put tables with a row a cell into obsm, or complete what a killed call of the same left there.

    Parameters
    ----------
    path
        Address of the experiment; cells outside of its filter get NaN.
    prefix
        Put before the names of the tables; each has additions of its own.

    Returns
    -------
    False if the very same were there already.

    Raises
    ------
    DataError
        If the experiment has others of these names.
    """
    found, part = opened(path), f"{prefix}{LATENTS}"
    named = {f"{prefix}{key}": table for key, table in tables.items()}
    config = {
        "rows": checksum([found.joinids().tobytes()]),
        "tables": {
            key: checksum(table[at : at + _ROWS_TOGETHER].tobytes() for at in range(0, len(table), _ROWS_TOGETHER))
            for key, table in named.items()
        },
    }
    before = addition_of(found, part)
    there = {f"obsm/{key}" for key in found.measurement.get("obsm", ())}
    if before is not None and there.issuperset(before["elements"]):
        if before["config"] == config:
            return False
        raise DataError(
            f"{found.address.uri} has {', '.join(before['elements'])} already, of other cells or of another model; "
            f"{_WAY_OUT}"
        )
    put_addition(found, part, config, {"obsm": named}, _WAY_OUT)
    return True
