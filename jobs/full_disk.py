"""A full disk is told in one line, whoever met it."""

from __future__ import annotations

import errno
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_named(partial: Path) -> Iterator[None]:
    """Turn the system's error of a full disk into a DataError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _system_error(error)
        if number not in _NO_ROOM:
            raise
        why = "the disk is full" if number != errno.EFBIG else "a file may not be so large here (ulimit -f)"
        raise DataError(f"{partial}: {why}; free some space and give the same command again") from error


def _system_error(error: Exception) -> int | None:
    """The system's number of an error; HDF5 and safetensors only tell it in words, and faiss what it means."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = re.search(r"(?:os error|errno =) (\d+)", str(error))
    if told:
        return int(told[1])
    return next((number for number in _NO_ROOM if os.strerror(number) in str(error)), None)
