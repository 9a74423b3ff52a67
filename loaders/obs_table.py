"""One obs table from those of many sources: the outer join of their columns, rows in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.types import is_bool_dtype, is_numeric_dtype, union_categoricals

from unicoord_atlas.errors import DataError

from .cell_names import TEXT, arrow_index
from .labels import as_texts
from .zarr_layout import SIZE_FACTOR, SOURCE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def join_obs(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """The columns of all tables, in the order of first appearance; `names` are put before the cells' names.

    Names and columns leave their tables as they are joined: both together would take twice the memory.
    Numbers stay numbers (with NaN where a source has no such column), booleans booleans, all else becomes texts.
    """
    columns = dict.fromkeys(column for table in tables for column in table.columns)
    index = arrow_index([_take_names(table, name) for name, table in zip(names, tables, strict=True)])
    joined = {
        str(column): join_column([t.pop(column) if column in t else None for t in tables], [len(t) for t in tables])
        for column in columns
    }
    return pd.DataFrame(joined, index=index)


def _take_names(table: pd.DataFrame, source: str) -> pa.Array:
    """The names of the cells after that of their source; the table is left without."""
    names = pc.binary_join_element_wise(pa.scalar(source, TEXT), pa.array(table.index, TEXT), pa.scalar(":", TEXT))
    table.index = pd.RangeIndex(len(table))
    return names


def rename_ours(obs: pd.DataFrame) -> pd.DataFrame:
    """The table with the names that we fill ourselves freed: a source's own `source` becomes `source_in_file`."""
    taken, new = set(obs.columns), {}
    for name in {SOURCE, SIZE_FACTOR} & taken:
        new[name] = f"{name}_in_file"
        while new[name] in taken:  # cells of an atlas that had one, too
            new[name] += "_in_file"
    return obs.rename(columns=new)


def require_unique_names(path: Path, obs: pd.DataFrame) -> None:
    """DataError if two cells of a source have the same name."""
    if not obs.index.is_unique:
        twin = obs.index[obs.index.duplicated()][0]
        raise DataError(
            f"{path}: two cells are named {twin!r}; make names unique with anndata's obs_names_make_unique()"
        )


def join_column(parts: Sequence[pd.Series | None], sizes: Sequence[int]) -> Any:
    """One column, as an array that pandas takes; None where a source has none."""
    present = [part for part in parts if part is not None]
    if all(is_bool_dtype(part.dtype) for part in present):
        whole = len(present) == len(parts) and not any(part.isna().any() for part in present)
        arrays = [np.full(n, None) if p is None else p.to_numpy(object) for p, n in zip(parts, sizes, strict=True)]
        return pd.array(np.concatenate(arrays), dtype=bool if whole else "boolean")
    if all(is_numeric_dtype(part.dtype) and not is_bool_dtype(part.dtype) for part in present):
        return np.concatenate(
            [np.full(n, np.nan) if p is None else _numbers(p) for p, n in zip(parts, sizes, strict=True)]
        )
    nothing = pd.Index([], dtype=object)
    return union_categoricals(
        [
            pd.Categorical.from_codes(np.full(n, -1), categories=nothing) if p is None else as_texts(p)
            for p, n in zip(parts, sizes, strict=True)
        ]
    )


def _numbers(part: pd.Series) -> Any:
    if isinstance(part.dtype, np.dtype):
        return part.to_numpy()
    return part.to_numpy(float, na_value=np.nan) if part.isna().any() else part.to_numpy(part.dtype.numpy_dtype)
