"""Log-normalized values of minibatches, on the device of their counts; see `normalization`.

Shapes: n cells, z non-zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import SparseRows
from .normalization import TARGET_SUM


def row_scales(size_factors_n: Tensor, target_sum: float) -> Tensor:
    """(n,) what a cell's counts are multiplied by before log1p: target_sum / size factor; 1 if that is 0."""
    return torch.where(size_factors_n > 0, target_sum / size_factors_n, torch.ones_like(size_factors_n))


def log_normalize(
    counts: SparseRows, size_factors_n: Tensor, target_sum: float = TARGET_SUM, log_input: bool = False
) -> SparseRows:
    """Log-normalized rows: float32 data, int32 indices, on the device of the counts."""
    values = counts.data.to(torch.float32)
    if not log_input:
        scales_n = row_scales(size_factors_n, target_sum)
        values = torch.log1p(
            values * torch.repeat_interleave(scales_n, counts.indptr.diff(), output_size=values.shape[0])
        )
    return SparseRows(counts.indptr, counts.indices.to(torch.int32), values, counts.num_genes)
