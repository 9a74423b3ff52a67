"""Reconfiguration: set coordinates of cells and decode.  Source: the paper, Methods, "Cell generation and evaluation".

A set discrete coordinate is exactly one-hot; a set continuous one has its mean replaced and keeps the cell's variance.
Then the continuous coordinates are drawn, and the drawn place is decoded.
Shapes: n cells, g genes, d continuous dimensions, k categories, w width of a decoder input, p points of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from unicoord_atlas.model.noise import Noise, Purpose

from .coordinate_changes import Changes, ResolvedChanges, resolve_changes
from .decoded import count_rows, decode_rows, value_rows
from .discrete import discrete_coordinates
from .errors import UsageError
from .points import encoded_points

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from unicoord_atlas.model.joint_vae import JointVAE

    from .csr_block import CsrBlock
    from .encode import Encoded
    from .points import Points
    from .reference import ReferenceModel

MIN_VALUE = 0.01
"""Smaller generated values are dropped: they are what a ReLU leaves of nothing."""
CELLS_AT_ONCE = 256
"""Decoded together: bounds the dense rows, however many points a sweep has."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How cells are generated."""

    changes: Changes = field(default_factory=Changes)
    reconstruct: bool = False
    """Nothing needs to be changed: cells are decoded as they are."""
    exact: bool = False
    """A set continuous coordinate has no variance."""
    sample: Literal["posterior", "mode"] = "posterior"
    """"mode" decodes the means."""
    seed: int = 0
    min_value: float = MIN_VALUE
    """Smaller log-normalized values are dropped; 0 keeps all that is above 0."""
    counts: bool = False
    """Poisson counts instead of log-normalized values."""
    depth: float | None = None
    """Size factor of the counts; the cell's own if None."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_value < float("inf"):
            raise UsageError(f"--min-value {self.min_value}: it is 0 or more")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: it is 0 or more")
        if self.depth is not None and not 0 < self.depth < float("inf"):
            raise UsageError(f"--depth {self.depth}: it must be above 0")
        if self.depth is not None and not self.counts:
            raise UsageError("--depth is for --counts; log-normalized values have no depth")


@dataclass(frozen=True, slots=True)
class Generated:
    """Some generated cells, in order."""

    block: CsrBlock
    rows: NDArray[np.int64]
    """(n,) the cell each was made from."""
    coordinates: Mapping[str, NDArray[np.generic]]
    """(n,) what each coordinate that was set came to: codes of discrete ones, values of continuous ones."""
    titles: Mapping[str, list[str] | list[float]]
    """Of each sweep, where each cell is on it."""


def generate(
    reference: ReferenceModel, points: Iterable[Points], how: Generation, obs: pd.DataFrame
) -> Iterator[Generated]:
    """Cells from points: changed, drawn, decoded; all points of a sweep for the first cell, then for the second.

    Parameters
    ----------
    obs
        Of the cells that the points' rows count: columns that are asked for and labels that jitter is added to.

    Raises
    ------
    UsageError, DataError
        At once, before the first point is taken: if nothing is to be changed, and see `resolve_changes`.
    """
    if not how.changes and not how.reconstruct:
        raise UsageError(
            "nothing is set, so the cells would come back as they are: say --set-label, --set-value, --jitter or "
            "--sweep, or --reconstruct to have them so"
        )
    resolved = resolve_changes(reference, how.changes, obs)
    if how.counts and how.depth is None and reference.normalization.log_input:
        raise UsageError("--counts: the reference was trained on log-normalized values, so say --depth, too")
    return _generate(reference, points, how, resolved)


def _generate(
    reference: ReferenceModel, points: Iterable[Points], how: Generation, resolved: ResolvedChanges
) -> Iterator[Generated]:
    grid = np.array(resolved.grid, np.int64).reshape(len(resolved.grid), -1)
    for some in points:
        changed = with_changes(some, resolved, how)
        for start in range(0, len(some) * len(grid), CELLS_AT_ONCE):
            places = np.arange(start, min(start + CELLS_AT_ONCE, len(some) * len(grid)))
            at = grid[places % len(grid)]
            swept = _on_sweeps(reference, changed.take(places // len(grid)), resolved, at, how.exact)
            yield _decoded(reference, swept, how, resolved, at)


def _decoded(
    reference: ReferenceModel, points: Points, how: Generation, resolved: ResolvedChanges, at: NDArray[np.int64]
) -> Generated:
    drawn = points.sampled(how.seed) if how.sample == "posterior" else points
    decoded_ng = decode_rows(reference.model, drawn.decoder_input(reference.model))
    if how.counts:
        depths = points.size_factors if how.depth is None else np.full(len(points), how.depth, np.float32)
        block = count_rows(decoded_ng, depths, points.rows, how.seed, reference.normalization.target_sum)
    else:
        block = value_rows(decoded_ng, how.min_value)
    labels, names = discrete_coordinates(reference.config), reference.dims
    coordinates: dict[str, NDArray[np.generic]] = {
        labels[number].name: points.discrete[number].argmax(axis=1) for number in resolved.codes
    }
    coordinates |= {names[number]: points.mean[:, number] for number in resolved.values}
    titles = {s.name: [s.titles[i] for i in at[:, number]] for number, s in enumerate(resolved.sweeps)}
    return Generated(block, points.rows, coordinates, titles)


def with_changes(points: Points, resolved: ResolvedChanges, how: Generation) -> Points:
    """The points with all that is set but sweeps; jitter depends on the seed, the cell's row and the dimension."""
    discrete, mean, variance = list(points.discrete), points.mean.copy(), points.variance.copy()
    for number, codes in resolved.codes.items():
        codes_n = codes[points.rows]
        chosen = np.eye(discrete[number].shape[1], dtype=np.float32)[codes_n]
        discrete[number] = np.where((codes_n >= 0)[:, None], chosen, discrete[number])
    noise = Noise(how.seed, 0, torch.from_numpy(points.rows))
    for number, values in resolved.values.items():
        values_n = values[points.rows]
        is_set = ~np.isnan(values_n)
        mean[:, number] = np.where(is_set, values_n, mean[:, number])
        if number in resolved.jitter:
            jitter = resolved.jitter[number]
            if jitter.kind == "U":
                share = noise.uniform(Purpose.JITTER, number + 1)[:, number].numpy()
                mean[:, number] += jitter.low + (jitter.high - jitter.low) * share
            else:
                mean[:, number] += jitter.high * noise.normal(Purpose.JITTER, number + 1)[:, number].numpy()
            is_set = np.ones_like(is_set)
        if how.exact:
            variance[is_set, number] = 0
    return replace(points, discrete=tuple(discrete), mean=mean, variance=variance)


def _on_sweeps(
    reference: ReferenceModel, points: Points, resolved: ResolvedChanges, at: NDArray[np.int64], exact: bool
) -> Points:
    """The points moved to the place of each sweep that `at` (n, sweeps) names."""
    discrete, mean, variance = list(points.discrete), points.mean, points.variance
    labels = [label.name for label in discrete_coordinates(reference.config)]
    for number, sweep in enumerate(resolved.sweeps):
        values = sweep.values[at[:, number]]
        if sweep.values.ndim == 2:
            discrete[labels.index(sweep.name)] = values
        else:
            dimension = reference.dims.index(sweep.name)
            mean[:, dimension] = values  # `take` has copied
            if exact:
                variance[:, dimension] = 0
    return replace(points, discrete=tuple(discrete), mean=mean, variance=variance)


def mode_latents(model: JointVAE, encoded: Encoded, codes: Mapping[str, int] | None = None) -> NDArray[np.float32]:
    """(n, w) decoder inputs: arg-max categories one-hot, or the one that `codes` names, and means."""
    points = encoded_points(encoded, np.zeros(len(encoded.rows), np.float32))
    for latent, weights in zip(model.spec.latent.discrete, points.discrete, strict=True):
        if codes and latent.name in codes:
            weights[:] = np.eye(latent.num_categories, dtype=np.float32)[codes[latent.name]]
    return points.decoder_input(model)
