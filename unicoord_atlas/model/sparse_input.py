"""The encoder's first layer on CSR input.

Shapes: n cells, g genes, h hidden units, z non-zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .gene_order import tile_size

if TYPE_CHECKING:
    from unicoord_atlas.batch import SparseRows

    from .center import Center
    from .gene_order import GeneOrder


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
    """By the non-zeros alone: what a CPU does best."""

    @staticmethod
    def forward(
        ctx: Any, weight_gh: Tensor, rows: SparseRows, order: GeneOrder, dtype: torch.dtype, center: Center | None
    ) -> Tensor:
        ctx.rows, ctx.order, ctx.dtype, ctx.weight_dtype, ctx.center = rows, order, dtype, weight_gh.dtype, center
        return bag(weight_gh.to(dtype), rows.indices, rows.indptr, rows.data).to(weight_gh.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        # The transposed product, gene by gene: the (n, h) table stays in cache and each gradient row is written once.
        order: GeneOrder = ctx.order
        values_z = ctx.rows.data.index_select(0, order.entries_z)
        grad_gh = bag(grads[0].to(ctx.dtype), order.rows_z, order.gene_ptr, values_z)
        return _centered(grad_gh.to(ctx.weight_dtype), grads[0], ctx.center), None, None, None, None


class _TiledLinear(torch.autograd.Function):
    """By dense products of gene tiles that are filled with the non-zeros: what matrix units do best."""

    @staticmethod
    def forward(
        ctx: Any, weight_gh: Tensor, rows: SparseRows, order: GeneOrder, dtype: torch.dtype, center: Center | None
    ) -> Tensor:
        values_z = rows.data.index_select(0, order.entries_z).to(dtype)
        ctx.values_z, ctx.order, ctx.num_rows, ctx.center = values_z, order, rows.num_rows, center
        sum_nh = torch.zeros((rows.num_rows, weight_gh.shape[1]), dtype=weight_gh.dtype, device=weight_gh.device)
        for tile in order.tiles(tile_size(weight_gh.device, rows.num_rows)):
            sum_nh += tile.dense(values_z, rows.num_rows).t() @ weight_gh[tile.genes].to(dtype)
        return sum_nh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        grad_nh, num_genes = grads[0].to(ctx.values_z.dtype), len(ctx.order.gene_ptr) - 1
        grad_gh = torch.empty((num_genes, grad_nh.shape[1]), dtype=grads[0].dtype, device=grad_nh.device)
        for tile in ctx.order.tiles(tile_size(grad_nh.device, ctx.num_rows)):
            grad_gh[tile.genes] = tile.dense(ctx.values_z, ctx.num_rows) @ grad_nh
        return _centered(grad_gh, grads[0], ctx.center), None, None, None, None


def _centered(grad_gh: Tensor, grad_nh: Tensor, center: Center | None) -> Tensor:
    return grad_gh if center is None else center.take_off_gradient(grad_gh, grad_nh)


class SparseLinear(nn.Module):
    """A linear layer on CSR rows, off which a centre may be taken; never holds more of an (n, g) tensor than a tile.

    x W + b, or (x - c) W + b: the same functions, for b could hold -c W, but learned otherwise.  Uncentred, the weights
    of all genes get their steepest gradient along the mean profile, which says nothing about a cell.
    """

    def __init__(self, num_genes: int, num_hidden: int) -> None:
        super().__init__()
        bound = num_genes**-0.5
        self.weight = nn.Parameter(torch.empty(num_genes, num_hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_hidden).uniform_(-bound, bound))

    def forward(
        self, rows: SparseRows, order: GeneOrder | None, dtype: torch.dtype, center: Center | None = None
    ) -> Tensor:
        """(n, h) of rows with float data, less the centre; only a backward pass needs `order`.

        `dtype` is that of the rows' product.
        """
        if order is None:
            product = bag(self.weight.to(dtype), rows.indices, rows.indptr, rows.data).to(self.weight.dtype)
        else:
            way = _SparseLinear if self.weight.device.type == "cpu" else _TiledLinear
            product = way.apply(self.weight, rows, order, dtype, center)  # type: ignore[no-untyped-call]
        return product + self.bias if center is None else product + (self.bias - center.product(self.weight))
