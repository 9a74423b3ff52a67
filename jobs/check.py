"""check: whether a finished directory still holds what its manifest says, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from unicoord_atlas.loaders.manifest import damaged, read_manifest, size_fault

from .workdir import file_checksums

if TYPE_CHECKING:
    from pathlib import Path


def run(path: Path, console: Console | None = None) -> dict[str, Any]:
    """Compare every file with the manifest; return how much was found whole, as JSON types.

    Raises
    ------
    DataError
        Naming each file that is missing or changed, and the rows in it if it is a shard of counts.
    """
    expected = read_manifest(path)["files"]
    found = file_checksums(path)
    faults = {}
    for name, entry in expected.items():
        size = found[name]["bytes"] if name in found else None
        if size != entry["bytes"]:
            faults[name] = size_fault(size, entry["bytes"])
        elif found[name] != entry:
            faults[name] = "has a wrong checksum"
    if faults:
        raise damaged(path, faults)
    num_bytes = sum(entry["bytes"] for entry in expected.values())
    console = console or Console(stderr=True)
    console.print(f"{path}: whole; {len(expected):,} files, {num_bytes / 1e6:,.1f} MB", soft_wrap=True)
    return {"path": str(path), "files": len(expected), "bytes": num_bytes}
