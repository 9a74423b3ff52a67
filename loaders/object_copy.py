"""Finished directories up to an object store and down again.

Files go up before the manifest, and none replaces another: who finds one there that differs stops.  So a killed writer
leaves what the same command completes, and of two writers one finishes at most.
"""

from __future__ import annotations

import json
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from unicoord_atlas.checksums import checksum, file_checksum
from unicoord_atlas.errors import DataError

from .manifest import read_manifest
from .object_files import ObjectFiles
from .object_open import READING, open_objects, read_first
from .store_files import LocalFiles
from .zarr_layout import MANIFEST

if TYPE_CHECKING:
    from pathlib import Path

    from .object_open import Objects

_THREADS = 8


def copy_up(folder: Path, address: str) -> bool:
    """Copy a finished directory to an address.

    Returns
    -------
    False if the very same was there already.

    Raises
    ------
    DataError
        If something else is there, or the directory is not finished.
    ConfigError, UnreachableError
        Why the object store does not take it.
    """
    names = list(read_manifest(LocalFiles(folder))["files"])
    there = read_first(address, MANIFEST)
    if there is not None:
        if there == (folder / MANIFEST).read_bytes():
            return False
        raise DataError(f"{address} holds another finished output; choose another address")
    objects = open_objects(address, READING)
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda name: _put_new(objects, name, folder / name), names):
            pass
    _put_new(objects, MANIFEST, folder / MANIFEST)
    return True


def copy_down(address: str, folder: Path) -> Path:
    """A verified copy of what `copy_up` has put there, in a folder of copies; it is made once."""
    files = ObjectFiles(address)
    manifest = read_manifest(files)
    copy = folder / f"{files.name}-{checksum([json.dumps(manifest, sort_keys=True).encode()])}"
    if copy.exists():
        return copy
    aside = folder / f".{copy.name}.{secrets.token_hex(4)}"
    try:
        for name in [*manifest["files"], MANIFEST]:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(files.read(name))
        if not copy.exists():  # else another process has made it meanwhile
            aside.rename(copy)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return copy


def _put_new(objects: Objects, name: str, file: Path) -> None:
    """Put a file there, unless it is there; DataError if another one is."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    def put(store: Any) -> bool:
        try:
            obstore.put(store, name, file, mode="create")
        except AlreadyExistsError:  # perhaps by this very request, when its first answer was lost
            parts = obstore.get(store, name).stream(min_chunk_size=1 << 22)
            return checksum(bytes(part) for part in parts) == file_checksum(file)
        return True

    if not objects.ask(name, put):
        raise DataError(
            f"{objects.address}/{name} is there already and is another one, of a writer that was killed or is at work; "
            "remove what is there, or choose another address"
        )
