"""An AnnData in memory as a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .csr_block import CsrBlock
from .errors import DataError
from .normalization import HELD

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata
    import pandas as pd

    from .normalization import InputKind


class AnnDataCells:
    """Counts, or log-normalized values, of an AnnData in blocks of rows; see `query.Cells`."""

    path = "the AnnData given"
    panels = None

    def __init__(self, adata: anndata.AnnData, layer: str | None = None, input: InputKind = "counts") -> None:
        """Take X, or a layer; DataError if it does not hold `input`."""
        matrix = adata.X if layer is None else adata.layers[layer]
        if matrix is None:
            raise DataError(f"the AnnData given has no X; name the layer that holds {HELD[input]}")
        self._rows = sp.csr_matrix(matrix)
        values = self._rows.data
        if len(values) and not (
            np.isfinite(values).all() and values.min() >= 0 and (values == np.rint(values)).all() == (input == "counts")
        ):
            name = "X" if layer is None else f"layers[{layer!r}]"
            raise DataError(f"{name} of the AnnData given holds no {HELD[input]}; name the layer that does")
        self.var: pd.DataFrame = adata.var
        self.n_obs: int = adata.n_obs

    def blocks(self, rows_per_block: int) -> Iterator[CsrBlock]:
        """Blocks of consecutive rows."""
        for start in range(0, self.n_obs, rows_per_block):
            part = self._rows[start : start + rows_per_block]
            yield CsrBlock(part.indptr.astype(np.int64), part.indices, part.data)
