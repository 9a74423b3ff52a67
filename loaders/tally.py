"""What the second pass adds up beside writing: size factors of cells, moments of genes.

Sums are taken block by block within a shard, then shard by shard, always the same blocks in the same order: whoever
does which shard, and whether in one go, the result is the same to the byte.
Shapes: n cells, g genes, z non-zeros.
"""

from __future__ import annotations

import secrets
import zipfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from unicoord_atlas.errors import DataError
from unicoord_atlas.normalization import Normalization, row_sums

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray
    from scipy.sparse import csc_array

    from unicoord_atlas.csr_block import CsrBlock


@dataclass(frozen=True, slots=True)
class BlockSums:
    """What a block of cells, or all those of a shard, contribute."""

    size_factors_n: NDArray[np.float64]
    """(n,); 0 for every cell of log-normalized input, which is left unscaled."""
    moments_3g: NDArray[np.float64]
    """(3, g) sums over cells: fraction of the size factor, log-normalized value, its square."""

    @classmethod
    def load(cls, path: Path) -> BlockSums | None:
        """What `save` wrote; None if nothing whole is there."""
        try:
            with np.load(path) as saved:
                return cls(saved["size_factors_n"], saved["moments_3g"])
        except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return None

    def save(self, path: Path) -> None:
        """Write a file that is there whole or not at all."""
        partial = path.with_suffix(f".{secrets.token_hex(4)}.partial")
        with partial.open("wb") as file:
            np.savez(file, size_factors_n=self.size_factors_n, moments_3g=self.moments_3g)
        partial.replace(path)


class Tally:
    """Adds up blocks, in the order given."""

    def __init__(self, num_genes: int) -> None:
        self._size_factors: list[NDArray[np.float64]] = [np.zeros(0)]
        self._moments_3g = np.zeros((3, num_genes))

    def add(self, sums: BlockSums) -> None:
        """Add the next block."""
        self._size_factors.append(sums.size_factors_n)
        self._moments_3g += sums.moments_3g

    def sums(self) -> BlockSums:
        """All that was added."""
        return BlockSums(np.concatenate(self._size_factors), self._moments_3g)


def join_sums(paths: Iterable[Path], num_rows: int, frozen: Normalization) -> tuple[Normalization, NDArray[np.float64]]:
    """The atlas's normalization and size factors from the saved sums of all cells; `frozen` says how it was done."""
    tally = Tally(len(frozen.highly_expressed_g))
    for path in paths:
        sums = BlockSums.load(path)
        if sums is None:
            raise DataError(f"{path} was not written, or was removed meanwhile; give the same command again")
        tally.add(sums)
    total = tally.sums()
    size_factors_n = total.size_factors_n if len(total.size_factors_n) else np.zeros(num_rows)  # no cell has counts
    fraction_g, mean_g, square_g = total.moments_3g / max(1, num_rows)
    normalization = replace(
        frozen, mean_fraction_g=fraction_g, mean_g=mean_g, variance_g=np.maximum(square_g - mean_g**2, 0.0)
    )
    return normalization, size_factors_n


def unfinished_normalization(highly_expressed_g: NDArray[np.bool_], min_cells: int, log_input: bool) -> Normalization:
    """How cells are normalized, before the moments of the genes are known."""
    zeros_g = np.zeros(len(highly_expressed_g))
    return Normalization(highly_expressed_g, zeros_g, zeros_g, zeros_g, min_cells=min_cells, log_input=log_input)


def block_sums(block: CsrBlock, frozen: Normalization) -> BlockSums:
    """Size factors and moments of a block in the atlas's genes, in float64."""
    entries_n = np.diff(block.indptr)
    values = block.data.astype(np.float64)
    if frozen.log_input:
        size_factors_n = np.zeros(block.num_rows)
        amounts = np.expm1(values)
        depths_n = row_sums(block.indptr, amounts)
    else:
        size_factors_n = depths_n = frozen.kept_sums(block.indptr, block.indices, values)
        amounts = values
    one_over_n = np.divide(1.0, depths_n, out=np.zeros_like(depths_n), where=depths_n > 0)
    num_genes = len(frozen.highly_expressed_g)
    fraction_g = _by_gene(block, amounts, num_genes) @ one_over_n
    if not frozen.log_input:
        # log(1 + x) is vectorized where log1p is not; x is 0 or far over 1e-16
        scales_n = np.where(depths_n > 0, frozen.target_sum * one_over_n, 1.0)
        values *= np.repeat(scales_n, entries_n)
        values += 1.0
        np.log(values, out=values)
    ones_n = np.ones(block.num_rows)
    mean_g = _by_gene(block, values, num_genes) @ ones_n
    np.square(values, out=values)
    return BlockSums(size_factors_n, np.stack([fraction_g, mean_g, _by_gene(block, values, num_genes) @ ones_n]))


def _by_gene(block: CsrBlock, values: NDArray[np.float64], num_genes: int) -> csc_array:
    # Its product with a vector adds in half the time of np.bincount, and lets other threads run.
    indices, indptr = (part.astype(np.int32, copy=False) for part in (block.indices, block.indptr))
    return csr_array((values, indices, indptr), shape=(block.num_rows, num_genes)).T
