"""Information entropy of scores, and whether a set's is higher than that of random sets of its size.

Source: the paper, Methods, "Generation of BP features".  Shapes: n cells, s sets, b bins, c sizes, r random sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .score import SetSums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from .score import CellValues

    RunAll = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

NUM_BINS = 100
_DRAWN_TOGETHER = 500
_SETS_TOGETHER = 128


def entropies(
    scores_ns: NDArray[np.float32], bounds: tuple[float, float] = (0.0, 1.0), num_bins: int = NUM_BINS
) -> NDArray[np.float64]:
    """(s,) entropy in nats of each set's scores over the cells, in equal bins; what lies outside counts at the ends."""
    parts = range(0, scores_ns.shape[1], _SETS_TOGETHER)  # a bin takes twice the memory of a score
    return np.concatenate([_entropies(scores_ns[:, s : s + _SETS_TOGETHER], bounds, num_bins) for s in parts])


def _entropies(scores_ns: NDArray[np.float32], bounds: tuple[float, float], num_bins: int) -> NDArray[np.float64]:
    num_cells, num_sets = scores_ns.shape
    low, high = bounds
    bins_ns = np.clip((scores_ns - low) * (num_bins / (high - low)), 0, num_bins - 1).astype(np.int64)
    bins_ns += np.arange(num_sets) * num_bins
    counts_sb = np.bincount(bins_ns.ravel(), minlength=num_sets * num_bins).reshape(num_sets, num_bins)
    shares_sb = counts_sb / num_cells
    logs_sb = np.log(shares_sb, out=np.zeros_like(shares_sb), where=shares_sb > 0)
    result: NDArray[np.float64] = -(shares_sb * logs_sb).sum(axis=1)
    return result


@dataclass(frozen=True)
class NullEntropies:
    """Entropies of random sets of some sizes, over the same cells."""

    sizes: NDArray[np.int64]
    """(c,) ascending."""
    sorted_cr: NDArray[np.float64]
    """Each row ascending."""

    def of_size(self, size: int) -> NDArray[np.float64]:
        """(r,) ascending: quantile by quantile between the next sizes, along the logarithm of the size."""
        right = int(np.clip(np.searchsorted(self.sizes, size), 1, max(len(self.sizes) - 1, 1)))
        if len(self.sizes) == 1:
            only: NDArray[np.float64] = self.sorted_cr[0]
            return only
        low, high = np.log(self.sizes[right - 1 : right + 1])
        share = np.clip((np.log(size) - low) / (high - low), 0.0, 1.0)
        between: NDArray[np.float64] = (1 - share) * self.sorted_cr[right - 1] + share * self.sorted_cr[right]
        return between

    def p_value(self, size: int, entropy: float) -> float:
        """One-sided: (1 + random sets with at least this entropy) / (1 + random sets)."""
        null_r = self.of_size(size)
        at_least = len(null_r) - int(np.searchsorted(null_r, entropy, side="left"))
        return (1 + at_least) / (1 + len(null_r))


def size_grid(sizes: Sequence[int], num_sizes: int) -> NDArray[np.int64]:
    """(c,) sizes for random sets, equally far apart in the logarithm, from the smallest to the largest."""
    return np.unique(np.round(np.geomspace(min(sizes), max(sizes), num_sizes)).astype(np.int64))


def null_entropies(
    values_ng: sp.csr_matrix,
    present: NDArray[np.int64],
    method: CellValues,
    sizes: NDArray[np.int64],
    num_draws: int,
    seed: int,
    run: RunAll = map,
    num_bins: int = NUM_BINS,
) -> NullEntropies:
    """Entropies of `num_draws` random sets of each size, drawn without replacement from the genes present.

    Parameters
    ----------
    values_ng
        What the method makes of the cells that the test looks at.
    present
        Indices of the genes that sets are drawn from.
    run
        Maps over portions of random sets; each has a generator of its own, so the order of work changes nothing.
    """
    portions = [
        (number, int(size), first, min(_DRAWN_TOGETHER, num_draws - first))
        for number, size in enumerate(sizes)
        for first in range(0, num_draws, _DRAWN_TOGETHER)
    ]
    of_portion = partial(_random_entropies, values_ng, present, method, seed, num_bins)
    found = np.concatenate(list(run(of_portion, portions))).reshape(len(sizes), num_draws)
    return NullEntropies(sizes, np.sort(found, axis=1))


def _random_entropies(
    values_ng: sp.csr_matrix,
    present: NDArray[np.int64],
    method: CellValues,
    seed: int,
    num_bins: int,
    portion: tuple[int, int, int, int],
) -> NDArray[np.float64]:
    number, size, first, count = portion
    rng = np.random.default_rng([seed, number, first])
    members = [np.sort(present[rng.choice(len(present), size, replace=False, shuffle=False)]) for _ in range(count)]
    return entropies(SetSums.of(members, method).scores(values_ng), method.range, num_bins)
