"""The diffusion loss: a cell's place is where its neighbours are, and decoding that place gives the cell.

For cell i with k neighbours in the graph (itself excluded, all alike), on the diffusion dimensions

    mean_i = (1/k) sum_j mean_j,   variance_i = (1/k) sum_j variance_j,   z_i = mean_i + sqrt(variance_i) epsilon

All other dimensions are the cell's own sample; z is decoded and compared with x_i by the squared error over genes.
Source: the paper, Methods, "Loss functions" (diffusion).  Variances are averaged, not their logs.

So that the cost is bounded, only a share of the cells carries the term, each with weight 1 / share, and of a carrying
cell's neighbours only some are encoded in this step, with gradient ("live"); the others are remembered.
Shapes: n cells, m carrying cells, v live neighbours, e edges, d diffusion dimensions, w width of a decoder input.
"""

from __future__ import annotations

import torch
from torch import Tensor


def neighbor_average(live_vd: Tensor, owner_v: Tensor, remembered_md: Tensor, count_m: Tensor) -> Tensor:
    """Average over all neighbours of each carrying cell, of means or of variances.

    Parameters
    ----------
    live_vd, owner_v
        Values of the live neighbours, and which carrying cell each belongs to.
    remembered_md
        Sum over the neighbours that are not live.
    count_m
        Number of neighbours of each, live or not.

    Returns
    -------
    Tensor, shape (m, d); the gradient reaches the live neighbours.
    """
    return remembered_md.index_add(0, owner_v, live_vd) / count_m[:, None]


def diffused(latent_mw: Tensor, mean_md: Tensor, variance_md: Tensor, normal_md: Tensor, start: int) -> Tensor:
    """(m, w): decoder inputs whose columns from `start` on are a sample of the neighbours' average."""
    sample_md = mean_md + variance_md.sqrt() * normal_md
    return torch.cat([latent_mw[:, :start], sample_md, latent_mw[:, start + sample_md.shape[1] :]], dim=1)


def choose_live(row_of_edge_e: Tensor, priority_e: Tensor, num_live: int) -> Tensor:
    """Which edges lead to live neighbours: for each cell the `num_live` with the lowest priority, or all it has.

    Parameters
    ----------
    row_of_edge_e
        (e,) int64, ascending: the cell of each edge.
    priority_e
        (e,) random numbers: the live ones are a draw without replacement.

    Returns
    -------
    Tensor, shape (e,), bool.
    """
    by_priority = torch.argsort(priority_e)
    order_e = by_priority[torch.argsort(row_of_edge_e[by_priority], stable=True)]
    starts_e = torch.searchsorted(row_of_edge_e, row_of_edge_e)  # rows ascend: where each edge's cell begins
    live_e = torch.zeros(len(order_e), dtype=torch.bool, device=order_e.device)
    live_e[order_e] = torch.arange(len(order_e), device=order_e.device) - starts_e < num_live
    return live_e
