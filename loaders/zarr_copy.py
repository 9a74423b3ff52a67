"""Cells of any store as an atlas.zarr, and whether two stores hold the same cells.  Shapes: n cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unicoord_atlas.errors import DataError

from .row_matrix import bounded_cuts
from .store import CsrBuffer
from .zarr_layout import SIZE_FACTOR, SOURCE, MatrixLayout
from .zarr_tables import finish_store
from .zarr_writer import AtlasWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from unicoord_atlas.csr_block import CsrBlock

    from .store import CellStore

_ROWS_TOGETHER = 20_000


def copy_to_zarr(out: Path, store: CellStore, progress: Callable[[int], object]) -> None:
    """Write all but the manifest, going on from the whole shards that are there; `progress` is told how many cells."""
    dtype = store.read_ranges(np.zeros((0, 2), np.int64)).data.dtype
    layout = MatrixLayout(store.indptr, store.n_vars, dtype)
    with AtlasWriter(out, layout) as writer:
        progress(writer.next_row)
        for start, stop, rows in _blocks(store, writer.next_row):
            writer.write(rows)
            progress(stop - start)
    obs = store.obs(arrow_names=True)
    if SOURCE not in obs:
        (source,) = store.schema.sources
        obs[SOURCE] = pd.Categorical([source.name] * store.n_obs)
    obs[SIZE_FACTOR] = store.size_factors
    finish_store(out, layout, obs, store.var(), store.schema, store.normalization)


def require_equal(one: CellStore, other: CellStore, progress: Callable[[int], object]) -> None:
    """DataError naming the first thing that differs between two stores: genes, cells, labels, counts."""
    if one.schema != other.schema:
        raise _differs(one, other, "the schema (genes, labels or sources)")
    if not np.array_equal(one.indptr, other.indptr):
        raise _differs(one, other, "the number of entries of some cell")
    if not np.array_equal(one.size_factors, other.size_factors):
        raise _differs(one, other, "some size factor")
    for field in one.normalization.__dataclass_fields__:
        if not np.array_equal(getattr(one.normalization, field), getattr(other.normalization, field)):
            raise _differs(one, other, f"normalization.{field}")
    _require_same_obs(one, other)
    for (start, stop, left), (_, _, right) in zip(_blocks(one, 0), _blocks(other, 0), strict=True):
        if not (np.array_equal(left.indices, right.indices) and np.array_equal(left.data, right.data)):
            raise _differs(one, other, f"counts in rows {start}:{stop}")
        progress(stop - start)


def _require_same_obs(one: CellStore, other: CellStore) -> None:
    left, right = one.obs(arrow_names=True), other.obs(arrow_names=True)
    if not left.index.equals(right.index):
        raise _differs(one, other, "the name of some cell")
    for name in left.columns.intersection(right.columns):
        a, b = (table[name].astype(object).where(table[name].notna(), None) for table in (left, right))
        if not a.equals(b):
            raise _differs(one, other, f"obs column {name!r}")


def _blocks(store: CellStore, first: int) -> Iterator[tuple[int, int, CsrBlock]]:
    buffer = CsrBuffer()
    for start, stop in bounded_cuts(store.indptr, _ROWS_TOGETHER, first, store.n_obs):
        yield start, stop, store.read_ranges(np.array([[start, stop]]), buffer)


def _differs(one: CellStore, other: CellStore, what: str) -> DataError:
    return DataError(f"{other.uri} is not equal to {one.uri}: {what} differs")
