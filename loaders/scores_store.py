"""Scores of gene sets in an atlas store: a data frame in obsm, a column a set, written in shards out of core."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np

from .zarr_layout import GENE_SETS, GENE_SETS_FACTS
from .zarr_store import ZarrStore
from .zarr_writer import blosc_codec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .row_file import RowFile
    from .store import CellStore

_CHUNK = 32_768
_SHARD = 131_072
"""Rows; so many of every set are in memory together."""


def write_named_scores(
    group: Any, store: CellStore, titles: Sequence[str], scores: RowFile, facts: Mapping[str, Any]
) -> None:
    """Write obsm/X_gene_sets, as AnnData writes a data frame with the atlas's names of cells, and the facts in uns."""
    index = str(store.group["obs"].attrs["_index"]) if isinstance(store, ZarrStore) else "_index"
    frame = group.require_group("obsm").create_group(GENE_SETS, overwrite=True)
    frame.attrs.update(
        {
            "encoding-type": "dataframe",
            "encoding-version": "0.2.0",
            "_index": index,
            "column-order": list(titles),
        }
    )
    if isinstance(store, ZarrStore):  # the names as they lie in obs: a copy of their files, whatever their number
        added = Path(str(group.store.root)) / group.path
        shutil.copytree(Path(store.uri) / "obs" / index, added / "obsm" / GENE_SETS / index)
    arrays = [
        frame.create_array(
            title,
            shape=(store.n_obs,),
            chunks=(_CHUNK,),
            shards=(_SHARD,),
            dtype=np.dtype(np.float32),
            compressors=[blosc_codec(np.dtype(np.float32))],
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )
        for title in titles
    ]
    width = len(titles)
    stretch = scores.stretch()
    for start in range(0, store.n_obs, _SHARD):
        stop = min(start + _SHARD, store.n_obs)
        part_ns = stretch.read(start * width, stop * width).reshape(-1, width)
        for array, values_n in zip(arrays, part_ns.T, strict=True):
            array[start:stop] = values_n
    with anndata.settings.override(auto_shard_zarr_v3=False):
        anndata.io.write_elem(group.require_group("uns"), GENE_SETS_FACTS, dict(facts))
