"""A few rows of a source, by their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from unicoord_atlas.batch import CsrBlock

    from .sources import CellSource


class PickedRows:
    """Some cells of a source in the order asked for, each read by itself; see `query.Cells`."""

    def __init__(self, source: CellSource, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows
        self.path: Path = source.path
        self.var: pd.DataFrame = source.var
        self.n_obs = len(rows)

    def blocks(self, rows_per_block: int) -> Iterator[CsrBlock]:
        """Each row as a block."""
        for row in self._rows:
            yield self._source.read(row, row + 1)
