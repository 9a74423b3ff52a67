"""convert: an atlas as a SOMA Experiment, or cells of a SOMA as an atlas; add-latents: coordinates into a SOMA."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
from tqdm import tqdm

from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.graph_store import fingerprint_of
from unicoord_atlas.loaders.locks import held
from unicoord_atlas.loaders.manifest import read_manifest
from unicoord_atlas.loaders.object_address import object_address, shown
from unicoord_atlas.loaders.soma_address import is_soma, store_path
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.store_files import open_files, open_zarr
from unicoord_atlas.loaders.zarr_copy import copy_to_zarr, require_equal

from .mapped_file import read_mapped
from .workdir import finished_directory, require_local, written_by_us

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from unicoord_atlas.loaders.store import CellStore

_TABLES = ("obs", "var", "uns", "obsm", "obsp", "varm")


@dataclass(frozen=True)
class ConvertOptions:
    """What `unicoord-atlas convert` is asked to do."""

    store: Path
    out: Path


@dataclass(frozen=True)
class AddLatentsOptions:
    """What `unicoord-atlas add-latents` is asked to do."""

    latents: Path
    soma: Path
    prefix: str = ""
    """Put before the names of the tables."""


def run(options: ConvertOptions) -> dict[str, Any]:
    """Write `out`, then read both through and compare; what was not equal when it was written is removed.

    Raises
    ------
    UnicoordError
        Naming the store, the value and the way out.
    """
    require_local(options.out)
    from_soma = is_soma(options.store)
    if from_soma == (options.out.suffix != ".zarr"):
        wanted = "an atlas; give it a name that ends in .zarr" if from_soma else "a SOMA; give it another ending"
        raise UsageError(f"--out {options.out}: it becomes {wanted}")
    store = open_store(options.store)
    counts = {"cells": store.n_obs, "genes": store.n_vars, "entries": int(store.indptr[-1])}
    already = False
    with _bar("write", store) as bar:
        try:
            with finished_directory(options.out, [options.store], {}, resume=True, counts=counts) as partial:
                _write(partial, store, options.store, bar.update)
        except AlreadyDone:
            already = True
    with _bar("compare", store) as bar:
        try:
            require_equal(store, open_store(options.out), bar.update)
        except DataError as error:
            if already:  # it may be the only whole one by now
                raise DataError(f"{error}; if the copy is the wrong one, remove it and convert again") from error
            shutil.rmtree(options.out)
            raise DataError(f"{error}; the copy was removed, convert again") from error
    return {"converted": str(options.out), **counts, "already_done": already}


def add_latents(options: AddLatentsOptions) -> dict[str, Any]:
    """Write the tables of export-latents into obsm of the experiment that they were made from.

    Raises
    ------
    AlreadyDone
        If the experiment has these very tables.
    DataError
        If the cells are not those of the experiment (of its filter, if the address has one), or it has other tables of
        these names.
    """
    from unicoord_atlas.loaders.soma_latents import put_latents  # late: tiledbsoma takes seconds
    from unicoord_atlas.loaders.soma_store import SomaStore

    if not is_soma(options.soma):
        raise DataError(f"{shown(options.soma)}: is no SOMA Experiment")
    store, latents = SomaStore(str(options.soma)), read_mapped(options.latents)
    if not store.obs([]).index.equals(latents.obs_names):
        raise DataError(f"{options.latents}: its cells are not those of {store.uri}; export latents of that")
    # TileDB keeps no table without columns.
    tables = {key: np.asarray(table, np.float32) for key, table in latents.obsm.items() if table.shape[1]}
    if not tables:
        raise DataError(f"{options.latents}: holds no coordinates; give what export-latents wrote")
    place = store_path(options.soma)
    far = object_address(place) is not None  # who else writes there is not known
    alone: AbstractContextManager[None] = nullcontext() if far else written_by_us(place, held(place, wait=False))
    with alone:
        if not put_latents(options.soma, options.prefix, tables):
            raise AlreadyDone(options.soma)
    return {"soma": store.uri, "cells": store.n_obs, "obsm": sorted(f"{options.prefix}{key}" for key in tables)}


def _write(partial: Path, store: CellStore, path: Path, progress: Callable[[int], object]) -> None:
    if is_soma(path):
        copy_to_zarr(partial, store, progress)
        return
    write_soma(partial, store, path, progress)


def write_soma(partial: Path, store: CellStore, path: Path, progress: Callable[[int], object]) -> None:
    """The atlas at `path`, opened as `store`, with all its tables, as an experiment."""
    from unicoord_atlas.loaders.soma_additions import record_additions  # late: tiledbsoma takes seconds
    from unicoord_atlas.loaders.soma_written import write_experiment

    group: Any = open_zarr(path)
    tables = {name: anndata.io.read_elem(group[name]) for name in _TABLES}
    write_experiment(partial, store, anndata.AnnData(**tables), progress)
    record_additions(partial, read_manifest(open_files(path)).get("additions", {}), fingerprint_of(store))


def _bar(name: str, store: CellStore) -> tqdm[None]:
    return tqdm(total=store.n_obs, desc=name, unit=" cells", unit_scale=True, disable=None)
