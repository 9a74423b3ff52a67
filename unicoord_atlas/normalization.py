"""Normalization of an atlas: computed once, frozen, applied to every query as it is.

    x = log1p(target_sum * count / size_factor)

with scanpy's exact meaning of ``normalize_total(target_sum=1e4, exclude_highly_expressed=True)`` and ``log1p``:
a cell's size factor is the sum of its counts over the genes that are highly expressed in no cell of the atlas.
A size factor of 0 leaves the cell's counts unscaled, as scanpy does.
Shapes: n cells, g genes, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .batch import MiniBatch

InputKind = Literal["counts", "lognorm"]
HELD: dict[InputKind, str] = {"counts": "counts", "lognorm": "log-normalized values"}
"""What a matrix of each kind holds, in words."""
TARGET_SUM = 1e4
MAX_FRACTION = 0.05


@dataclass(frozen=True, slots=True)
class Normalization:
    """The frozen facts of an atlas's normalization, one entry a gene."""

    highly_expressed_g: NDArray[np.bool_]
    """Left out of size factors: over `max_fraction` of a cell's counts in at least `min_cells` cells."""
    mean_fraction_g: NDArray[np.float64]
    """Mean over cells of count / size factor (0 for cells without counts): the mean profile; sums to 1 over the
    genes that are not highly expressed (if every cell has counts in them)."""
    mean_g: NDArray[np.float64]
    """Mean of the log-normalized values over all cells."""
    variance_g: NDArray[np.float64]
    """Variance (ddof 0) of the log-normalized values over all cells."""
    target_sum: float = TARGET_SUM
    max_fraction: float = MAX_FRACTION
    min_cells: int = 1
    log_input: bool = False
    """The store holds log-normalized values already: they are taken as they are."""

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.highly_expressed_g, self.mean_fraction_g, self.mean_g, self.variance_g)}
        if len(shapes) != 1:
            raise DataError(f"normalization: arrays of different lengths {sorted(shapes)}; the store is damaged")

    @property
    def input(self) -> InputKind:
        """What cells have to hold for this: raw counts, or log-normalized values if the atlas held such."""
        return "lognorm" if self.log_input else "counts"

    def subset(self, genes: NDArray[np.int64]) -> Normalization:
        """The facts of these genes only; size factors keep their meaning over all genes."""
        return Normalization(
            self.highly_expressed_g[genes],
            self.mean_fraction_g[genes],
            self.mean_g[genes],
            self.variance_g[genes],
            self.target_sum,
            self.max_fraction,
            self.min_cells,
            self.log_input,
        )

    def query_size_factors(
        self, sums_over_kept_n: NDArray[np.float64], measured_g: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Size factors of query cells whose source measured only some of the atlas's genes.

        Parameters
        ----------
        sums_over_kept_n
            Each cell's counts over the atlas genes that are measured and not highly expressed.
        measured_g
            Which atlas genes the query has.

        Returns
        -------
        (n,): the sum divided by the share of the mean profile that those genes carry (1 at full coverage).

        Raises
        ------
        DataError
            If the measured genes carry nothing of the mean profile.
        """
        share = self.profile_share(measured_g)
        if not share > 0:
            raise DataError("the query's genes carry none of the reference's mean profile; are the gene ids right?")
        size_factors: NDArray[np.float64] = sums_over_kept_n / share
        return size_factors

    @property
    def profile_g(self) -> NDArray[np.float64]:
        """(g,) the mean profile over the genes that size factors are made of, 0 elsewhere."""
        return np.where(self.highly_expressed_g, 0.0, self.mean_fraction_g)

    def profile_share(self, measured_g: NDArray[np.bool_]) -> float:
        """Share of the mean profile that these genes carry."""
        return float(self.profile_g[measured_g].sum() / self.profile_g.sum())

    def shares_of(self, batch: MiniBatch) -> NDArray[np.float64] | None:
        """(n,) the same of the genes that each cell's source measured; None if the minibatch does not say which."""
        if batch.measured_sg is None:
            return None
        of_source = np.array([self.profile_share(measured_g) for measured_g in batch.measured_sg.cpu().numpy()])
        found_n: NDArray[np.float64] = of_source[batch.sources_n.cpu().numpy()]
        return found_n

    def kept_sums(
        self, indptr: NDArray[np.int64], indices: NDArray[np.integer], data: NDArray[np.number]
    ) -> NDArray[np.float64]:
        """(n,): each row's sum over the genes that are not highly expressed; rows in this atlas's gene space."""
        if self.highly_expressed_g.any():
            data = np.where(self.highly_expressed_g.take(indices), 0.0, data)
        return row_sums(indptr, data)


def row_sums(indptr: NDArray[np.int64], data: NDArray[np.number]) -> NDArray[np.float64]:
    """(n,) float64 sum of each CSR row; an empty row sums to 0."""
    filled_n = indptr[1:] > indptr[:-1]
    sums = np.zeros(len(filled_n))
    sums[filled_n] = np.add.reduceat(data, indptr[:-1][filled_n], dtype=np.float64)
    return sums
