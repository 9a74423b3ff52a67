"""Drawing some cells more often than others, from a store in any order.

An epoch draws each cell as often as its weight says, rounded up or down at random; the draws of an epoch are then read
in blocks like any other cells.  Repeats of a cell go into different blocks, so they are spread over the epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def balanced_weights(codes: NDArray[np.int32], temperature: float = 1.0) -> NDArray[np.float64]:
    """(N,) weights that draw the categories alike: each in proportion to `cells ** (1 - temperature)`.

    Parameters
    ----------
    codes
        (N,) category of each cell; one with a negative code gets weight 0.
    temperature
        0 leaves the cells as they are, 1 draws each category equally often.
    """
    labelled = codes >= 0
    counts = np.bincount(codes[labelled])
    weights = np.zeros(len(codes))
    weights[labelled] = counts[codes[labelled]].astype(np.float64) ** -temperature
    return weights


def draw_rows(
    weights: NDArray[np.float64], rows: NDArray[np.int64] | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows in proportion to their weights, as many as there are rows with a weight over 0.

    Systematic sampling: a row is drawn floor or ceil of its expected number of times, and exactly that on average.

    Returns
    -------
    Every row that is drawn at least once, ascending; then those drawn at least twice; and so on.
    """
    chosen = weights if rows is None else weights[rows]
    if not (np.isfinite(chosen).all() and (chosen >= 0).all() and (chosen > 0).any()):
        raise ConfigError("weights must be finite, at least 0, and over 0 for some cell")
    num_draws = int((chosen > 0).sum())
    expected = np.cumsum(chosen) * (num_draws / chosen.sum())
    expected[expected == expected[-1]] = num_draws  # the sum of so many floats may fall a little short
    drawn = np.diff(np.floor(expected + rng.random()), prepend=0.0).astype(np.int64)
    positions = np.repeat(np.arange(len(drawn), dtype=np.int64), drawn)
    times_before = np.arange(len(positions)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
    positions = positions[np.argsort(times_before, kind="stable")]
    return positions if rows is None else rows[positions]
