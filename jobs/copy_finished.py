"""copy: a finished directory to an object store, or from one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.manifest import read_manifest
from unicoord_atlas.loaders.object_address import object_address, shown
from unicoord_atlas.loaders.store_files import open_files
from unicoord_atlas.loaders.zarr_layout import MANIFEST

from .full_disk import full_disk_named
from .workdir import locked, sync_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from unicoord_atlas.loaders.object_files import ObjectFiles


@dataclass(frozen=True)
class CopyOptions:
    """What `unicoord-atlas copy` is asked to do."""

    source: Path
    out: Path


def run(options: CopyOptions) -> dict[str, Any]:
    """Copy every file that the manifest names, each compared with it, the manifest last.

    Raises
    ------
    UsageError
        Unless one of the two is an address of an object store, and the other a path.
    AlreadyDone
        If the very same is there already.
    DataError
        If something else is there, or what is to be copied is not finished, or damaged.
    ConfigError, UnreachableError
        Why the object store does not answer.
    """
    up, down = object_address(options.out), object_address(options.source)
    if (up is None) == (down is None) or str(options.source).startswith("hf:"):
        raise UsageError(
            f"copy {shown(options.source)} --out {shown(options.out)}: one of the two is an address in an object store "
            "(s3://bucket/name), the other a path on this machine"
        )
    files: Any = open_files(options.source)
    entries = read_manifest(files)["files"]
    num_bytes = sum(entry["bytes"] for entry in entries.values())
    with tqdm(total=num_bytes, desc="copy", unit="B", unit_scale=True, disable=None) as bar:
        if up is not None:
            from unicoord_atlas.loaders.object_copy import copy_up  # late: obstore is an extra

            if not copy_up(options.source, up, bar.update):
                raise AlreadyDone(up)
            _tell_of_others(options.source, entries)
        else:
            _bring(files, options.out, bar)
    return {"copied": shown(options.out), "files": len(entries), "bytes": num_bytes}


def _tell_of_others(source: Path, entries: Mapping[str, Any]) -> None:
    """Say what stays here: a graph that was added to a SOMA, or a file that somebody put into the directory."""
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    others = sorted(found - {*entries, MANIFEST})
    if others:
        print(
            f"{source}: {len(others):,} files are not in its manifest and were not copied, {others[0]} the first",
            file=sys.stderr,
        )


def _bring(files: ObjectFiles, out: Path, bar: tqdm[None]) -> None:
    """Into a hidden sibling, which gets its name at the end; what a killed copy left there is gone on from."""
    from unicoord_atlas.loaders.object_copy import bring

    partial = out.parent / f".{out.name}.partial"
    _refuse_other(files, out)
    with locked(partial), full_disk_named(partial):
        _refuse_other(files, out)  # another process may have finished it meanwhile
        _remove_others(files, partial)
        bring(files, partial, bar.update)
        for name in (*files.entries, MANIFEST):
            sync_file(partial / name)
        partial.rename(out)  # over an empty directory, too
        sync_file(out.parent)


def _refuse_other(files: ObjectFiles, out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = out / MANIFEST
    if manifest.is_file() and manifest.read_bytes() == files.read(MANIFEST):
        raise AlreadyDone(out)
    raise DataError(f"{out} exists and is no copy of {files.uri}; remove it or choose another --out")


def _remove_others(files: ObjectFiles, partial: Path) -> None:
    """Remove what another job left: only what is to be there may get the name."""
    for path in sorted(partial.rglob("*"), reverse=True):
        name = path.relative_to(partial).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in files.entries:
            path.unlink()
