"""Mean z-score: the mean over a set's genes of (x - mean) / sd, by the atlas's frozen normalization.

Shapes: n cells, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock
    from unicoord_atlas.normalization import Normalization


@dataclass(frozen=True)
class StandardValues:
    """z-scores as values that add up: x / sd here, and the mean / sd of a set's genes as its offset."""

    mean_g: NDArray[np.float64]
    inverse_sd_g: NDArray[np.float64]
    """0 for a gene that does not vary."""

    @classmethod
    def of(cls, normalization: Normalization) -> StandardValues:
        """By the means and variances of the log-normalized values over the whole atlas."""
        sd_g = np.sqrt(normalization.variance_g)
        return cls(normalization.mean_g, np.divide(1.0, sd_g, out=np.zeros_like(sd_g), where=sd_g > 0))

    @property
    def range(self) -> tuple[float, float]:
        """Where histograms begin and end; the few scores beyond count at the ends."""
        return -1.0, 1.0

    @property
    def needs_keys(self) -> bool:
        """No name of a cell is asked for."""
        return False

    def offset(self, members: NDArray[np.int64]) -> float:
        """Sum of mean / sd."""
        return float((self.mean_g[members] * self.inverse_sd_g[members]).sum())

    def factor(self, members: NDArray[np.int64]) -> float:
        """1 / number of genes."""
        return 1.0 / len(members)

    def values(
        self, block: CsrBlock, scales_n: NDArray[np.float64] | None, keys_n: NDArray[np.uint64] | None
    ) -> sp.csr_matrix:
        """(n, g) x / sd; no scales for input that is log-normalized already."""
        x_z = block.data.astype(np.float64)
        if scales_n is not None:
            x_z = np.log1p(x_z * np.repeat(scales_n, np.diff(block.indptr)))
        values_z = (x_z * self.inverse_sd_g[block.indices]).astype(np.float32)
        return sp.csr_matrix(
            (values_z, block.indices.astype(np.int32), block.indptr), (block.num_rows, len(self.mean_g))
        )
