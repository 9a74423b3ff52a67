"""The cells that the browser shows: names, columns to colour by, coordinates.  Shapes: n cells, b columns of bio."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.loaders.reading import reading
from unicoord_atlas.loaders.store_files import open_output
from unicoord_atlas.reconfigure import bio_of_seeds
from unicoord_atlas.seeds import seed_labels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.reference import ReferenceModel

BIO, UMAP, DIMS = "X_unicoord_bio", "X_umap", "X_unicoord"
_MOST_CATEGORIES = 2_000
"""A text column with more different words is a name of cells, nothing to colour by."""


@dataclass(frozen=True)
class Column:
    """What cells can be coloured by."""

    name: str
    categories: tuple[str, ...]
    """In code order; empty for numbers."""
    read: Callable[[], NDArray[np.float32]]
    """(n,) codes or numbers; NaN where missing."""


@dataclass(frozen=True)
class BrowsedCells:
    """Cells in memory but for their tables."""

    obs: pd.DataFrame
    columns: tuple[Column, ...]
    bio: Callable[[], NDArray[np.float32]]
    """(n, b)"""
    places: NDArray[np.float32] | None
    """(n, 2) a map that came with them."""
    means: Callable[[int], NDArray[np.float32]] | None = None
    """(d,) all continuous coordinates of a cell of a file."""

    def shown(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Number, name and obs of these cells, as JSON types."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.obs):
            raise UsageError(f"cells {rows.min()} to {rows.max()}: must be in 0..{len(self.obs) - 1}")
        part = self.obs.iloc[rows]
        texts = {str(name): _texts(part[name]) for name in part}
        return [
            {"row": int(row), "name": str(name), "obs": {column: text[number] for column, text in texts.items()}}
            for number, (row, name) in enumerate(zip(rows, part.index, strict=True))
        ]

    def found(self, words: str) -> NDArray[np.int64]:
        """Rows whose name, or a class of whose labels, holds these words."""
        names = pd.Series(self.obs.index.astype(str))
        hits = names.str.contains(words, case=False, regex=False).to_numpy(np.bool_)
        for column in self.columns:
            codes = [code for code, name in enumerate(column.categories) if words.lower() in name.lower()]
            if codes:
                hits = hits | np.isin(column.read(), codes)
        return np.flatnonzero(hits)


def cells_of_file(path: Path) -> BrowsedCells:
    """What export-latents or map-query wrote; DataError if the file holds no coordinates."""
    with reading(path, "the cells"):
        group: Any = open_output(path) if path.is_dir() else h5py.File(path, "r")
        obs: pd.DataFrame = anndata.io.read_elem(group["obs"])
        tables = group["obsm"]
        facts = anndata.io.read_elem(group["uns/unicoord"]) if "uns" in group and "unicoord" in group["uns"] else {}
    if BIO not in tables or "dims" not in facts:
        raise DataError(f"{path}: holds no coordinates; give what export-latents or map-query wrote, or a reference")
    columns = [*_of_obs(obs), *_of_dims(tables[DIMS], [str(name) for name in facts["dims"]])]
    for key in tables:
        if tables[key].attrs.get("encoding-type") == "dataframe":
            columns += _of_table(key, tables[key])
    places = np.asarray(tables[UMAP][:], np.float32) if UMAP in tables else None
    means = partial(_row, tables[DIMS])
    return BrowsedCells(obs, tuple(columns), partial(_whole, tables[BIO]), places, means)


def cells_of_seeds(reference: ReferenceModel) -> BrowsedCells:
    """The seeds of a reference; DataError if it has none."""
    points_sb = bio_of_seeds(reference)
    seeds = reference.seeds
    assert seeds is not None
    obs = seed_labels(reference, seeds, np.arange(len(seeds)))
    columns = [*_of_obs(obs), *_of_dims(seeds.mean, list(reference.dims))]
    return BrowsedCells(obs, tuple(columns), partial(_whole, points_sb), None)


def _of_obs(obs: pd.DataFrame) -> list[Column]:
    found = []
    for name in obs:
        values = obs[name]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            found.append(Column(str(name), (), partial(_numbers, values)))
            continue
        kinds = values.astype("string").astype("category").cat
        if 0 < len(kinds.categories) <= _MOST_CATEGORIES:
            codes = kinds.codes.to_numpy()
            found.append(Column(str(name), tuple(map(str, kinds.categories)), partial(_with_gaps, codes)))
    return found


def _of_dims(table: Any, names: list[str]) -> list[Column]:
    return [Column(f"coordinate {name}", (), partial(_dimension, table, at)) for at, name in enumerate(names)]


def _of_table(key: str, table: Any) -> list[Column]:
    names = [str(name) for name in table.attrs["column-order"]]
    return [Column(f"{key} {name}", (), partial(_named, table, name)) for name in names]


def _whole(table: Any) -> NDArray[np.float32]:
    return np.asarray(table[:], np.float32)


def _row(table: Any, row: int) -> NDArray[np.float32]:
    mean_1d = np.asarray(table[row : row + 1], np.float32)
    return mean_1d.reshape(-1)


def _dimension(table: Any, at: int) -> NDArray[np.float32]:
    return np.asarray(table[:, at], np.float32)


def _named(table: Any, name: str) -> NDArray[np.float32]:
    return np.asarray(anndata.io.read_elem(table[name]), np.float32)


def _numbers(values: pd.Series) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = values.to_numpy(np.float32, na_value=np.nan)
    return numbers


def _with_gaps(codes: NDArray[np.integer]) -> NDArray[np.float32]:
    return np.where(codes < 0, np.nan, codes).astype(np.float32)


def _texts(values: pd.Series) -> list[str | float | None]:
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return [float(value) if np.isfinite(value) else None for value in values.to_numpy(np.float64, na_value=np.nan)]
    return [None if pd.isna(value) else str(value) for value in values]
