"""Stores that lie far away or are slow to read, kept on this machine by --cache.

Of an atlas in an object store the bytes that are read are kept as they come.  A SOMA is copied as a whole, in its
order, before the first minibatch: one such pass is several times faster than an epoch of random rows, which the copy
then serves at the speed of Zarr.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from tqdm import tqdm

from unicoord_atlas.errors import AlreadyDone, UsageError
from unicoord_atlas.loaders.locks import held
from unicoord_atlas.loaders.soma_address import is_soma
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.zarr_copy import copy_to_zarr
from unicoord_atlas.loaders.zarr_layout import MANIFEST

from .workdir import finished_directory

if TYPE_CHECKING:
    from pathlib import Path

    from unicoord_atlas.loaders.byte_cache import ByteCache
    from unicoord_atlas.loaders.store import CellStore

_SOMAS = "somas"


def open_cached(path: Path, cache: ByteCache | None) -> CellStore:
    """Open a store; see `open_store`, and the module for what a cache keeps.

    Raises
    ------
    UsageError
        If a SOMA may be larger than the cache.
    """
    if cache is None or not is_soma(path):
        return open_store(path, cache)
    from unicoord_atlas.loaders.soma_cached import CachedSoma  # late: tiledbsoma takes seconds, and is an extra

    store = open_store(path)
    copies = cache.folder / _SOMAS
    copy = copies / f"{store.fingerprint}.zarr"
    copies.mkdir(parents=True, exist_ok=True)
    with held(copies):  # processes of one run want the same copy: the first makes it, the others wait
        if not (copy / MANIFEST).exists():
            _make_room(copies, copy, cache.max_bytes - int(store.indptr[-1]) * store.entry_bytes, store.uri)
            with (
                suppress(AlreadyDone),
                finished_directory(copy, [path], {}, resume=True) as partial,
                tqdm(total=store.n_obs, desc="cache", unit=" cells", unit_scale=True, disable=None) as bar,
            ):
                copy_to_zarr(partial, store, bar.update)
        return CachedSoma(store.uri, str(copy.absolute()))


def _make_room(copies: Path, copy: Path, most_bytes: int, uri: str) -> None:
    """Remove copies that nobody has open, those not used for longest first, until the others take so much at most."""
    if most_bytes < 0:
        raise UsageError(f"{uri}: its counts may take more than --cache-size; give a larger one, or leave out --cache")
    for left in copies.glob(".*.partial"):  # of killed processes: whoever makes a copy holds the folder
        if left.name != f".{copy.name}.partial":
            shutil.rmtree(left)
    others = sorted((path for path in copies.glob("*.zarr") if path != copy), key=_last_used)
    sizes = {path: _num_bytes(path) for path in others}
    for path in others:
        if sum(sizes.values()) <= most_bytes:
            return
        with suppress(BlockingIOError), held(path, wait=False):
            aside = path.rename(path.with_name(f".{path.name}.removed.partial"))  # half a copy never has its name
            shutil.rmtree(aside)
            del sizes[path]
    if sum(sizes.values()) > most_bytes:
        raise UsageError(f"{uri}: other runs use what --cache-size allows; wait for them, or give a larger one")


def _last_used(copy: Path) -> float:
    return (copy / MANIFEST).stat().st_mtime


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
