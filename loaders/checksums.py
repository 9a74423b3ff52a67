"""The crc32c that manifests have of every file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import google_crc32c

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_READ_BYTES = 1 << 22


def checksum(parts: Iterable[bytes]) -> str:
    """Of bytes that come in parts."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return f"{crc:08x}"


def file_checksum(path: Path) -> str:
    """Of a file, read in parts."""
    with path.open("rb") as file:
        return checksum(iter(lambda: file.read(_READ_BYTES), b""))
