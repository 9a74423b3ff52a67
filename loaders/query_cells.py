"""Cells to map: any input file, or a finished atlas store, which is read by its own, faster reader."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.normalization import HELD
from unicoord_atlas.query import Cells, Panels

from .in_order import in_order
from .object_address import object_address
from .soma_address import is_soma
from .sources import open_source
from .store import CellStore, open_store
from .zarr_layout import SCHEMA, SOURCE, UNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unicoord_atlas.csr_block import CsrBlock

    from .sources import InputKind


class QueryCells(Cells, Protocol):
    """Cells that also say what is known of them."""

    @property
    def obs(self) -> pd.DataFrame:
        """Cells; index = names."""
        ...

    def blocks(self, rows_per_block: int, start: int = 0, stop: int | None = None) -> Iterator[CsrBlock]:
        """Blocks of consecutive rows, of all or of start to stop."""
        ...


class OpenCells(QueryCells, Protocol):
    """Cells of an open file or store, of which any may be read."""

    def take(self, rows: Sequence[int]) -> CsrBlock:
        """These rows, in the order given."""
        ...


class CellRange:
    """Consecutive cells of a query as a query of its own."""

    def __init__(self, cells: QueryCells, start: int, stop: int) -> None:
        self._cells, self._start, self._stop = cells, start, stop
        self.path, self.n_obs = cells.path, stop - start

    @property
    def var(self) -> pd.DataFrame:
        """Genes; index = names."""
        return self._cells.var

    @property
    def obs(self) -> pd.DataFrame:
        """Cells; index = names."""
        return self._cells.obs.iloc[self._start : self._stop]

    @property
    def panels(self) -> Panels | None:
        """Which genes the cells have."""
        panels = self._cells.panels
        return None if panels is None else panels.of(slice(self._start, self._stop))

    def blocks(self, rows_per_block: int, start: int = 0, stop: int | None = None) -> Iterator[CsrBlock]:
        """Blocks of consecutive rows."""
        end = self._stop if stop is None else self._start + stop
        yield from self._cells.blocks(rows_per_block, self._start + start, end)


class StoreCells:
    """A finished atlas store as a query."""

    def __init__(self, store: CellStore) -> None:
        self._store = store
        self.path = Path(store.uri)
        self.n_obs = store.n_obs

    @property
    def var(self) -> pd.DataFrame:
        """Genes; index = names."""
        return self._store.var()

    @property
    def obs(self) -> pd.DataFrame:
        """Cells; index = names."""
        return self._store.obs(arrow_names=True)

    @cached_property
    def panels(self) -> Panels | None:
        """Which genes each source of the atlas measured."""
        measured_sg = self._store.schema.measured_sg()
        if measured_sg.all():
            return None
        names = [source.name for source in self._store.schema.sources]
        codes_n = pd.Categorical(self._store.obs([SOURCE])[SOURCE].astype(str), names).codes
        return Panels(measured_sg, codes_n.astype(np.int32))

    def blocks(self, rows_per_block: int, start: int = 0, stop: int | None = None) -> Iterator[CsrBlock]:
        """Blocks of consecutive rows, the next being read meanwhile."""
        end = self.n_obs if stop is None else stop
        starts = range(start, end, rows_per_block)
        yield from in_order(lambda first: self._read(first, min(first + rows_per_block, end)), starts, 1)

    def take(self, rows: Sequence[int]) -> CsrBlock:
        """These rows, in the order given, read together: in an object store one by one would take long."""
        starts = np.array(rows, np.int64)
        return self._store.read_ranges(np.stack([starts, starts + 1], axis=1))

    def _read(self, start: int, stop: int) -> CsrBlock:
        rows = self._store.read_ranges(np.array([[start, stop]], np.int64))
        return rows


@contextmanager
def open_query(path: Path, layer: str | None = None, input: InputKind = "counts") -> Iterator[OpenCells]:
    """Open whatever `open_source` or `open_store` opens; a store has one matrix, so it takes no layer.

    Raises
    ------
    UsageError
        If a layer of a store is asked for.
    DataError
        If a store does not hold `input`, and as `open_source` and `open_store`.
    """
    if object_address(path) is None and not (is_soma(path) or (path / "uns" / UNS / SCHEMA).exists()):
        with open_source(path, layer, input) as source:
            yield source
        return
    store = open_store(path)
    if layer not in (None, "X"):
        raise UsageError(f"{store.uri}: an atlas has one matrix, X; leave out --layer")
    if input != store.normalization.input:
        raise DataError(
            f"{store.uri}: holds {HELD[store.normalization.input]}, and the reference was learned from {HELD[input]}; "
            "give such cells"
        )
    yield StoreCells(store)
