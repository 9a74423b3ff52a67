"""Weights of a graph of neighbours as UMAP defines them.

Cell i is as near to its neighbour j as exp(-(d_ij - rho_i) / sigma_i), where rho_i is the distance to its nearest other
cell and sigma_i makes the weights sum to log2(k + 1); then w = a + b - a b joins the two directions.
Equal to `umap.umap_.fuzzy_simplicial_set`, which counts the cell itself as one of k + 1 neighbours.
Source: McInnes et al. 2018, "UMAP", section 3.1 and algorithm 3.  Shapes: n cells, k neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

_STEPS = 64
_TOLERANCE = 1e-5
_LEAST_SHARE = 1e-3
"""Of the mean distance: sigma is never below it."""


def membership(distances_nk: NDArray[np.float32], mean_distance: float) -> NDArray[np.float32]:
    """(n, k) weights of each cell's neighbours, in (0, 1].

    Parameters
    ----------
    distances_nk
        Ascending within rows, the cell itself left out.
    mean_distance
        Over all cells of the atlas, each with itself at distance 0 as a further neighbour.
    """
    k = distances_nk.shape[1]
    positive_nk = np.where(distances_nk > 0, distances_nk, np.inf)
    rho_n = positive_nk.min(axis=1)
    rho_n = np.where(np.isinf(rho_n), 0, rho_n).astype(np.float32)
    excess_nk = np.maximum(distances_nk - rho_n[:, None], 0).astype(np.float64)
    sigma_n = _sigmas(excess_nk, np.log2(k + 1))
    own_mean_n = distances_nk.sum(axis=1, dtype=np.float64) / (k + 1)
    least_n = _LEAST_SHARE * np.where(rho_n > 0, own_mean_n, mean_distance)
    sigma_n = np.maximum(sigma_n, least_n)
    weights_nk = np.exp(-np.divide(excess_nk, sigma_n[:, None], out=np.zeros_like(excess_nk), where=excess_nk > 0))
    found_nk: NDArray[np.float32] = weights_nk.astype(np.float32)
    return found_nk


def _sigmas(excess_nk: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """(n,) by bisection; a cell is done when its weights sum to the target within the tolerance."""
    low_n, high_n = np.zeros(len(excess_nk)), np.full(len(excess_nk), np.inf)
    sigma_n = np.ones(len(excess_nk))
    left = np.arange(len(excess_nk))
    for _ in range(_STEPS):
        sums = np.exp(-excess_nk[left] / sigma_n[left, None]).sum(axis=1)
        open_ = np.abs(sums - target) >= _TOLERANCE
        left, sums = left[open_], sums[open_]
        if not len(left):
            break
        above = sums > target
        high_n[left[above]] = sigma_n[left[above]]
        low_n[left[~above]] = sigma_n[left[~above]]
        middle = (low_n[left] + high_n[left]) / 2
        sigma_n[left] = np.where(np.isinf(middle), sigma_n[left] * 2, middle)
    return sigma_n


def joined(weights: sp.csr_matrix, turned: sp.csr_matrix) -> sp.csr_matrix:
    """Rows of the symmetric weights a + b - a b, from the same rows of the weights and of their transpose."""
    both = weights + turned - weights.multiply(turned)
    both.eliminate_zeros()
    both.sort_indices()
    return both
