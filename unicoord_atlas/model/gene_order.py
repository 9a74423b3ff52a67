"""The non-zeros of a minibatch by gene, and tiles of consecutive genes: what the first and the last layer work on.

Shapes: n cells, g genes, t genes of a tile, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unicoord_atlas.batch import SparseRows


def tile_size(device: torch.device, num_cells: int) -> int:
    """Genes a tile: cells and weights of one stay in a core's cache on CPU, one fills the device elsewhere."""
    on_cpu = device.type == "cpu"
    fits = max(2048, (2**20 if on_cpu else 2**25) // max(num_cells, 1) // 256 * 256)
    return min(fits, 4096) if on_cpu else fits


@dataclass(frozen=True, slots=True)
class HostCopy:
    """A small tensor on its way from the device: asked for early, so that nobody waits where it is read."""

    copy: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, values: Tensor) -> HostCopy:
        """Begin to copy; on CPU it is the tensor itself."""
        if values.device.type != "cuda":
            return cls(values, None)
        copy, arrived = values.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(values.device))
        return cls(copy, arrived)

    def read(self) -> Tensor:
        """The values, once they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.copy


@dataclass(frozen=True, slots=True)
class GeneTile:
    """Some consecutive genes of a minibatch, and which of its entries are theirs."""

    genes: slice
    entries: slice
    """In gene order."""
    rows_z: Tensor
    """(z,) int32: cell of each of these entries."""
    at_z: Tensor
    """(z,) int64, ascending: place of each in the (t, n) matrix of the tile, flat."""

    def dense(self, values_z: Tensor, num_rows: int) -> Tensor:
        """(t, n) of the minibatch's values in gene order."""
        dense_tn = values_z.new_zeros((self.genes.stop - self.genes.start, num_rows))
        dense_tn.view(-1).index_copy_(0, self.at_z, values_z[self.entries])
        return dense_tn


@dataclass(frozen=True, slots=True)
class GeneOrder:
    """The non-zeros of a minibatch sorted by gene: a CSC view of the same entries."""

    entries_z: Tensor
    """(z,) int64: position in the CSR order of each entry."""
    rows_z: Tensor
    """(z,) int32: cell of each entry."""
    genes_z: Tensor
    """(z,) int32, ascending."""
    gene_ptr: Tensor
    """(g + 1,) int64: gene j holds the entries gene_ptr[j]:gene_ptr[j + 1]."""
    host_gene_ptr: HostCopy
    """The same where tiles of genes are cut."""
    num_rows: int

    @classmethod
    def of(cls, rows: SparseRows) -> GeneOrder:
        """Sort once a minibatch; the sparse layer's backward and the decoder's tiles both read it."""
        # A stable radix sort of 16-bit keys takes 4 ms for a million entries, of 64-bit keys ten times that.
        fits = rows.num_genes <= 65_536
        keys = (rows.indices.to(torch.int32) - 32_768).to(torch.int16) if fits else rows.indices
        sorted_keys, entries = torch.sort(keys, stable=True)
        genes = sorted_keys.to(torch.int32)
        genes = genes.add_(32_768) if fits else genes
        gene_ptr = _first_of_each(genes, rows.num_genes)
        rows_z = rows.row_of_entry().to(torch.int32).index_select(0, entries)
        return cls(entries, rows_z, genes, gene_ptr, HostCopy.of(gene_ptr), rows.num_rows)

    def tiles(self, size: int) -> Iterator[GeneTile]:
        """All genes, so many at a time."""
        num_genes, firsts = len(self.gene_ptr) - 1, self.host_gene_ptr.read()[:-1:size].tolist()
        for start, (first, last) in zip(range(0, num_genes, size), pairwise([*firsts, len(self.genes_z)]), strict=True):
            genes, entries = slice(start, min(start + size, num_genes)), slice(first, last)
            rows_z = self.rows_z[entries]
            at_z = (self.genes_z[entries] - start).mul_(self.num_rows).add_(rows_z)  # int32 as far as it reaches
            yield GeneTile(genes, entries, rows_z, at_z.to(torch.int64))


def _first_of_each(genes_z: Tensor, num_genes: int) -> Tensor:
    """(g + 1,) int64: where each gene begins among ascending ones."""
    if genes_z.device.type == "cpu":
        counts_g = torch.bincount(genes_z, minlength=num_genes)
        return torch.cat([counts_g.new_zeros(1), counts_g.cumsum(0)])
    # Elsewhere bincount would make the host wait for the largest gene.
    return torch.searchsorted(genes_z, torch.arange(num_genes + 1, dtype=genes_z.dtype, device=genes_z.device))
