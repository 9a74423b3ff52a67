"""AUCell: how early the genes of a set come in a cell's ranking.  Source: Aibar et al. 2017, "SCENIC", Methods.

With genes ranked from 1 by falling expression, and m = max_rank, a gene of rank r weighs max(m - r, 0), and

    AUC(cell, set) = sum of the weights of the set's genes / the most that so many genes can have.

Genes of one expression share the mean weight of their places, which is what breaking ties at random gives on average.
Shapes: n cells, g genes, z non-zeros.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

TOP_SHARE = 0.05
Zeros = Literal["unranked", "random"]


def max_rank(num_genes: int, top_share: float = TOP_SHARE) -> int:
    """The rank that weighs nothing any more: ceil(0.05 g), at least 2."""
    return min(max(int(np.ceil(top_share * num_genes)), 2), max(num_genes, 2))


@dataclass(frozen=True)
class RankWeights:
    """AUCell as values that add up."""

    ranked_g: NDArray[np.bool_]
    """(g,) genes that take part in the ranking."""
    top_share: float = TOP_SHARE
    zeros: Zeros = "unranked"
    """What becomes of genes that were not detected; "random" ranks them behind the others by a hash of cell and gene,
    as the R package does at random."""
    gene_keys_g: NDArray[np.uint64] | None = None
    """(g,) `keys_of` the genes' names, for "random"."""

    @property
    def max_rank(self) -> int:
        """Of the genes that are ranked."""
        return max_rank(int(self.ranked_g.sum()), self.top_share)

    @property
    def range(self) -> tuple[float, float]:
        """An AUC lies between 0 and 1."""
        return 0.0, 1.0

    @property
    def needs_keys(self) -> bool:
        """A hash of the cell is needed to rank what it does not show."""
        return self.zeros == "random"

    def offset(self, members: NDArray[np.int64]) -> float:
        """No set begins anywhere but at 0."""
        return 0.0

    def factor(self, members: NDArray[np.int64]) -> float:
        """1 / the weight of a set that comes first."""
        return 1.0 / float(weight_of_first(np.array([len(members)]), self.max_rank)[0])

    def values(
        self, block: CsrBlock, scales_n: NDArray[np.float64] | None, keys_n: NDArray[np.uint64] | None
    ) -> sp.csr_matrix:
        """(n, g) weights; scaling a cell changes no rank, so counts are ranked as they are."""
        kept = self.ranked_g[block.indices] & (block.data > 0)
        indptr = np.concatenate([[0], np.cumsum(kept)])[block.indptr]
        indices, data = block.indices[kept].astype(np.int32), block.data[kept]
        weights_z = tie_weights(indptr, data, self.max_rank)
        shape = (block.num_rows, len(self.ranked_g))
        detected = sp.csr_matrix((weights_z, indices, indptr), shape)
        if self.zeros == "unranked":
            return detected
        assert keys_n is not None and self.gene_keys_g is not None
        return sp.vstack([self._with_zeros(detected[i], keys_n[i]) for i in range(block.num_rows)], format="csr")

    def _with_zeros(self, row: sp.csr_matrix, key: np.uint64) -> sp.csr_matrix:
        """A cell's weights with those of the genes that it does not show, in the order of their hashes."""
        left = max(self.max_rank - 1 - row.nnz, 0)
        undetected_g = self.ranked_g.copy()
        undetected_g[row.indices] = False
        genes = np.flatnonzero(undetected_g)
        assert self.gene_keys_g is not None
        order = np.argsort(mixed(self.gene_keys_g[genes] ^ key), kind="stable")[:left]
        weights = (self.max_rank - 1 - row.nnz - np.arange(len(order))).astype(np.float32)
        indices = np.concatenate([row.indices, genes[order].astype(np.int32)])
        return sp.csr_matrix((np.concatenate([row.data, weights]), indices, [0, len(indices)]), row.shape)


def weight_of_first(places: NDArray[np.int64], rank: int) -> NDArray[np.float64]:
    """Sum of max(rank - r, 0) over r = 1 .. places."""
    inside = np.minimum(places, rank - 1).astype(np.float64)
    result: NDArray[np.float64] = inside * rank - inside * (inside + 1) / 2
    return result


def tie_weights(indptr: NDArray[np.int64], data: NDArray[np.number], rank: int) -> NDArray[np.float32]:
    """(z,) weight of each entry within its row: the mean of max(rank - r, 0) over the places r of its tie."""
    # Counts of molecules are mostly low: a table of rows x low counts is at most a quarter as large as the block.
    highest = len(data) // max(4 * (len(indptr) - 1), 1)
    if data.dtype.kind == "f" or not highest:
        return _by_sorting(indptr, data, rank)
    is_high = data > highest
    high_before = np.concatenate([[0], np.cumsum(is_high)])
    if 2 * high_before[-1] > len(data):
        return _by_sorting(indptr, data, rank)
    high_ptr, weights = high_before[indptr], np.empty(len(data), np.float32)
    weights[is_high] = _by_sorting(high_ptr, data[is_high], rank)
    weights[~is_high] = _by_counting(indptr - high_ptr, data[~is_high], rank, np.diff(high_ptr))
    return weights


def _by_counting(
    indptr: NDArray[np.int64], data: NDArray[np.number], rank: int, before_n: NDArray[np.int64]
) -> NDArray[np.float32]:
    """From how many entries of each row have each value, behind so many others: a third of the time of sorting."""
    held = np.bincount(data) > 0
    num_values, num_rows = int(held.sum()), len(indptr) - 1
    place = num_values - np.cumsum(held)  # from the highest value down
    at_z = np.repeat(np.arange(num_rows) * num_values, np.diff(indptr)) + place[data]
    ties = np.bincount(at_z, minlength=num_rows * num_values).reshape(num_rows, num_values)
    stops = before_n[:, None] + ties.cumsum(axis=1)
    total = weight_of_first(stops, rank) - weight_of_first(stops - ties, rank)
    weights: NDArray[np.float32] = (total / np.maximum(ties, 1)).astype(np.float32).ravel()[at_z]
    return weights


def _by_sorting(indptr: NDArray[np.int64], data: NDArray[np.number], rank: int) -> NDArray[np.float32]:
    if not len(data):
        return np.zeros(0, np.float32)
    num_rows = len(indptr) - 1
    row_z = np.repeat(np.arange(num_rows, dtype=np.uint16 if num_rows < 1 << 16 else np.int64), np.diff(indptr))
    # Integers of 16 bits and fewer are sorted by radix.  A float is negated: its distance from the largest of the block
    # is rounded, and with that the order of near values would depend on the block.
    falling = -data if data.dtype.kind == "f" else data.max() - data
    order = np.argsort(falling, kind="stable")
    order = order[np.argsort(row_z[order], kind="stable")]
    row_z, data = row_z[order], data[order]
    first = np.concatenate([[True], (row_z[1:] != row_z[:-1]) | (data[1:] != data[:-1])])
    starts = np.flatnonzero(first)
    stops = np.append(starts[1:], len(data))
    before = indptr[row_z[starts].astype(np.int64)]
    total = weight_of_first(stops - before, rank) - weight_of_first(starts - before, rank)
    weights = np.empty(len(data), np.float32)
    weights[order] = np.repeat(total / (stops - starts), stops - starts)
    return weights


def keys_of(names: Iterable[str]) -> NDArray[np.uint64]:
    """A number for each name, the same on every machine."""
    digests = b"".join(hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys whose bits all depend on each other: the end of splitmix64 (Steele et al. 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
