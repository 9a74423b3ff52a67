"""build-graph: principal components, nearest neighbours and UMAP weights of all cells, added to their atlas."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial as bound
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import zarr
from tqdm import tqdm

from unicoord_atlas.allocator import give_back_freed_memory
from unicoord_atlas.errors import AlreadyDone, ConfigError, DataError
from unicoord_atlas.loaders.graph_pass import RunPieces, components_of_genes, moments_of_amounts, write_scores
from unicoord_atlas.loaders.graph_store import made_of, write_matrix, write_table
from unicoord_atlas.loaders.knn_pass import (
    KnnTask,
    measured_recall,
    prepare_groups,
    require_enough,
    write_neighbors,
)
from unicoord_atlas.loaders.row_file import RowFile
from unicoord_atlas.loaders.store import CellStore, open_store
from unicoord_atlas.loaders.weights_pass import connectivity_matrix, distance_matrix
from unicoord_atlas.loaders.zarr_layout import CONNECTIVITIES, DISTANCES, GRAPH_FACTS, GRAPH_PART
from unicoord_atlas.neighbors.highly_variable import highly_variable
from unicoord_atlas.neighbors.knn import Metric, unit_rows

from .amend_store import ADDITIONS, amended_store, check_amendment, finish_amendment
from .console_text import plain_console
from .dask_client import pieces_runner
from .dask_job import is_worker, work_until_done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from rich.console import Console

    from unicoord_atlas.neighbors.pca import Components

PART = GRAPH_PART
PCA_KEY = "X_pca"


@dataclass(frozen=True)
class BuildGraphOptions:
    """What `unicoord-atlas build-graph` takes."""

    store: Path
    k: int = 15
    """Neighbours of each cell, itself not counted; with `batch`, from each batch."""
    metric: Metric = "euclidean"
    num_pcs: int = 50
    num_genes: int = 2000
    """Highly variable genes, of those that all sources measured."""
    use_rep: str | None = None
    """obsm key with the points; None makes principal components, obsm/X_pca."""
    batch: str | None = None
    """obs column over whose values neighbours are balanced."""
    recall: float = 0.99
    """Share of true neighbours to be found where not all cells are compared."""
    seed: int = 0
    replace: bool = False
    dask: str | None = None
    threads: int = 0
    """0 = as many as there are cores, up to 4."""

    def __post_init__(self) -> None:
        for name in ("k", "num_pcs", "num_genes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.use_rep == PCA_KEY:
            raise ConfigError(f"use_rep = {PCA_KEY!r} is what build-graph makes by itself; leave out --use-rep")
        if not 0 < self.recall <= 1:
            raise ConfigError(f"recall must be over 0 and at most 1, got {self.recall}")

    def settings(self) -> dict[str, Any]:
        """What changes the result, for the manifest."""
        left_out = ("store", "replace", "dask", "threads")
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def run(options: BuildGraphOptions, console: Console | None = None) -> dict[str, Any]:
    """Add the graph to the store; returns what was found, as JSON types.

    Raises
    ------
    UnicoordError
        Naming the store, the value and the way out.
    """
    console = console or plain_console()
    if not is_worker(options.dask):  # else the driver may be at it
        finish_amendment(options.store, PART)
    store = open_store(options.store)
    batches = _batches(store, options.batch)
    sizes = {"the atlas": store.n_obs} if batches is None else {f"batch {b!r}": len(r) for b, r in batches.items()}
    require_enough(sizes, options.k)
    config = {**options.settings(), **made_of(store, options.use_rep)}
    try:
        check = bound(check_amendment, options.store, PART, config)
        check()
        if is_worker(options.dask):
            work_until_done(check)
        with (
            # Outside, so that workers see the graph in the store when the cluster ends.
            pieces_runner(options.dask, options.threads) as run_pieces,
            amended_store(options.store, PART, config, options.replace) as folder,
        ):
            return _build(folder, store, options, batches, run_pieces, console)
    except AlreadyDone:
        console.print(f"{options.store} has this graph already", highlight=False, soft_wrap=True)
        return {"store": str(options.store), "already_done": True}


def _build(
    partial: Path,
    store: CellStore,
    options: BuildGraphOptions,
    batches: dict[str, NDArray[np.int64]] | None,
    run_pieces: RunPieces,
    console: Console,
) -> dict[str, Any]:
    result: dict[str, Any] = {"store": str(options.store), "cells": store.n_obs}
    group = zarr.open_group(partial / ADDITIONS, mode="w", zarr_format=3)
    if options.use_rep is None:
        points, facts = _components(partial, store, options, run_pieces, group)
        result |= facts
    else:
        points = _given_points(partial, store, options.use_rep)
    give_back_freed_memory()
    compared = _unit_points(partial, points) if options.metric == "cosine" else points
    task = prepare_groups(
        compared,
        None if batches is None else list(batches.values()),
        options.k,
        options.metric,
        options.recall,
        options.seed,
    )
    result |= {
        "dims": points.shape[1],
        "k": options.k * len(task.groups),
        "recall": measured_recall(task, options.seed),
    }
    _say_search(task, result, console)
    give_back_freed_memory()
    indices, distances = _neighbors(partial, task, run_pieces)
    give_back_freed_memory()
    write_matrix(group.require_group("obsp"), DISTANCES, distance_matrix(partial, indices, distances))
    weights = connectivity_matrix(partial, indices, distances)
    write_matrix(group["obsp"], CONNECTIVITIES, weights)
    result["edges"] = int(weights.indptr[-1])
    _write_facts(group.require_group("uns"), store, options, result)
    console.print(f"{options.store}: {result['edges']:,} weights between {store.n_obs:,} cells", soft_wrap=True)
    return result


def _components(
    partial: Path, store: CellStore, options: BuildGraphOptions, run_pieces: RunPieces, group: Any
) -> tuple[RowFile, dict[str, Any]]:
    """Scores of all cells, also written to obsm/X_pca; loadings to varm/PCs; variances to uns/pca."""
    with _bar("moments", store.n_obs) as progress:
        moments = moments_of_amounts(store, run_pieces, partial / "moments.npz", progress)
    measured_g = np.asarray(store.schema.measured_sg().all(axis=0))
    genes = highly_variable(*moments, measured_g, options.num_genes)
    with _bar("products", store.n_obs) as progress:
        found = components_of_genes(store, genes, options.num_pcs, run_pieces, partial / "products.npz", progress)
    points = RowFile(partial / "points.f32", store.n_obs, len(found.variance_d), np.float32)
    with _bar("scores", store.n_obs) as progress:
        write_scores(store, genes, found, points, run_pieces, progress)
    write_table(group.require_group("obsm"), PCA_KEY, points)
    _write_components(group, store, genes, found)
    return points, {"genes": len(genes), "explained": float(found.variance_d.sum() / found.total_variance)}


def _write_components(group: Any, store: CellStore, genes: NDArray[np.int64], found: Components) -> None:
    loadings = np.zeros((store.n_vars, len(found.variance_d)))
    loadings[genes] = found.loadings_gd
    facts = {
        "params": {"zero_center": True, "use_highly_variable": True},
        "variance": found.variance_d,
        "variance_ratio": found.variance_d / found.total_variance,
    }
    with anndata.settings.override(auto_shard_zarr_v3=False):
        anndata.io.write_elem(group.require_group("varm"), "PCs", loadings)
        anndata.io.write_elem(group.require_group("uns"), "pca", facts)


def _given_points(partial: Path, store: CellStore, key: str) -> RowFile:
    table = store.obsm(key)
    values = np.asarray(table.to_numpy() if isinstance(table, pd.DataFrame) else table, np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise DataError(f"{store.uri}: obsm/{key} is no table of finite numbers; choose another --use-rep")
    points = RowFile(partial / "points.f32", len(values), values.shape[1], np.float32)
    points.next_row = 0
    points.append(values)
    return points


def _unit_points(partial: Path, points: RowFile) -> RowFile:
    unit = RowFile(partial / "unit.f32", *points.shape, np.float32)
    unit.next_row = 0
    for start in range(0, points.shape[0], 1 << 16):
        part_nd = unit_rows(points[start : start + (1 << 16)])
        if not part_nd.any(axis=1).all():
            row = start + int((~part_nd.any(axis=1)).argmax())
            raise DataError(f"cell in row {row} is at the origin and has no cosine; use the metric euclidean")
        unit.append(part_nd)
    return unit


def _neighbors(partial: Path, task: KnnTask, run_pieces: RunPieces) -> tuple[RowFile, RowFile]:
    width = task.k * len(task.groups)
    indices = RowFile(partial / "indices.i32", task.num_points, width, np.int32)
    distances = RowFile(partial / "distances.f32", task.num_points, width, np.float32)
    with _bar("neighbours", task.num_points) as progress:
        write_neighbors(task, indices, distances, run_pieces, progress)
    return indices, distances


def _batches(store: CellStore, column: str | None) -> dict[str, NDArray[np.int64]] | None:
    """Rows of each value of the column; cells without one would have no batch and are refused."""
    if column is None:
        return None
    values = store.obs([column], arrow_names=True)[column].astype("string")
    if values.isna().any():
        raise DataError(
            f"{store.uri}: {int(values.isna().sum())} cells have no {column!r}; choose a --batch column without gaps"
        )
    return {str(name): np.asarray(rows, np.int64) for name, rows in values.groupby(values).indices.items()}


def _write_facts(group: Any, store: CellStore, options: BuildGraphOptions, result: dict[str, Any]) -> None:
    """What scanpy looks for, and what tells whether the graph is of these cells and points."""
    neighbors = {
        "connectivities_key": CONNECTIVITIES,
        "distances_key": DISTANCES,
        "params": {
            "n_neighbors": result["k"] + 1,  # scanpy counts the cell itself
            "method": "umap",
            "random_state": options.seed,
            "metric": options.metric,
            "use_rep": options.use_rep or PCA_KEY,
        },
    }
    of = made_of(store, options.use_rep)
    facts = {
        "fingerprint": of.pop("cells"),
        **of,
        "recall": result["recall"],
        "settings": json.dumps(options.settings()),
    }
    anndata.io.write_elem(group, "neighbors", neighbors)
    anndata.io.write_elem(group, GRAPH_FACTS, facts)


def _say_search(task: KnnTask, result: dict[str, Any], console: Console) -> None:
    probes = [group.probes for group in task.groups if group.lists is not None]
    how = f"{max(probes)} lists looked into" if probes else "all cells compared"
    console.print(
        f"{result['k']} neighbours in {result['dims']} dimensions, {how}: recall {result['recall']:.4f}",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _bar(title: str, num_cells: int) -> Iterator[Callable[[int], object]]:
    with tqdm(total=num_cells, desc=title, unit=" cells", unit_scale=True, disable=None) as bar:
        yield bar.update
