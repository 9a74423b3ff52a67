"""What a finished directory says about itself: `manifest.json`, written last by the job that made it."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import zarr

from unicoord_atlas.errors import DataError

from .zarr_layout import DATA, FORMAT_VERSION, INDICES, INDPTR, MANIFEST, name_shard, read_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .store_files import StoreFiles
    from .zarr_layout import MatrixLayout

_SHOWN = 10
_OF_LAYOUT = ("zarr.json", "X/zarr.json", f"{DATA}/zarr.json", f"{INDICES}/zarr.json", f"{INDPTR}/")
"""Beginnings of what must be whole to tell which rows a shard holds."""


def read_manifest(files: StoreFiles) -> Mapping[str, Any]:
    """The manifest of a finished store of this format; DataError for anything else."""
    path, why = files.uri, files.absent()
    if why is not None:
        raise DataError(f"{path}: {why}")
    try:
        text = files.read(MANIFEST)
    except FileNotFoundError:
        raise DataError(
            f"{path} has no {MANIFEST}: it is no finished store; make one with `unicoord-atlas ingest`"
        ) from None
    except OSError as error:
        raise DataError(f"{path}/{MANIFEST} cannot be read ({error}); restore it or ingest again") from error
    try:
        manifest: Mapping[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}/{MANIFEST} cannot be read ({error}); restore it or ingest again") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{path}/{MANIFEST} is no JSON object; restore it or ingest again")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; update it or ingest again"
        )
    if fault := _fault_of_files(manifest.get("files")) or _fault_of_additions(manifest):
        raise DataError(f"{path}/{MANIFEST}: {fault}; restore it or ingest again")
    return manifest


def _fault_of_files(files: object) -> str | None:
    """What is wrong with the list of files: it comes with a store, from anywhere, and must not lead out of it."""
    if not isinstance(files, dict):
        return "it has no list of files"
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name:
            return f"{name!r} is no file in this directory"
        known = isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("crc32c"), str)
        if not known:
            return f"size and checksum of {name!r} are missing"
    return None


def _fault_of_additions(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with what the manifest says of additions, if there have been any."""
    if "additions" not in manifest:
        return None
    parts, files = manifest["additions"], manifest["files"]
    if not (isinstance(parts, dict) and all(_is_addition(part, files) for part in parts.values())):
        return "what was added is not told in full"
    return _fault_of_files(manifest.get("replaced")) and "what was replaced is not told in full"


def _is_addition(part: object, files: Mapping[str, Any]) -> bool:
    """Whether this is the record of an addition, whose files are all among those of the store."""
    if not (isinstance(part, dict) and isinstance(part.get("config"), dict) and isinstance(part.get("files"), list)):
        return False
    return all(isinstance(name, str) and name in files for name in part["files"])


def shard_checksums(manifest: Mapping[str, Any], array: str) -> Callable[[int], str | None]:
    """What the crc32c of each shard's file should be, by its number; None where the manifest does not say."""

    def crc32c_of(shard: int) -> str | None:
        entry = manifest["files"].get(f"{array}/c/{shard}")
        return None if entry is None else str(entry["crc32c"])

    return crc32c_of


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """The same for two stores only if their counts are the same, in the same order."""
    return files_fingerprint(manifest, "X/")


def files_fingerprint(manifest: Mapping[str, Any], *folders: str) -> str:
    """The same for two stores only if their files in these folders, named with a slash at the end, are the same."""
    parts = {name: entry["crc32c"] for name, entry in manifest["files"].items() if name.startswith(folders)}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def without_additions(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest as it was before anything was added to the store, in the same order."""
    if "additions" not in manifest or _fault_of_files(manifest.get("files")) or _fault_of_additions(manifest):
        return manifest  # nothing was added, or it is no manifest of ours
    added = {name for part in manifest["additions"].values() for name in part["files"]}
    files = {name: entry for name, entry in manifest["files"].items() if name not in added}
    kept = {name: value for name, value in manifest.items() if name not in ("additions", "replaced")}
    return {**kept, "files": {**files, **manifest["replaced"]}}


def require_files(files: StoreFiles, manifest: Mapping[str, Any]) -> None:
    """DataError unless every file is there in its full size; zarr reads a missing one as zeros and never tells."""
    sizes = files.sizes(manifest["files"])
    faults = {
        name: size_fault(sizes.get(name), entry["bytes"])
        for name, entry in manifest["files"].items()
        if sizes.get(name) != entry["bytes"]
    }
    if faults:
        raise damaged(files, faults)


def size_fault(size: int | None, expected: int) -> str:
    """What is wrong with a file of this size."""
    return "is missing" if size is None else f"has {size} bytes, not {expected}"


def damaged(files: StoreFiles, faults: Mapping[str, str]) -> DataError:
    """The error that names files and what is wrong with each; shards of X with the rows that they hold."""
    layout = _layout_beside(files, faults)
    names = {name: name_shard(files.uri, layout, name) if layout else f"{files.uri}/{name}" for name in faults}
    shown = "; ".join(f"{names[name]} {faults[name]}" for name in list(faults)[:_SHOWN])
    more = f"; and {len(faults) - _SHOWN} more files" if len(faults) > _SHOWN else ""
    return DataError(f"{shown}{more}: restore what is damaged, or make {files.name} again")


def _layout_beside(files: StoreFiles, faults: Mapping[str, str]) -> MatrixLayout | None:
    """How X lies on disk, if a shard of it is at fault and what tells its rows is whole."""
    if not any(name.startswith((f"{DATA}/c/", f"{INDICES}/c/")) for name in faults):
        return None
    if any(name.startswith(_OF_LAYOUT) for name in faults):
        return None
    from .reading import reading  # late: AnnData takes a second

    try:
        with reading(files.uri, "X"):
            return read_layout(zarr.open_group(files.zarr(), mode="r"), files.uri)
    except DataError:  # it is damaged, too: that the shards are is told all the same
        return None
