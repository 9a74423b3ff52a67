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

from .manifest import damaged, read_manifest, size_fault
from .object_files import ObjectFiles
from .object_open import READING, open_objects, read_first
from .store_files import LocalFiles
from .zarr_layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .object_open import Objects

_THREADS = 4
"""Each holds one file whole: a put that must not replace another takes no parts."""


def copy_up(folder: Path, address: str, progress: Callable[[int], object] = int) -> bool:
    """Copy a finished directory to an address.

    Parameters
    ----------
    progress
        Is told the bytes of each file that is there.

    Returns
    -------
    False if the very same was there already.

    Raises
    ------
    DataError
        If something else is there, or the directory is not finished, or damaged.
    ConfigError, UnreachableError
        Why the object store does not take it.
    """
    files = LocalFiles(folder)
    entries, manifest = read_manifest(files)["files"], files.read(MANIFEST)
    found = read_first(address, MANIFEST)
    if found is not None:
        if found == manifest:
            return False
        raise DataError(f"{address} holds another finished output; choose another address")
    objects = open_objects(address, READING)
    there = objects.ask("its list of files", _names)

    def put(name: str) -> int:
        _put_new(objects, name, _whole(files, name, entries[name]), name in there)
        return int(entries[name]["bytes"])

    with ThreadPoolExecutor(_THREADS) as pool:
        for size in pool.map(put, entries):
            progress(size)
    _put_new(objects, MANIFEST, manifest, is_there=False)
    return True


def bring(files: ObjectFiles, folder: Path, progress: Callable[[int], object] = int) -> None:
    """Copy a finished directory from an object store into a folder, the manifest last; what is whole there is kept.

    Raises
    ------
    DataError
        If a file is missing or damaged.
    UnreachableError
        If the server stays away.
    """
    entries = read_manifest(files)["files"]

    def get(name: str) -> int:
        target, entry = folder / name, entries[name]
        if not _is_whole(target, entry):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.read(name))
        return int(entry["bytes"])

    with ThreadPoolExecutor(_THREADS) as pool:
        for size in pool.map(get, entries):
            progress(size)
    (folder / MANIFEST).write_bytes(files.read(MANIFEST))


def copy_down(address: str, folder: Path) -> Path:
    """A verified copy of what `copy_up` has put there, in a folder of copies; it is made once."""
    files = ObjectFiles(address)
    manifest = read_manifest(files)
    copy = folder / f"{files.name}-{checksum([json.dumps(manifest, sort_keys=True).encode()])}"
    if copy.exists():
        return copy
    aside = folder / f".{copy.name}.{secrets.token_hex(4)}"
    try:
        bring(files, aside)
        if not copy.exists():  # else another process has made it meanwhile
            aside.rename(copy)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return copy


def _whole(files: LocalFiles, name: str, entry: Mapping[str, Any]) -> bytes:
    """A file as the manifest has it: what is damaged here must not be called whole there."""
    try:
        data = files.read(name)
    except FileNotFoundError:
        raise damaged(files, {name: size_fault(None, entry["bytes"])}) from None
    if len(data) != entry["bytes"]:
        raise damaged(files, {name: size_fault(len(data), entry["bytes"])})
    if checksum([data]) != entry["crc32c"]:
        raise damaged(files, {name: "has a wrong checksum"})
    return data


def _is_whole(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"] and file_checksum(path) == entry["crc32c"]


def _names(store: Any) -> set[str]:
    import obstore

    return {entry["path"] for batch in obstore.list(store, chunk_size=1000) for entry in batch}


def _put_new(objects: Objects, name: str, data: bytes, is_there: bool) -> None:
    """Put a file there, unless it is there; DataError if another one is."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    def put(store: Any) -> bool:
        if not is_there:
            try:
                obstore.put(store, name, data, mode="create")
                return True
            except AlreadyExistsError:  # perhaps by this very request, when its first answer was lost
                pass
        parts = obstore.get(store, name).stream(min_chunk_size=1 << 22)
        return checksum(bytes(part) for part in parts) == checksum([data])

    if not objects.ask(name, put):
        raise DataError(
            f"{objects.address}/{name} is there already and is another one, of a writer that was killed or is at work; "
            "remove what is there, or choose another address"
        )
