"""Decoded cells as sparse rows: log-normalized values, or counts.

Shapes: n cells, g genes, w width of a decoder input, z non-zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .csr_block import CsrBlock
from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from unicoord_atlas.model.joint_vae import JointVAE

MOST_COUNTS = 2**31 - 1
"""Mean counts of a gene in a cell: no experiment comes near, and NumPy draws from no mean above 2^63."""
_MANTISSA = (1 << 64) - 1


@torch.no_grad()
def decode_rows(model: JointVAE, latents_nw: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, g) log-normalized cells over the model's genes."""
    device = model.output_layer.weight.device
    result: NDArray[np.float32] = model.decode(torch.from_numpy(latents_nw).to(device)).float().cpu().numpy()
    return result


def value_rows(decoded_ng: NDArray[np.float32], min_value: float) -> CsrBlock:
    """The values that are at least `min_value` and above 0."""
    least = max(np.float32(min_value), np.finfo(np.float32).tiny)
    # Row by row: a row stays in the core's cache, all rows together do not.
    kept = [np.flatnonzero(row >= least) for row in decoded_ng]
    return _block(kept, (row[genes] for row, genes in zip(decoded_ng, kept, strict=True)), np.float32)


def count_rows(
    decoded_ng: NDArray[np.float32],
    size_factors_n: NDArray[np.float32],
    rows_n: NDArray[np.int64],
    seed: int,
    target_sum: float,
) -> CsrBlock:
    """Poisson counts with mean expm1(x) s / target_sum.

    Each cell has a generator of its own, keyed with the seed and the cell's row: its counts are the same however cells
    are put together.

    Raises
    ------
    UsageError
        If a mean is above `MOST_COUNTS`: the decoder was asked for a place far from all that it has learned.
    """
    kept, counts = [], []
    for row, size_factor, number in zip(decoded_ng, size_factors_n.tolist(), rows_n.tolist(), strict=True):
        possible = np.flatnonzero(~(row <= 0))  # what is no number is not passed over
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.expm1(row[possible].astype(np.float64)) * (size_factor / target_sum)
            largest = float(mean.max(initial=0))
        if not largest <= MOST_COUNTS:
            raise UsageError(
                f"--counts: the cell of row {number} would have {largest:.3g} counts of one gene; a value that is "
                "set, or --depth, is far from all that the model has learned: choose one nearer to the training cells"
            )
        drawn = np.random.Generator(np.random.Philox(key=[seed & _MANTISSA, number])).poisson(mean)
        kept.append(possible[drawn > 0])
        counts.append(drawn[drawn > 0])
    return _block(kept, counts, np.float32)


def _block(genes: list[NDArray[np.intp]], values: Iterable[NDArray[np.number]], dtype: type[np.float32]) -> CsrBlock:
    indptr = np.zeros(len(genes) + 1, np.int64)
    np.cumsum([len(each) for each in genes], out=indptr[1:])
    indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], dtype)
    if len(genes):
        np.concatenate(genes, out=indices, casting="same_kind")
        np.concatenate(list(values), out=data, casting="unsafe")
    return CsrBlock(indptr, indices, data)
