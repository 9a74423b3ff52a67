"""Scores of gene sets in cells, as sums over genes.

A method gives each gene of each cell a value, and

    score = (sum of the values of the set's genes - offset of the set) * factor of the set.

So scores = W S, one sparse product, whatever the method.  Every cell is scored by itself, and its genes are added in
one order: how cells are cut into blocks changes nothing.
Shapes: n cells, g genes, s sets, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

    from .gmt import PresentSet

Method = Literal["aucell", "mean_z"]
BLOCK = 128
"""Cells whose values are dense together."""


class CellValues(Protocol):
    """A method of scoring."""

    @property
    def range(self) -> tuple[float, float]:
        """Where scores lie, or where their histograms begin and end."""
        ...

    @property
    def needs_keys(self) -> bool:
        """Whether it asks for a number that tells cells apart."""
        ...

    def values(
        self, block: CsrBlock, scales_n: NDArray[np.float64] | None, keys_n: NDArray[np.uint64] | None
    ) -> sp.csr_matrix:
        """(n, g) float32 value of each gene in each cell; what is not stored is 0."""
        ...

    def offset(self, members: NDArray[np.int64]) -> float:
        """What is taken from the sum over a set's genes."""
        ...

    def factor(self, members: NDArray[np.int64]) -> float:
        """What the rest is multiplied by."""
        ...


@dataclass(frozen=True)
class SetSums:
    """Sets ready for a product with cells' values: only genes that are in some set are looked at."""

    genes: NDArray[np.int64]
    """(u,) those genes, ascending."""
    sets_su: sp.csr_matrix
    """1 where a gene is in a set."""
    offset_s: NDArray[np.float32]
    factor_s: NDArray[np.float32]

    @classmethod
    def of(cls, members: Sequence[NDArray[np.int64]], method: CellValues) -> SetSums:
        """Sets by their members' indices."""
        flat = np.concatenate(members)
        genes, columns = np.unique(flat, return_inverse=True)
        indptr = np.concatenate([[0], np.cumsum([len(m) for m in members])])
        ones = np.ones(len(flat), np.float32)
        sets_su = sp.csr_matrix((ones, columns.astype(np.int32), indptr), (len(members), len(genes)))
        offset_s, factor_s = ([of(m) for m in members] for of in (method.offset, method.factor))
        return cls(genes, sets_su, np.array(offset_s, np.float32), np.array(factor_s, np.float32))

    def scores(self, values_ng: sp.csr_matrix) -> NDArray[np.float32]:
        """(n, s) scores of cells from their values."""
        place_g = np.full(values_ng.shape[1], -1, np.int32)
        place_g[self.genes] = np.arange(len(self.genes), dtype=np.int32)
        scores_ns = np.empty((values_ng.shape[0], len(self.factor_s)), np.float32)
        for start in range(0, len(scores_ns), BLOCK):
            block = values_ng[start : start + BLOCK]
            places = place_g[block.indices]
            kept = places >= 0
            row_z = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
            dense_un = np.zeros((len(self.genes), block.shape[0]), np.float32)
            dense_un[places[kept], row_z[kept]] = block.data[kept]
            sums_sn = self.sets_su @ dense_un
            scores_ns[start : start + BLOCK] = ((sums_sn - self.offset_s[:, None]) * self.factor_s[:, None]).T
        return scores_ns


def present_sums(sets: Sequence[PresentSet], method: CellValues) -> SetSums:
    """Sets of an atlas, ready for the product."""
    return SetSums.of([s.members for s in sets], method)
