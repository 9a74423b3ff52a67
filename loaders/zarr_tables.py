"""The rest of an AnnData group once its X is written: obs, var, uns and the metadata of all."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import zarr

from unicoord_atlas.errors import DataError

from . import zarr_layout as names
from .cell_names import TableByColumn, write_columns, write_frame
from .zarr_writer import is_whole, remove_unfinished

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from unicoord_atlas.normalization import Normalization
    from unicoord_atlas.schema import AtlasSchema

    from .zarr_layout import MatrixLayout

EMPTY = ("obsm", "obsp", "varm", "varp", "layers")


def finish_store(
    out: Path,
    layout: MatrixLayout,
    obs: pd.DataFrame | TableByColumn,
    var: pd.DataFrame,
    schema: AtlasSchema,
    normalization: Normalization,
) -> None:
    """Write obs, var and uns once all shards are there, and consolidate the metadata; the manifest is the job's."""
    for shard in range(layout.num_shards):
        if not is_whole(out, layout, shard):
            start, stop = layout.rows_of_shard(shard)
            raise DataError(f"{out}: shard {shard} (rows {start}:{stop}) was not written")
    remove_unfinished(out)
    facts = {name.removesuffix("_g"): getattr(normalization, name) for name in normalization.__dataclass_fields__}
    # As an array of one text: zarr takes 500 bytes of memory a character to write a scalar one.
    uns = {names.UNS: {names.SCHEMA: np.array([schema.to_json()], object), names.NORMALIZATION: facts}}
    write_tables(
        zarr.open_group(out, mode="a", zarr_format=3),
        {"obs": obs, "var": var, "uns": uns},
    )


def write_tables(root: zarr.Group, tables: Mapping[str, Any]) -> None:
    """Write obs, var and uns beside X, the empty rest of an AnnData, and consolidate the metadata."""
    settings = anndata.settings.override(auto_shard_zarr_v3=False, allow_write_nullable_strings=True)
    with settings, warnings.catch_warnings():
        for key, element in {**tables, **{key: {} for key in EMPTY}}.items():
            if isinstance(element, pd.DataFrame):
                write_frame(root, key, element)
            elif isinstance(element, TableByColumn):
                write_columns(root, key, element)
            else:
                anndata.io.write_elem(root, key, element)
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")  # anndata writes it likewise
        warnings.filterwarnings("ignore", "Object at .* is not recognized")  # the job's own files lie beside the groups
        zarr.consolidate_metadata(root.store)
