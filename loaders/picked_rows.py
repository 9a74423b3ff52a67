"""A few rows of a source, by their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from unicoord_atlas.csr_block import CsrBlock

    from .query_cells import OpenCells


class PickedRows:
    """Some cells of a source in the order asked for; see `query.Cells`."""

    def __init__(self, source: OpenCells, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows
        self.path = source.path
        self.var: pd.DataFrame = source.var
        self.n_obs = len(rows)
        self.panels = None if source.panels is None else source.panels.of(rows)

    def blocks(self, rows_per_block: int) -> Iterator[CsrBlock]:
        """Blocks of rows, wherever they lie."""
        for start in range(0, self.n_obs, rows_per_block):
            yield self._source.take(self._rows[start : start + rows_per_block])
