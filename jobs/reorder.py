"""reorder: an atlas with a graph written again so that neighbours lie close on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import zarr
from tqdm import tqdm

from unicoord_atlas.allocator import give_back_freed_memory
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.cell_names import FrameColumns
from unicoord_atlas.loaders.graph_order import ReorderedTable, mapped_copy, reordered_matrix
from unicoord_atlas.loaders.graph_store import Neighbors, fingerprint_of, write_matrix, write_table
from unicoord_atlas.loaders.manifest import read_manifest
from unicoord_atlas.loaders.reorder import reordered_layout, write_reordered
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.store_files import LocalFiles, open_zarr
from unicoord_atlas.loaders.zarr_layout import CONNECTIVITIES, DISTANCES, GRAPH_FACTS
from unicoord_atlas.loaders.zarr_store import ZarrStore, require_zarr
from unicoord_atlas.loaders.zarr_tables import finish_store
from unicoord_atlas.neighbors.space_order import split_order

from .amend_store import ADDITIONS, amended_store, finish_amendment
from .build_graph import PART, PCA_KEY
from .console_text import plain_console
from .workdir import finished_directory, scratch_folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from rich.console import Console

ORIGINAL_ROW = "original_row"
"""obs column: the row that a cell had in the atlas before."""


@dataclass(frozen=True)
class ReorderOptions:
    """What `unicoord-atlas reorder` takes."""

    store: Path
    out: Path
    threads: int = 0
    """0 = as many as there are cores, up to 4."""


def run(options: ReorderOptions, console: Console | None = None) -> dict[str, Any]:
    """Write `out`: the same cells in graph order, with the same graph; returns what was done, as JSON types.

    Raises
    ------
    UnicoordError
        Naming the store, the value and the way out.
    """
    console = console or plain_console()
    if options.out.absolute() == options.store.absolute():
        raise UsageError(f"--out {options.out} is the atlas itself; give the new one another name")
    finish_amendment(options.store, PART)
    store = require_zarr(open_store(options.store), "be put in another order")
    Neighbors(store)  # refuses an atlas without a graph, and a graph of other cells
    _require_names_free(store)
    graph = read_manifest(LocalFiles(options.store))["additions"][PART]["config"]
    order = _order(store, graph["use_rep"] or PCA_KEY, options.out)
    give_back_freed_memory()
    already = not _write_cells(store, order, options)
    finish_amendment(options.out, PART)
    new = ZarrStore(str(options.out))
    try:
        with amended_store(options.out, PART, {**graph, "cells": fingerprint_of(new)}) as partial:
            _write_graph(partial, options.store, new, order, graph["use_rep"])
            already = False
    except AlreadyDone:
        pass
    left = sorted(set(read_manifest(LocalFiles(options.store))["additions"]) - {PART})
    if left:
        console.print(f"not carried over, add it again to {options.out}: {', '.join(left)}", soft_wrap=True)
    done = "was finished already" if already else "neighbours lie close now"
    console.print(f"{options.out}: {new.n_obs:,} cells, {done}", highlight=False, soft_wrap=True)
    return {"store": str(options.out), "cells": new.n_obs, "already_done": already}


def _write_cells(store: ZarrStore, order: NDArray[np.int64], options: ReorderOptions) -> bool:
    """Counts, obs and facts; False if they were there."""
    layout = reordered_layout(store.layout, order)
    counts = {"cells": store.n_obs, "genes": store.n_vars, "entries": layout.num_entries}
    config = {"reordered": fingerprint_of(store)}
    try:
        with finished_directory(options.out, [options.store], config, resume=True, counts=counts) as partial:
            threads = options.threads or min(4, len(os.sched_getaffinity(0)))
            with tqdm(total=store.n_obs, desc="reorder", unit=" cells", unit_scale=True, disable=None) as bar:
                write_reordered(partial, layout, store, order, threads, bar.update)
            give_back_freed_memory()
            obs = FrameColumns(store.group["obs"], store.uri).with_column(ORIGINAL_ROW, order, order)
            finish_store(partial, layout, obs, store.var(), store.schema, store.normalization)
    except AlreadyDone:
        return False
    return True


def _write_graph(partial: Path, old: Path, new: ZarrStore, order: NDArray[np.int64], use_rep: str | None) -> None:
    """The graph of the old atlas between the same cells of the new one."""
    source: Any = open_zarr(old)
    group = zarr.open_group(partial / ADDITIONS, mode="w", zarr_format=3)
    for key in (DISTANCES, CONNECTIVITIES):
        write_matrix(group.require_group("obsp"), key, reordered_matrix(partial, key, source[f"obsp/{key}"], order))
    uns = group.require_group("uns")
    with anndata.settings.override(auto_shard_zarr_v3=False):
        if use_rep is None:
            table = mapped_copy(partial / f"{PCA_KEY}.old", source[f"obsm/{PCA_KEY}"])
            write_table(group.require_group("obsm"), PCA_KEY, ReorderedTable(table, order))
            for parent, key in (("varm", "PCs"), ("uns", "pca")):
                element = anndata.io.read_elem(source[f"{parent}/{key}"])
                anndata.io.write_elem(group.require_group(parent), key, element)
        anndata.io.write_elem(uns, "neighbors", anndata.io.read_elem(source["uns/neighbors"]))
        facts = anndata.io.read_elem(source[f"uns/{GRAPH_FACTS}"])
        anndata.io.write_elem(uns, GRAPH_FACTS, {**facts, "fingerprint": fingerprint_of(new)})


def _order(store: ZarrStore, key: str, out: Path) -> NDArray[np.int64]:
    """Rows in their new order, from points of obsm in a file: of a million cells they are 200 MB."""
    with scratch_folder(out) as folder:
        table: Any = store.group[f"obsm/{key}"]
        if isinstance(table, zarr.Group):  # columns with names
            table = pd.DataFrame(store.obsm(key)).to_numpy(np.float32)
        return split_order(mapped_copy(folder / "points", table, np.float32))


def _require_names_free(store: ZarrStore) -> None:
    if ORIGINAL_ROW in store.group["obs"].attrs["column-order"]:
        raise DataError(f"{store.uri} has an obs column {ORIGINAL_ROW!r}: it is in graph order; reorder its source")
