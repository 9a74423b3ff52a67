"""The decoder's last layer and the squared error, in tiles over genes: no more of an (n, g) tensor is held.

    y = relu(h W^T + b),   error_i = sum_j (y_ij - x_ij)^2 over the genes j that cell i's source measured

The gradient is taken in the same pass over the tiles as the value, while a tile is in cache.
Source: the paper, Methods, "Loss functions" (reconstruction).
Shapes: n cells, g genes, h hidden units, t genes of a tile, s sources, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from .gene_order import GeneOrder, GeneTile

ReluGradient = Literal["y_or_x", "y"]


@dataclass(frozen=True, slots=True)
class Target:
    """What the decoder should say: the non-zeros of x by gene, and what was measured."""

    order: GeneOrder
    values_z: Tensor
    """(z,) float32, in gene order."""
    sources_n: Tensor
    """(n,) int64."""
    measured_sg: Tensor | None
    """(s, g) bool; None where every source measured every gene."""
    partly_measured: tuple[bool, ...] | None = None
    """For each gene tile, whether any source left out any of its genes: known on the host, so no sync in the step."""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How the tiles are computed."""

    dtype: torch.dtype = torch.float32
    """Of the three matrix products; sums are float32 (float64 if the weights are)."""
    relu_gradient: ReluGradient = "y_or_x"
    tile: int = 2048


def partly_measured(measured_sg: Tensor, tile: int) -> tuple[bool, ...]:
    """For each tile, whether any source left out any of its genes."""
    return tuple(not bool(part.all()) for part in measured_sg.split(tile, dim=1))


class _FusedDecode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nh: Tensor,
        weight_gh: Tensor,
        bias_g: Tensor,
        weights_n: Tensor,
        target: Target,
        options: DecodeOptions,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        wants_grad = grad_enabled and any(ctx.needs_input_grad[:3])  # which are set without gradients, too
        errors_n = torch.zeros_like(weights_n)
        hidden = hidden_nh.to(options.dtype)
        if wants_grad:
            twice_n1 = (2.0 * weights_n[:, None]).to(options.dtype)
            scaled = (2.0 * weights_n[:, None] * hidden_nh).to(options.dtype)
            grad_hidden = torch.zeros_like(hidden_nh)
            grad_weight, grad_bias = torch.empty_like(weight_gh), torch.empty_like(bias_g)
        for number, tile in enumerate(target.order.tiles(options.tile)):
            weight_th = weight_gh[tile.genes].to(options.dtype)
            residual_tn = _residual(hidden, weight_th, bias_g[tile.genes], tile, number, target, options, errors_n)
            if wants_grad:
                grad_weight[tile.genes] = residual_tn @ scaled
                grad_bias[tile.genes] = (residual_tn @ twice_n1)[:, 0]
                grad_hidden += residual_tn.t() @ weight_th
        if wants_grad:
            # Not saved for backward: a gradient that nothing else holds becomes a parameter's own without a copy.
            ctx.gradients = [grad_hidden.mul_(2.0 * weights_n[:, None]), grad_weight, grad_bias]
        ctx.mark_non_differentiable(errors_n)
        return (errors_n * weights_n).sum(), errors_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The weights carry the loss's scale, so the factor is mostly 1; only the CPU can look without a sync.
        scale, gradients = grads[0], ctx.gradients
        if gradients is None:
            raise RuntimeError("the fused decode was backpropagated before; its gradients were given away then")
        ctx.gradients = None
        if not (scale.device.type == "cpu" and scale.item() == 1.0):
            gradients = [gradient.mul_(scale) for gradient in gradients]
        return *gradients, None, None, None, None


def _residual(
    hidden: Tensor,
    weight_th: Tensor,
    bias_t: Tensor,
    tile: GeneTile,
    number: int,
    target: Target,
    options: DecodeOptions,
    errors_n: Tensor,
) -> Tensor:
    """(t, n): y - x through which the gradient passes; adds the tile's share to `errors_n`.

    A row a gene: entries in gene order then lie in the order of memory, and both products with the residuals but one
    read what they are given as it lies.
    Where x = 0 the residual is y, so a closed ReLU passes nothing by itself; only non-zeros need a look: "y_or_x" lets
    the gradient pass there though y = 0, "y" stops it.
    """
    y_tn = torch.addmm(bias_t.to(options.dtype)[:, None], weight_th, hidden.t()).relu_()
    if target.measured_sg is not None and (target.partly_measured is None or target.partly_measured[number]):
        y_tn *= target.measured_sg[:, tile.genes].t().to(y_tn.dtype).index_select(1, target.sources_n)
    # index_select and index_copy_ take a third of the time of indexing with brackets.
    flat = y_tn.view(-1)
    y_z, x_z = flat.index_select(0, tile.at_z).to(errors_n.dtype), target.values_z[tile.entries].to(errors_n.dtype)
    residual_z = y_z - x_z
    errors_n += y_tn.to(errors_n.dtype, copy=True).square_().sum(dim=0)  # a norm over rows takes five times as long
    errors_n.index_add_(0, tile.rows_z, x_z * (x_z - 2.0 * y_z))  # (y - x)^2 - y^2
    if options.relu_gradient == "y":
        residual_z = torch.where(y_z > 0, residual_z, 0.0)
    flat.index_copy_(0, tile.at_z, residual_z.to(flat.dtype))
    return y_tn


def fused_decode_error(
    hidden_nh: Tensor, weight_gh: Tensor, bias_g: Tensor, weights_n: Tensor, target: Target, options: DecodeOptions
) -> tuple[Tensor, Tensor]:
    """Weighted squared error of the decoded cells.

    Parameters
    ----------
    hidden_nh, weight_gh, bias_g
        The last hidden layer and the last linear layer; gradients flow to all three.
    weights_n
        Weight of each cell's error in the sum: 1 / n for a mean, 0 for padding.  No gradient.
    target, options
        What to compare with, and how to compute.

    Returns
    -------
    The scalar sum_i weights_i error_i, and the errors (n,) themselves, without gradient.
    """
    result: tuple[Tensor, Tensor] = _FusedDecode.apply(  # type: ignore[no-untyped-call]
        hidden_nh, weight_gh, bias_g, weights_n, target, options, torch.is_grad_enabled()
    )
    return result
