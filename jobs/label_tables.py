"""Tables of obsm that supervise a run, by their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from unicoord_atlas.loaders.zarr_store import ZarrStore

if TYPE_CHECKING:
    from unicoord_atlas.columns import Columns
    from unicoord_atlas.loaders.store import CellStore


def columns_of_table(store: CellStore, key: str) -> Columns:
    """Columns with their names, those of an array called by its key and their number; UsageError if there is none."""
    named: Columns | None = store.obsm_columns(key) if isinstance(store, ZarrStore) else None
    if named is not None:
        return named  # of a million cells and fifty sets the whole table would be 200 MB, twice
    table = store.obsm(key)
    names = None if isinstance(table, pd.DataFrame) else [f"{key}_{number}" for number in range(table.shape[1])]
    whole: Columns = pd.DataFrame(table, columns=names)
    return whole
