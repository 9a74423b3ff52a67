"""An output appears under its name only when it is finished; `manifest.json`, written last, says from what it was made.

A job works in a hidden sibling (`.NAME.partial`), which holds a record of its inputs and settings from the start: the
same command goes on from what a killed one left there, another command starts afresh.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicoord_atlas.checksums import checksum, file_checksum
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.locks import held, held_by_name
from unicoord_atlas.loaders.manifest import read_manifest, without_additions
from unicoord_atlas.loaders.object_address import object_address
from unicoord_atlas.loaders.soma_address import SomaAddress, is_soma
from unicoord_atlas.loaders.store_files import open_files
from unicoord_atlas.loaders.zarr_layout import FORMAT_VERSION, MANIFEST

from .full_disk import full_disk_named

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

_RECORD = "unfinished.json"
_REMOVALS, _BETWEEN_REMOVALS = 40, 0.05  # seconds
_ZARR_ASIDE = re.compile(r"\.[0-9a-f]{32}\.partial$")
_PACKAGES = ("unicoord-atlas", "anndata", "zarr", "numpy", "torch")


@contextmanager
def finished_directory(
    out: Path,
    inputs: Sequence[Path],
    config: Mapping[str, Any],
    resume: bool = False,
    counts: dict[str, int] | None = None,
) -> Iterator[Path]:
    """Yield a hidden sibling to write in; at the end it gets its manifest and then its name.

    Parameters
    ----------
    out
        The name of the finished directory.
    inputs
        Files and directories it is made from; name, size and time of change tell whether they are the same.
    config
        All settings that change the result, as JSON types.
    resume
        Keep what a killed job with the same inputs and settings left, and leave it when this one fails.
    counts
        For the manifest; the caller may fill it until the end.

    Raises
    ------
    AlreadyDone
        If `out` is finished from the same inputs and settings.
    DataError
        If `out` is something else, another process writes it, or the disk is full.
    """
    require_local(out)
    made_from = origin_of(inputs, config)
    partial = out.parent / f".{out.name}.partial"
    _refuse_other(out, made_from)
    with locked(partial), full_disk_named(partial):
        _refuse_other(out, made_from)  # another process may have finished it meanwhile
        if not (resume and read_json(partial / _RECORD) == made_from):
            empty_directory(partial)
            write_json(partial / _RECORD, made_from)
        try:
            yield partial
        except BaseException:
            if not resume or os.listdir(partial) == [_RECORD]:  # refused before anything was made
                _remove_while_others_write(partial)
            raise
        (partial / _RECORD).unlink(missing_ok=True)  # a writer that empties its directory took it along
        _remove_leftovers(partial)
        _write_manifest(partial, made_from, counts or {})
        partial.rename(out)  # over an empty directory, too
        sync_file(out.parent)


def check_output(out: Path, inputs: Sequence[Path], config: Mapping[str, Any]) -> None:
    """Raise what `finished_directory` would of an existing `out`, before a job has done any work."""
    require_local(out)
    _refuse_other(out, origin_of(inputs, config))


@contextmanager
def finished_file(out: Path) -> Iterator[Path]:
    """Yield a hidden sibling with the same suffix, which gets its name at the end; DataError if the name is taken."""
    require_local(out)
    partial = out.parent / f".{out.stem}.partial{out.suffix}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_by_us(out, held_by_name(out.parent / f".{out.name}.lock")), full_disk_named(partial):
        try:
            if out.exists():
                raise DataError(f"{out} exists already; remove it or choose another name")
            yield partial
            sync_file(partial)
            partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` for what is only needed meanwhile; what a killed job left there is removed.

    DataError if another process works there.
    """
    require_local(out)
    folder = scratch_of(out)
    with locked(folder):
        try:
            empty_directory(folder)
            with full_disk_named(folder):
                yield folder
        finally:
            shutil.rmtree(folder)


def scratch_of(out: Path) -> Path:
    """Where the scratch folder of an output is."""
    return out.parent / f".{out.name}.scratch"


def require_local(out: Path) -> None:
    """UsageError if an output is to be written to an object store."""
    address = object_address(out)
    if address is not None:
        raise UsageError(
            f"{address}: outputs are written on this machine; give a path, and send it there by `unicoord-atlas copy`"
        )


def describe_input(path: Path) -> dict[str, Any]:
    """What tells inputs apart: name, size, time of change; of a finished directory, its manifest's checksum.

    What was added to a store later does not count: who read it before would read the same now.
    """
    if is_soma(path):
        from unicoord_atlas.loaders.soma_open import soma_fingerprint  # late: an extra

        address = SomaAddress.parse(str(path))
        return {"name": str(replace(address, path=Path(address.path.name))), "cells": soma_fingerprint(address)}
    if object_address(path) is not None:
        return _describe_manifest(path.name, read_manifest(open_files(path)))
    manifest = path / MANIFEST
    try:
        if manifest.exists():
            return _describe_manifest(path.name, read_json(manifest) or {})
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    return {"name": path.name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _describe_manifest(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "manifest": checksum([json_text(without_additions(manifest)).encode()])}


def file_checksums(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and crc32c of every file but the manifest, by its path within the directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    with ThreadPoolExecutor(2) as pool:
        checksums = list(pool.map(file_checksum, paths))
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "crc32c": checksum}
        for path, checksum in zip(paths, checksums, strict=True)
    }


def origin_of(inputs: Sequence[Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells an output from others, as an output keeps it: its inputs and settings."""
    made_from: dict[str, Any] = {"inputs": [describe_input(path) for path in inputs], "config": config}
    return dict(json.loads(json.dumps(made_from)))  # as it will be read back


def _write_manifest(directory: Path, made_from: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    # No times or paths: the same job on the same inputs writes the same bytes.
    manifest = {
        "format_version": FORMAT_VERSION,
        **made_from,
        "counts": counts,
        "versions": _versions(),
        "files": file_checksums(directory),
    }
    for name in manifest["files"]:
        sync_file(directory / name)
    write_json(directory / MANIFEST, manifest)


def _remove_while_others_write(directory: Path) -> None:
    """Remove a directory in which zarr's threads may still rename what they were writing when a signal came."""
    for _ in range(_REMOVALS):
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(_BETWEEN_REMOVALS)  # zarr makes the folder of what it writes anew
        if not directory.exists():
            return


def _remove_leftovers(directory: Path) -> None:
    """Remove what a killed process left: what its zarr was writing, and locks of files that had got their names."""
    aside = [path for path in directory.rglob("*.partial") if _ZARR_ASIDE.search(path.name)]
    for path in (*aside, *directory.glob(".*.lock")):
        path.unlink()


def empty_directory(directory: Path) -> None:
    """Remove all that is in a directory."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # an uninstalled checkout
            versions[package] = "unknown"
    return versions


def _refuse_other(out: Path, made_from: Mapping[str, Any]) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = read_json(out / MANIFEST)
    if manifest is None:
        raise DataError(f"{out} exists and is no finished output of unicoord-atlas; remove it or choose another --out")
    differs = [key for key in ("inputs", "config") if manifest.get(key) != made_from[key]]
    if not differs:
        raise AlreadyDone(out)
    raise DataError(f"{out} exists, made from other {' and '.join(differs)}; remove it or choose another --out")


@contextmanager
def locked(partial: Path) -> Iterator[None]:
    """Make the directory and hold it; DataError if another process does."""
    partial.mkdir(parents=True, exist_ok=True)
    with written_by_us(partial, held(partial, wait=False)):
        yield


@contextmanager
def written_by_us(path: Path, lock: AbstractContextManager[None]) -> Iterator[None]:
    """Hold a lock meanwhile; DataError that names the output if another process does."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except BlockingIOError:
            raise DataError(f"{path} is being written by another process; wait for it or choose another name") from None
        yield


def json_text(value: Mapping[str, Any]) -> str:
    """The text of every JSON file that this program writes."""
    return json.dumps(value, indent=1) + "\n"


def read_json(path: Path) -> Any:
    """The object that a JSON file holds; None if there is none, or half of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that survives a power cut once this returns."""
    path.write_text(json_text(value), encoding="utf-8")
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make what a file, or a directory, holds survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
