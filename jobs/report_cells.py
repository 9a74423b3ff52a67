"""The sections of a report that show cells: the map, and activities of gene sets by type.  Shapes: n cells."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unicoord_atlas.errors import UsageError
from unicoord_atlas.gene_sets.activities import activity_table
from unicoord_atlas.loaders.graph_store import graph_facts, graph_matrix
from unicoord_atlas.loaders.zarr_layout import CONNECTIVITIES, GENE_SETS
from unicoord_atlas.neighbors.knn import needs_lists
from unicoord_atlas.report.page import Section, Table
from unicoord_atlas.report.plane import MOST_POINTS, drawn_rows, umap_of_graph, umap_of_many, umap_of_points

from .gene_set_figures import draw_activities
from .report_figures import draw_map
from .report_inputs import store_frame_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from unicoord_atlas.loaders.store import CellStore

    from .report_album import Album
    from .report_inputs import Inputs, Latents

Numbers = dict[str, Any]
_MAPS = 8
_TOP = 3
_PCA, _BIO = "X_pca", "X_unicoord_bio"


def map_section(inputs: Inputs, album: Album, most: int = MOST_POINTS) -> tuple[Section, Numbers]:
    """UMAP of the latents, or else of the atlas's graph, by label and by supervised value."""
    if inputs.latents is not None:
        total, obs = len(inputs.latents.obs), inputs.latents.obs
        rows, places, line = _of_latents(inputs.latents, most)
    elif (
        inputs.store is not None
        and _PCA in inputs.store.obsm_keys()
        and graph_facts(inputs.store) is not None
        and inputs.store.n_obs <= most
    ):
        total, obs = inputs.store.n_obs, inputs.store.obs(arrow_names=True)
        rows = drawn_rows(total, most)
        places = _of_graph(inputs.store)
        line = f"UMAP of the graph of the atlas (no latents were given), {total:,} cells."
    else:
        line = f"Left out: --latents LATENTS gives it; --atlas with a graph does for up to {most:,} cells."
        return Section("map", "Map", left_out=line), {}
    pictures = [
        # A palette of 256 would hold the blends of shaded cells, and no longer the colours of the legend.
        album.picture(f"map by {name}", partial(draw_map, places, values, name), many_colours=len(places) > MOST_POINTS)
        for name, values in _colours(inputs, obs, rows)
    ]
    return Section("map", "Map", [line], pictures=pictures), {"cells": total, "drawn": len(rows)}


def activities_section(inputs: Inputs, album: Album, most: int = MOST_POINTS) -> tuple[Section, Numbers]:
    """Which gene sets are active in which types."""
    title = "Gene-set activities by type"
    found = _scores_and_types(inputs, most)
    if found is None:
        line = "Left out: --atlas with scores of gene sets (select-gene-sets), or --latents or --mapped by a run that "
        return Section("activities", title, left_out=f"{line}was trained on them, gives them."), {}
    scores, types, cells = found
    if (types.value_counts() >= 2).sum() < 2:
        return Section("activities", title, left_out=f"Left out: {cells} have fewer than two types."), {}
    table = activity_table(scores, types)
    top = {str(name): part["set"].head(_TOP).tolist() for name, part in table.groupby("type", sort=False)}
    rows = [(name, "; ".join(sets)) for name, sets in top.items()]
    means = {str(name): dict(zip(part["set"], part["mean"], strict=True)) for name, part in table.groupby("type")}
    return (
        Section(
            "activities",
            title,
            [f"{len(types):,} {cells}, by {types.name}."],
            [Table("most active sets", (str(types.name), "sets"), rows)],
            [album.picture("activities by type", partial(draw_activities, table))],
        ),
        {"cells": len(types), "top": top, "mean": means},
    )


def _of_latents(latents: Latents, most: int) -> tuple[NDArray[np.int64], NDArray[np.float32], str]:
    """Rows of the cells that are drawn, where they are, and what the section says of that."""
    total = len(latents.obs)
    rows = np.arange(total)
    if total <= most:
        return rows, umap_of_points(latents.table(_BIO, rows)), f"UMAP of the latents, {total:,} cells."
    if needs_lists(total - most // 2, most // 2) and find_spec("faiss") is None:
        rows = drawn_rows(total, most)
        line = f"UMAP of the latents: {len(rows):,} of {total:,} cells, drawn at random; all with the extra `graph`."
        return rows, umap_of_points(latents.table(_BIO, rows)), line
    line = (
        f"UMAP of the latents, {total:,} cells: {most // 2:,} at random are laid out, the others lie between the "
        "nearest of those. A pixel has the mean colour of its cells."
    )
    return rows, umap_of_many(latents.rows_of(_BIO), most // 2), line


def _of_graph(store: CellStore) -> NDArray[np.float32]:
    return umap_of_graph(graph_matrix(store, CONNECTIVITIES), np.asarray(store.obsm(_PCA), np.float32))


def _colours(inputs: Inputs, obs: pd.DataFrame, rows: NDArray[np.int64]) -> Iterator[tuple[str, pd.Series]]:
    """Labels of the run, then of the atlas, then numbers; up to eight in all."""
    labels = [*inputs.labels, *(label.name for label in inputs.reference.schema.labels)]
    if len(inputs.reference.schema.sources) > 1:
        labels.append("source")
    numbers = [name for name in inputs.supervised if name in obs and pd.api.types.is_numeric_dtype(obs[name])]
    chosen = [name for name in dict.fromkeys(labels) if name in obs][: _MAPS - min(len(numbers), 2)]
    yield from ((name, obs[name].iloc[rows]) for name in chosen)
    yield from ((name, obs[name].iloc[rows].astype(np.float64)) for name in numbers[: _MAPS - len(chosen)])


def _scores_and_types(inputs: Inputs, most: int) -> tuple[pd.DataFrame, pd.Series, str] | None:
    """Scores of sets of cells, their types, and which cells they are; of the atlas if it has them."""
    if not inputs.labels:
        return None
    label = next((name for name in inputs.labels if name not in inputs.config.latent.technical), inputs.labels[0])
    store, latents, mapped = inputs.store, inputs.latents, inputs.mapped
    if store is not None and GENE_SETS in store.obsm_keys():
        types = _column(store, label)
        if types is not None:
            rows = drawn_rows(store.n_obs, most)
            scores = store_frame_rows(store, GENE_SETS, rows)
            return scores, types.iloc[rows].reset_index(drop=True), "cells of the atlas"
    if latents is not None:
        rows = drawn_rows(len(latents.obs), most)
        table = latents.frame(GENE_SETS, rows)
        if table is not None:
            types = latents.obs[f"{label}_predicted"].iloc[rows].reset_index(drop=True)
            return table, types, "cells of the latents, as the run predicts them"
    if mapped is not None and GENE_SETS in mapped.obsm:
        rows = drawn_rows(mapped.n_obs, most)
        return mapped.obsm[GENE_SETS].iloc[rows], mapped.obs[f"{label}_predicted"].iloc[rows], "mapped cells"
    return None


def _column(store: CellStore, name: str) -> pd.Series | None:
    try:
        return store.obs([name], arrow_names=True)[name]
    except UsageError:  # there is none of that name
        return None
