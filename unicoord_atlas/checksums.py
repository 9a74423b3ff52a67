"""Checksums of files, as the manifests of finished directories hold them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import google_crc32c

from .errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_READ_BYTES = 1 << 18
"""What a core's cache holds: the sum is taken before the bytes leave it."""
_MANIFEST = "manifest.json"


def checksum(parts: Iterable[bytes]) -> str:
    """Of bytes that come in parts."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return f"{crc:08x}"


def file_checksum(path: Path) -> str:
    """Of a file; read in parts, so that it stays out of this process's memory."""
    with path.open("rb", buffering=0) as file:
        return checksum(iter(lambda: file.read(_READ_BYTES), b""))


def require_unchanged(folder: Path, patterns: Sequence[str]) -> None:
    """DataError if a file of a finished directory has another checksum than its manifest says; without one, nothing.

    Parameters
    ----------
    patterns
        Which files, as for `Path.glob`.
    """
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _MANIFEST}: cannot be read ({error}); restore it") from error
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        entry = files.get(path.name) if isinstance(files, dict) else None
        if isinstance(entry, dict) and entry.get("crc32c") != file_checksum(path):
            raise DataError(f"{path}: has a wrong checksum; restore the file or make {folder.name} again")
