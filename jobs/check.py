"""check: whether a finished directory still holds what its manifest says, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicoord_atlas.loaders.manifest import damaged, read_manifest, size_fault
from unicoord_atlas.loaders.store_files import open_files

from .console_text import plain_console

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


def run(path: Path, console: Console | None = None) -> dict[str, Any]:
    """Compare every file with the manifest; return how much was found whole, as JSON types.

    Raises
    ------
    DataError
        Naming each file that is missing or changed, and the rows in it if it is a shard of counts.
    """
    files = open_files(path)
    expected = read_manifest(files)["files"]
    found = files.checksums(expected)
    faults = {}
    for name, entry in expected.items():
        size = found[name]["bytes"] if name in found else None
        if size != entry["bytes"]:
            faults[name] = size_fault(size, entry["bytes"])
        elif found[name] != entry:
            faults[name] = "has a wrong checksum"
    if faults:
        raise damaged(files, faults)
    num_bytes = sum(entry["bytes"] for entry in expected.values())
    console = console or plain_console()
    console.print(f"{files.uri}: whole; {len(expected):,} files, {num_bytes / 1e6:,.1f} MB", soft_wrap=True)
    return {"path": files.uri, "files": len(expected), "bytes": num_bytes}
