"""Highly variable genes, equal to `scanpy.pp.highly_variable_genes(flavor="seurat", n_top_genes=...)`.

The dispersion (variance / mean) of the amounts, which are the normalized counts BEFORE the logarithm, is standardized
within 20 bins of the mean.  Source: Satija et al. 2015; Wolf et al. 2018.
Shapes: n cells, g genes, z non-zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

NUM_BINS = 20
_NO_MEAN = 1e-12


def amount_sums(block: CsrBlock, scales_n: NDArray[np.float64] | None, num_genes: int) -> NDArray[np.float64]:
    """(2, g) sums over the block's cells: amounts and their squares.

    Parameters
    ----------
    block
        Counts, or log-normalized values if there are no scales.
    scales_n
        What a cell's counts are multiplied by; None undoes the logarithm instead.
    """
    values = block.data.astype(np.float64)
    if scales_n is None:
        np.expm1(values, out=values)
    else:
        values *= np.repeat(scales_n, np.diff(block.indptr))
    return np.stack([np.bincount(block.indices, weights, num_genes) for weights in (values, values * values)])


def amount_moments(sums_2g: NDArray[np.float64], num_cells: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(g,) mean and (g,) variance (ddof 1) of the amounts, from sums over all cells."""
    mean_g, square_g = sums_2g / num_cells
    variance_g = np.maximum(square_g - mean_g**2, 0.0) * (num_cells / max(num_cells - 1, 1))
    return mean_g, variance_g


def dispersion_scores(mean_g: NDArray[np.float64], variance_g: NDArray[np.float64]) -> NDArray[np.float64]:
    """(g,) standardized dispersions; NaN for a gene that does not vary.

    The only gene of a bin gets 1, as in Seurat.
    """
    mean_g = np.where(mean_g == 0, _NO_MEAN, mean_g)
    dispersion_g = variance_g / mean_g
    with np.errstate(divide="ignore"):
        dispersion_g = np.where(dispersion_g > 0, np.log(dispersion_g), np.nan)
    bins = pd.cut(pd.Series(np.log1p(mean_g)), bins=NUM_BINS)
    of_bin = pd.Series(dispersion_g).groupby(bins, observed=True)
    centre_g, spread_g = of_bin.transform("mean"), of_bin.transform("std")
    alone = spread_g.isna()
    spread_g, centre_g = spread_g.where(~alone, centre_g), centre_g.where(~alone, 0.0)
    scores_g: NDArray[np.float64] = ((dispersion_g - centre_g) / spread_g).to_numpy(np.float64)
    return scores_g


def highly_variable(
    mean_g: NDArray[np.float64], variance_g: NDArray[np.float64], measured_g: NDArray[np.bool_], num_top: int
) -> NDArray[np.int64]:
    """Ascending indices of the genes with the highest scores; ties at the last place are all taken.

    Parameters
    ----------
    mean_g, variance_g
        Of the amounts; see `amount_moments`.
    measured_g
        The genes to choose from: those that every source measured.
    num_top
        How many; all that vary if there are fewer.

    Raises
    ------
    DataError
        If no gene varies.
    """
    chosen = np.flatnonzero(measured_g)
    if not (variance_g[chosen] > 0).any():
        raise DataError(
            f"none of the {len(chosen)} genes that all sources measured varies between cells; "
            "ingest with other --genes, or leave out the source that measured other genes"
        )
    scores = dispersion_scores(mean_g[chosen], variance_g[chosen])
    ranked = np.sort(scores[~np.isnan(scores)])[::-1]
    best = np.nan_to_num(scores, nan=-np.inf) >= ranked[min(num_top, len(ranked)) - 1]
    found: NDArray[np.int64] = chosen[best]
    return found
