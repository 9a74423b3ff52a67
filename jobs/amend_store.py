"""Something is added to a finished store: it works on as it was until the addition is whole, and then has both.

A job works in a hidden sibling (`.NAME.PART.partial`) whose `additions` are a Zarr group of their own.  At the end its
elements are moved into the store, where nobody looks for them yet; then the consolidated metadata, through which
readers find elements, and the manifest are replaced, each by a rename.  Both lie ready beside the store before
the first move, so a kill at any moment is made good by the next call of `finish_amendment`.  Into a SOMA Experiment on
this machine the elements are written by TileDB; see `soma_additions`.
"""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import zarr

from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.manifest import read_manifest
from unicoord_atlas.loaders.object_address import object_address
from unicoord_atlas.loaders.soma_address import is_soma, store_path
from unicoord_atlas.loaders.store_files import LocalFiles
from unicoord_atlas.loaders.zarr_layout import MANIFEST

from .full_disk import full_disk_named
from .workdir import (
    empty_directory,
    file_checksums,
    json_text,
    locked,
    read_json,
    sync_file,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_RECORD = "unfinished.json"
_NEXT, _WITHOUT = "next", "without"
"""Folders with the metadata and the manifest that the store gets when something is added, or taken out."""
_ELEMENTS = "taken_out.json"
_READY = "ready.json"
"""What tells an addition to a SOMA from others, and which rows it is of, once it is whole."""
_METADATA = "zarr.json"
ADDITIONS = "additions"


@contextmanager
def amended_store(store: Path, part: str, config: Mapping[str, Any], replace: bool = False) -> Iterator[Path]:
    """Yield a hidden sibling to work in; what is in its `additions` group at the end becomes part of the store.

    Parameters
    ----------
    store
        A finished store.
    part
        The name of the addition in the manifest.
    config
        All that tells this addition from another, as JSON types.  A killed job of the same config goes on.
    replace
        Take out an addition of this name that has another config, once the new one is whole.

    Raises
    ------
    AlreadyDone
        If the store has this very addition.
    DataError
        If it has another one of this name, another process adds it, or the disk is full.
    """
    config = dict(json.loads(json.dumps(config)))  # as it will be read back
    partial = _work_folder(store, part)
    with locked(partial), full_disk_named(partial):
        before = _addition_of(store, part)
        try:
            _refuse_other(store, part, before, config, replace)
        except (AlreadyDone, DataError):
            if not any(partial.iterdir()):
                partial.rmdir()
            raise
        if read_json(partial / _RECORD) != config:
            empty_directory(partial)
            write_json(partial / _RECORD, config)
        shutil.rmtree(partial / ADDITIONS, ignore_errors=True)
        yield partial
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")  # as anndata writes it
            zarr.consolidate_metadata(str(partial / ADDITIONS))
        if is_soma(store):
            _make_ready_for_soma(store, part, partial, config)
            _put_in_soma(store, part, partial)
            return
        if before is not None:
            _take_out(store, part, partial)
        _make_ready(partial / _NEXT, *_with_additions(store, part, config, partial / ADDITIONS))
        _finish_addition(store, partial)


def check_amendment(store: Path, part: str, config: Mapping[str, Any]) -> None:
    """Raise AlreadyDone if the store has this very addition."""
    before = _addition_of(store, part)
    if before is not None and before["config"] == dict(json.loads(json.dumps(config))):
        raise AlreadyDone(store / part)


def finish_amendment(store: Path, part: str) -> None:
    """Complete what a kill interrupted while the store was changed; otherwise do nothing.

    Raises
    ------
    UsageError
        If the store lies in an object store: files there cannot be changed all at once.
    """
    address = object_address(store)
    if address is not None:
        raise UsageError(f"{address}: this needs the atlas on this machine; copy it here, and the new one back")
    partial = _work_folder(store, part)
    if any((partial / name).exists() for name in (_WITHOUT, _NEXT, _READY)):
        with locked(partial):
            if (partial / _READY).exists():
                _put_in_soma(store, part, partial)
            if (partial / _WITHOUT).exists():
                _finish_removal(store, partial)
            if (partial / _NEXT).exists():
                _finish_addition(store, partial)


def _work_folder(store: Path, part: str) -> Path:
    path = store_path(store).absolute()  # a process of a cluster may stand elsewhere
    return path.parent / f".{path.name}.{part}.partial"


def _addition_of(store: Path, part: str) -> dict[str, Any] | None:
    """`config` of an addition that is whole, beside other facts; None if there is none."""
    if not is_soma(store):
        found: dict[str, Any] | None = read_manifest(LocalFiles(store)).get("additions", {}).get(part)
        return found
    from unicoord_atlas.loaders import soma_additions  # late: tiledbsoma takes seconds, and is an extra

    return soma_additions.addition_of(soma_additions.opened(store), part)


def _make_ready_for_soma(store: Path, part: str, partial: Path, config: Mapping[str, Any]) -> None:
    from unicoord_atlas.loaders import soma_additions  # late: see above

    found = soma_additions.opened(store)
    soma_additions.require_free(found, part, zarr.open_group(partial / ADDITIONS, mode="r"))
    write_json(partial / _READY, {"config": config, "rows": soma_additions.rows_are(found)})


def _put_in_soma(store: Path, part: str, partial: Path) -> None:
    """Write what lies ready; it is of no use if the experiment has changed since, and its record says so then."""
    from unicoord_atlas.loaders import soma_additions  # late: see above

    ready = read_json(partial / _READY)
    found = soma_additions.same_rows(store, ready["rows"])
    if found is not None:
        added = zarr.open_group(partial / ADDITIONS, mode="r")
        soma_additions.put_addition(found, part, ready["config"], added)
    shutil.rmtree(partial)


def _refuse_other(
    store: Path, part: str, before: Mapping[str, Any] | None, config: Mapping[str, Any], replace: bool
) -> None:
    if before is None:
        return
    if before["config"] == config:
        raise AlreadyDone(store / part)
    if not replace:
        differs = [key for key in config if config[key] != before["config"].get(key)]
        raise DataError(
            f"{store} has another {part} ({', '.join(differs)} differ); say --replace to make it anew, "
            "or give the settings that it was made with"
        )


def _take_out(store: Path, part: str, partial: Path) -> None:
    """Remove an addition from metadata and manifest, and then its files."""
    manifest, metadata = dict(read_manifest(LocalFiles(store))), read_json(store / _METADATA)
    gone = manifest["additions"][part]["files"]
    elements = {_element(name) for name in gone}
    nodes = metadata["consolidated_metadata"]["metadata"]
    metadata["consolidated_metadata"]["metadata"] = {
        name: node for name, node in nodes.items() if _element(name) not in elements
    }
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if name not in set(gone)}
    manifest["additions"] = {name: entry for name, entry in manifest["additions"].items() if name != part}
    write_json(partial / _ELEMENTS, {"elements": sorted(elements)})
    _make_ready(partial / _WITHOUT, json_text(metadata), manifest)
    _finish_removal(store, partial)


def _finish_removal(store: Path, partial: Path) -> None:
    _swap(store, partial / _WITHOUT)
    for element in read_json(partial / _ELEMENTS)["elements"]:
        shutil.rmtree(store / element, ignore_errors=True)
    shutil.rmtree(partial / _WITHOUT)


def _element(name: str) -> str:
    """The element that a file or a node is part of: obsm/X_pca of obsm/X_pca/c/0/0."""
    return "/".join(name.split("/")[:2])


def _with_additions(store: Path, part: str, config: Mapping[str, Any], added: Path) -> tuple[str, dict[str, Any]]:
    """Metadata and manifest of the store with the elements of a group."""
    manifest, metadata = dict(read_manifest(LocalFiles(store))), read_json(store / _METADATA)
    files = {name: entry for name, entry in file_checksums(added).items() if name.count("/") > 1}
    taken = {_element(name) for name in manifest["files"]} & {_element(name) for name in files}
    if taken:
        raise DataError(f"{store} has {', '.join(sorted(taken))} already, which {part} would write; remove it first")
    for name in files:
        sync_file(added / name)
    nodes = read_json(added / _METADATA)["consolidated_metadata"]["metadata"]
    known = metadata["consolidated_metadata"]["metadata"]
    known.update({name: node for name, node in nodes.items() if "/" in name})
    # zarr finds the children of a group only where they stand together
    in_order = sorted(known, key=lambda name: (name.count("/"), name.rpartition("/")))
    metadata["consolidated_metadata"]["metadata"] = {name: known[name] for name in in_order}
    manifest["files"] = {**manifest["files"], **files}
    additions = manifest.get("additions", {})
    manifest.setdefault("replaced", {_METADATA: manifest["files"][_METADATA]})
    manifest["additions"] = {**additions, part: {"config": config, "files": sorted(files)}}
    return json_text(metadata), manifest


def _make_ready(folder: Path, metadata: str, manifest: dict[str, Any]) -> None:
    """Lay metadata and manifest in a folder, which has its name when both are whole."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / _METADATA).write_text(metadata, encoding="utf-8")
    sync_file(partial / _METADATA)
    manifest["files"][_METADATA] = file_checksums(partial)[_METADATA]
    write_json(partial / MANIFEST, manifest)
    sync_file(partial)
    partial.rename(folder)


def _finish_addition(store: Path, partial: Path) -> None:
    for element in sorted((partial / ADDITIONS).glob("*/*/")):
        target = store / element.relative_to(partial / ADDITIONS)
        shutil.rmtree(target, ignore_errors=True)  # of no manifest: a killed job left it
        element.rename(target)
    _swap(store, partial / _NEXT)
    shutil.rmtree(partial)


def _swap(store: Path, folder: Path) -> None:
    """Put what lies ready in the store; what a killed call put there already is no longer in the folder."""
    for name in (_METADATA, MANIFEST):
        if (folder / name).exists():
            (folder / name).replace(store / name)
            sync_file(store)
