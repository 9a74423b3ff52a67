"""A few rows of a source, by their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.csr_block import CsrBlock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from .sources import CellSource


class PickedRows:
    """Some cells of a source in the order asked for; see `query.Cells`."""

    def __init__(self, source: CellSource, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows
        self.path: Path = source.path
        self.var: pd.DataFrame = source.var
        self.n_obs = len(rows)

    def blocks(self, rows_per_block: int) -> Iterator[CsrBlock]:
        """Blocks of rows, each read by itself: they may lie anywhere."""
        for start in range(0, self.n_obs, rows_per_block):
            parts = [self._source.read(row, row + 1) for row in self._rows[start : start + rows_per_block]]
            indptr = np.cumsum([0, *(part.indptr[-1] for part in parts)], dtype=np.int64)
            indices, data = (np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "data"))
            yield CsrBlock(indptr, indices, data)
