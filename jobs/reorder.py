"""reorder: an atlas with a graph written again so that neighbours lie close on disk."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import zarr
from tqdm import tqdm

from unicoord_atlas.allocator import give_back_freed_memory
from unicoord_atlas.cores import usable_cores
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.cell_names import FrameColumns, write_columns
from unicoord_atlas.loaders.graph_order import ReorderedTable, mapped_copy, reordered_matrix
from unicoord_atlas.loaders.graph_store import Neighbors, fingerprint_of, made_of, write_matrix, write_table
from unicoord_atlas.loaders.manifest import read_manifest
from unicoord_atlas.loaders.reorder import reordered_layout, write_reordered
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.store_files import LocalFiles
from unicoord_atlas.loaders.zarr_layout import CONNECTIVITIES, DISTANCES, GRAPH_FACTS
from unicoord_atlas.loaders.zarr_store import ZarrStore, require_zarr
from unicoord_atlas.loaders.zarr_tables import finish_store
from unicoord_atlas.neighbors.space_order import split_order

from .amend_store import ADDITIONS, amended_store, finish_amendment
from .build_graph import PART, PCA_KEY
from .console_text import plain_console
from .workdir import finished_directory, scratch_folder, sync_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from rich.console import Console

ORIGINAL_ROW = "original_row"
"""obs column: the row that a cell had in the atlas before."""
_ORDER = "order.npy"
"""In an unfinished atlas: see `_kept_order`."""


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
    manifest = read_manifest(LocalFiles(options.store))
    graph = manifest["additions"][PART]["config"]
    part, addition = _added_with(manifest, graph["use_rep"] or PCA_KEY)
    already = not _write_cells(store, graph, options)
    for name in (part, PART):
        finish_amendment(options.out, name)
    new = ZarrStore(str(options.out))
    if PART not in read_manifest(LocalFiles(options.out)).get("additions", {}):  # it comes last
        # As it is written, not as it would be computed: the two must agree whatever was computed where.
        order = new.obs([ORIGINAL_ROW])[ORIGINAL_ROW].to_numpy(np.int64)
        if part != PART:
            _carry(part, addition, store, new, order)
        with amended_store(options.out, PART, {**graph, **made_of(new, graph["use_rep"])}) as partial:
            _write_graph(partial, store, new, order, graph["use_rep"])
        already = False
    left = sorted(set(manifest["additions"]) - {PART, part})
    if left:
        console.print(f"not carried over, add it again to {options.out}: {', '.join(left)}", soft_wrap=True)
    done = "was finished already" if already else "neighbours lie close now"
    console.print(f"{options.out}: {new.n_obs:,} cells, {done}", highlight=False, soft_wrap=True)
    return {"store": str(options.out), "cells": new.n_obs, "already_done": already}


def _added_with(manifest: Mapping[str, Any], key: str) -> tuple[str, Mapping[str, Any]]:
    """Name and record of the addition that a table of obsm came with; a table of none gets one of its own."""
    folder = f"obsm/{key}/"
    for part, addition in manifest["additions"].items():
        if any(name.startswith(folder) for name in addition["files"]):
            return part, addition
    return key, {"config": {"table": key}, "files": [name for name in manifest["files"] if name.startswith(folder)]}


def _write_cells(store: ZarrStore, graph: Mapping[str, Any], options: ReorderOptions) -> bool:
    """Counts, obs and facts; False if they were there."""
    counts = {"cells": store.n_obs, "genes": store.n_vars, "entries": store.layout.num_entries}
    # With the graph: what a killed job left lies in the order of the graph that there was then.
    config = {"reordered": fingerprint_of(store), "graph": graph}
    try:
        with finished_directory(options.out, [options.store], config, resume=True, counts=counts) as partial:
            order = _kept_order(partial, store, graph["use_rep"] or PCA_KEY, options.out)
            give_back_freed_memory()
            layout = reordered_layout(store.layout, order)
            threads = options.threads or min(4, usable_cores())
            with tqdm(total=store.n_obs, desc="reorder", unit=" cells", unit_scale=True, disable=None) as bar:
                write_reordered(partial, layout, store, order, threads, bar.update)
            give_back_freed_memory()
            obs = FrameColumns(store.group["obs"], store.uri).with_column(ORIGINAL_ROW, order, order)
            finish_store(partial, layout, obs, store.var(), store.schema, store.normalization)
            (partial / _ORDER).unlink()
    except AlreadyDone:
        return False
    return True


def _carry(part: str, addition: Mapping[str, Any], store: ZarrStore, new: ZarrStore, order: NDArray[np.int64]) -> None:
    """Add to the new atlas, in its order, what was added to the old one with the points of the graph."""
    cells = fingerprint_of(store), fingerprint_of(new)
    with suppress(AlreadyDone), amended_store(Path(new.uri), part, _said_of(addition["config"], *cells)) as partial:
        group = zarr.open_group(partial / ADDITIONS, mode="w", zarr_format=3)
        with anndata.settings.override(auto_shard_zarr_v3=False):
            for element in sorted({"/".join(name.split("/")[:2]) for name in addition["files"]}):
                parent, key = element.split("/")
                if parent == "obsm":
                    _write_table(partial, group.require_group(parent), store, element, order)
                else:
                    facts = anndata.io.read_elem(store.group[element])
                    anndata.io.write_elem(group.require_group(parent), key, _said_of(facts, *cells))


def _said_of(facts: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The same facts of other cells, which are named by their fingerprint."""
    return {key: new if isinstance(value, str) and value == old else value for key, value in facts.items()}


def _write_graph(
    partial: Path, store: ZarrStore, new: ZarrStore, order: NDArray[np.int64], use_rep: str | None
) -> None:
    """The graph of the old atlas between the same cells of the new one."""
    source = store.group
    group = zarr.open_group(partial / ADDITIONS, mode="w", zarr_format=3)
    for key in (DISTANCES, CONNECTIVITIES):
        write_matrix(group.require_group("obsp"), key, reordered_matrix(partial, key, source[f"obsp/{key}"], order))
    uns = group.require_group("uns")
    with anndata.settings.override(auto_shard_zarr_v3=False):
        if use_rep is None:
            _write_table(partial, group.require_group("obsm"), store, f"obsm/{PCA_KEY}", order)
            for parent, key in (("varm", "PCs"), ("uns", "pca")):
                element = anndata.io.read_elem(source[f"{parent}/{key}"])
                anndata.io.write_elem(group.require_group(parent), key, element)
        anndata.io.write_elem(uns, "neighbors", anndata.io.read_elem(source["uns/neighbors"]))
        facts = anndata.io.read_elem(source[f"uns/{GRAPH_FACTS}"])
        of = made_of(new, use_rep)
        anndata.io.write_elem(uns, GRAPH_FACTS, {**facts, "fingerprint": of.pop("cells"), **of})


def _write_table(partial: Path, group: Any, store: ZarrStore, element: str, order: NDArray[np.int64]) -> None:
    """A table with a row a cell, in the new order."""
    table, key = store.group[element], element.rpartition("/")[2]
    if isinstance(table, zarr.Group):  # columns with names
        write_columns(group, key, FrameColumns(table, store.uri).in_order(order))
    else:
        write_table(group, key, ReorderedTable(mapped_copy(partial / f"{key}.old", table), order))


def _kept_order(partial: Path, store: ZarrStore, key: str, out: Path) -> NDArray[np.int64]:
    """Rows in their new order, which a killed job's shards have: another machine might sort equal points otherwise."""
    kept, aside = partial / _ORDER, partial / f"unfinished-{_ORDER}"
    if not kept.exists():
        np.save(aside, _order(store, key, out))
        sync_file(aside)
        aside.replace(kept)
    order: NDArray[np.int64] = np.load(kept)
    return order


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
