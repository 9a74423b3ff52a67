"""The encoder's first layer on CSR input, and the gene order that it shares with the fused decoder.

Shapes: n cells, g genes, h hidden units, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from unicoord_atlas.batch import SparseRows


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

    @classmethod
    def of(cls, rows: SparseRows) -> GeneOrder:
        """Sort once a minibatch; the sparse layer's backward and the decoder's tiles both read it."""
        # A stable radix sort of 16-bit keys takes 4 ms for a million entries, of 64-bit keys ten times that.
        fits = rows.num_genes <= 65_536
        keys = (rows.indices.to(torch.int32) - 32_768).to(torch.int16) if fits else rows.indices
        sorted_keys, entries = torch.sort(keys, stable=True)
        genes = sorted_keys.to(torch.int32)
        genes = genes.add_(32_768) if fits else genes
        counts_g = torch.bincount(genes, minlength=rows.num_genes)
        return cls(
            entries,
            rows.row_of_entry().to(torch.int32).index_select(0, entries),
            genes,
            torch.cat([counts_g.new_zeros(1), counts_g.cumsum(0)]),
        )


def bag(table: Tensor, indices: Tensor, ptr: Tensor, values: Tensor) -> Tensor:
    """Row i is the sum over ptr[i]:ptr[i + 1] of values times rows of the table: a CSR times dense product."""
    return F.embedding_bag(
        indices.to(torch.int32),
        table,
        ptr.to(torch.int32),
        mode="sum",
        per_sample_weights=values.to(table.dtype),
        include_last_offset=True,
    )


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_gh: Tensor, rows: SparseRows, order: GeneOrder, dtype: torch.dtype) -> Tensor:
        ctx.rows, ctx.order, ctx.dtype, ctx.weight_dtype = rows, order, dtype, weight_gh.dtype
        return bag(weight_gh.to(dtype), rows.indices, rows.indptr, rows.data).to(weight_gh.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        # The transposed product, gene by gene: the (n, h) table stays in cache and each gradient row is written once.
        order: GeneOrder = ctx.order
        values_z = ctx.rows.data.index_select(0, order.entries_z)
        grad_gh = bag(grads[0].to(ctx.dtype), order.rows_z, order.gene_ptr, values_z)
        return grad_gh.to(ctx.weight_dtype), None, None, None


class SparseLinear(nn.Module):
    """A linear layer on CSR rows; never holds an (n, g) tensor, forward or backward."""

    def __init__(self, num_genes: int, num_hidden: int) -> None:
        super().__init__()
        bound = num_genes**-0.5
        self.weight = nn.Parameter(torch.empty(num_genes, num_hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_hidden).uniform_(-bound, bound))

    def forward(self, rows: SparseRows, order: GeneOrder | None, dtype: torch.dtype) -> Tensor:
        """(n, h) of rows with float data; only a backward pass needs `order`; `dtype` is that of the product."""
        if order is None:
            product = bag(self.weight.to(dtype), rows.indices, rows.indptr, rows.data).to(self.weight.dtype)
        else:
            product = _SparseLinear.apply(self.weight, rows, order, dtype)  # type: ignore[no-untyped-call]
        return product + self.bias
