"""Principal components from one pass over the cells: sums of products of the chosen genes.

Values are centred by a mean known beforehand, so that float32 products lose nothing; what is left of the mean is taken
off at the end.  Shapes: n cells, g chosen genes, d components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of the log-normalized values of some genes."""

    mean_g: NDArray[np.float64]
    loadings_gd: NDArray[np.float64]
    """Orthonormal columns; the largest entry of each is positive, as scikit-learn has it."""
    variance_d: NDArray[np.float64]
    """Explained variance (ddof 1), descending."""
    total_variance: float

    def project(self, values_ng: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, d) scores of cells."""
        scores: NDArray[np.float32] = values_ng @ self.loadings_gd.astype(np.float32)
        return scores - (self.mean_g @ self.loadings_gd).astype(np.float32)


class ProductSums:
    """Sums over cells of centred values and of their products."""

    def __init__(self, num_genes: int) -> None:
        self.sums_g = np.zeros(num_genes)
        self._products_gg = np.zeros((num_genes, num_genes), np.float32, order="F")

    def add(self, centred_ng: NDArray[np.float32]) -> None:
        """Add cells, as C-ordered rows."""
        self.sums_g += centred_ng.sum(axis=0, dtype=np.float64)
        self._products_gg = scipy.linalg.blas.ssyrk(
            1.0, centred_ng.T, beta=1.0, c=self._products_gg, overwrite_c=1, lower=0
        )

    @property
    def products_gg(self) -> NDArray[np.float32]:
        """(g, g); only the upper triangle is filled."""
        return self._products_gg


def principal_components(
    sums_g: NDArray[np.float64],
    products_gg: NDArray[np.float64],
    centre_g: NDArray[np.float64],
    num_cells: int,
    num_components: int,
) -> Components:
    """Components of all cells.

    Parameters
    ----------
    sums_g, products_gg
        Sums of the values less `centre_g`, and of their products (upper triangle).
    num_components
        At most; there are never more than genes, nor than cells less one.

    Raises
    ------
    DataError
        If all cells are alike.
    """
    offset_g = sums_g / num_cells
    covariance_gg = (products_gg - num_cells * np.outer(offset_g, offset_g)) / max(num_cells - 1, 1)
    total = float(np.trace(covariance_gg))
    num_genes = len(sums_g)
    count = min(num_components, num_genes, num_cells - 1)
    if count < 1 or not total > 0:
        raise DataError(f"all {num_cells} cells are alike in the {num_genes} chosen genes; there are no components")
    values, vectors = scipy.linalg.eigh(
        covariance_gg, lower=False, subset_by_index=(num_genes - count, num_genes - 1), check_finite=False
    )
    variance_d, loadings_gd = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    largest_d = loadings_gd[np.abs(loadings_gd).argmax(axis=0), np.arange(count)]
    return Components(centre_g + offset_g, loadings_gd * np.sign(largest_d), variance_d, total)
