"""How strange a cell is to a reference: how far it is from the reference's cells, and how badly it is decoded.

    novelty = max((distance + angle) / sqrt(2), error), each (log part - what depth explains - its centre) / its spread

Distances are Euclidean in the biological coordinates.  Angles are chords between the directions of cells along the
first principal axes, which no label has shaped; where genes were not measured, the direction that fits the others best.
Both are means over the nearest labelled reference cells.  Errors are means over the genes that vary most of squared
error / variance; a gene that was not measured has none.  What depth alone does to each is a regression on the
reference's cells.  Centres and spreads are the median and the scaled median deviation of validation cells.  A p-value
is the larger of two: among validation cells of which as few genes are known, and among those with as few molecules.
Chosen by leaving types out of pbmc8k and looking for them elsewhere (docs/differences.md).
Shapes: n cells, m reference cells, v validation cells, b biological coordinates, f genes, p axes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from .cell_facts import CellFacts, VariableGenes

_NEAREST = 15
_MAD_TO_SD = 1.4826
_TILE = 1 << 24
_SMALLEST = 1e-6


@dataclass(frozen=True, slots=True)
class Strangeness:
    """The parts of novelty, before they are put on one scale."""

    logs_3n: NDArray[np.float32]
    """Logs of distance, angle and error, with what depth explains taken off."""
    log_depth: NDArray[np.float32]
    """(n,) of the size factor."""


@dataclass(frozen=True, slots=True)
class Novelty:
    """All that is needed to tell how strange a cell is: part of a reference."""

    genes_f: NDArray[np.int64]
    """Of the model's genes, those that errors and profiles are taken over."""
    variance_f: NDArray[np.float64]
    """Of their log-normalized values in the atlas."""
    axes_fp: NDArray[np.float32]
    """Principal axes; see `VariableGenes`."""
    points_mb: NDArray[np.float32]
    """Biological coordinates of reference cells."""
    profiles_mp: NDArray[np.float32]
    """Directions of their profiles."""
    depth_32: NDArray[np.float64]
    """Regression of log distance, log angle and log error on 1 and the log of the size factor."""
    scale_32: NDArray[np.float64]
    """Centre and spread of each."""
    coverages: NDArray[np.float64]
    """(c,) ascending shares of the mean profile at which validation cells were scored; the last is 1."""
    scores_cv: NDArray[np.float32]
    """Novelty of the validation cells at each coverage, ascending."""
    log_depths: NDArray[np.float64]
    """(t,) ascending medians of the log size factor of validation cells that kept a share of their molecules."""
    scores_tv: NDArray[np.float32]
    """Novelty of the validation cells at each depth, ascending."""

    def scores(self, parts: Strangeness) -> NDArray[np.float32]:
        """(n,) novelty, higher = stranger."""
        centre_3, spread_3 = self.scale_32.T
        distance_n, angle_n, error_n = (parts.logs_3n - centre_3[:, None]) / spread_3[:, None]
        scores: NDArray[np.float32] = np.maximum((distance_n + angle_n) / np.sqrt(2), error_n).astype(np.float32)
        return scores

    def p_values(
        self, scores_n: NDArray[np.float32], log_depth_n: NDArray[np.float32], coverage: float = 1.0
    ) -> NDArray[np.float32]:
        """(n,) conformal: (1 + validation cells that score as high) / (validation cells + 1).

        Validation cells as they score at the nearest coverage, or at the nearest depth if more of them score as high
        there.  Source: Vovk et al. 2005, "Algorithmic Learning in a Random World", section 2.2.
        """
        p_n = _share_as_high(self.scores_cv[int(np.abs(self.coverages - coverage).argmin())], scores_n)
        nearest_n = np.abs(log_depth_n[:, None] - self.log_depths).argmin(axis=1)
        for level in np.unique(nearest_n):
            cells = nearest_n == level
            p_n[cells] = np.maximum(p_n[cells], _share_as_high(self.scores_tv[level], scores_n[cells]))
        return p_n

    def save(self, path: Path) -> None:
        """Write all arrays."""
        save_file({each.name: np.ascontiguousarray(getattr(self, each.name)) for each in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> Novelty:
        """Read what `save` wrote; DataError names the file."""
        try:
            with safe_open(path, framework="numpy") as file:
                return cls(**{name: file.get_tensor(name) for name in file.keys()})
        except (OSError, SafetensorError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as the novelty of a reference ({error})") from error


def fit_novelty(
    genes: VariableGenes,
    reference_cells: CellFacts,
    validation: Mapping[float, CellFacts],
    shallower: Iterable[CellFacts],
) -> Novelty:
    """Regress, scale and score.

    Parameters
    ----------
    validation
        Validation cells as they are at each coverage; 1.0 among them.
    shallower
        The same with fewer and fewer molecules.
    """
    cells = reference_cells
    logs_3m = _logs(own_distances(cells.bio_nb), own_distances(cells.profiles_np), cells.errors_n)
    depth_32 = np.asarray(np.linalg.lstsq(cells.terms_n2, logs_3m.T, rcond=None)[0].T, np.float64)
    coverages = np.array(sorted(validation))
    none_32, no_scores = np.ones((3, 2)), np.zeros((len(coverages), 0), np.float32)
    novelty = Novelty(
        genes.genes_f, genes.variance_f, genes.axes_fp, cells.bio_nb, cells.profiles_np,
        depth_32, none_32, coverages, no_scores, np.zeros(0), no_scores,
    )  # fmt: skip
    parts = [strangeness(novelty, validation[share]) for share in coverages.tolist()]
    novelty = replace(novelty, scale_32=np.array([_centre_and_spread(log_n) for log_n in parts[-1].logs_3n]))
    levels = [parts[-1], *(strangeness(novelty, shallow) for shallow in shallower)]
    levels.sort(key=lambda level: float(np.median(level.log_depth)))
    return replace(
        novelty,
        scores_cv=np.stack([np.sort(novelty.scores(part)) for part in parts]),
        log_depths=np.array([np.median(level.log_depth) for level in levels], np.float64),
        scores_tv=np.stack([np.sort(novelty.scores(level)) for level in levels]),
    )


def strangeness(novelty: Novelty, cells: CellFacts) -> Strangeness:
    """The parts of the novelty of cells."""
    distances_n = nearest_distances(novelty.points_mb, cells.bio_nb)
    angles_n = nearest_distances(novelty.profiles_mp, cells.profiles_np)
    logs_3n = _logs(distances_n, angles_n, cells.errors_n) - novelty.depth_32 @ cells.terms_n2.T
    return Strangeness(logs_3n.astype(np.float32), cells.terms_n2[:, 1].astype(np.float32))


def _logs(*parts: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.log(np.maximum(np.stack(parts).astype(np.float64), _SMALLEST))


def nearest_distances(points_mb: NDArray[np.float32], queries_nb: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) mean Euclidean distance to the 15 nearest points."""
    count = min(_NEAREST, len(points_mb))
    return _summed_distances(points_mb, queries_nb, count) / np.float32(count)


def own_distances(points_mb: NDArray[np.float32]) -> NDArray[np.float32]:
    """(m,) the same of the points themselves, each without itself."""
    count = min(_NEAREST + 1, len(points_mb))
    return _summed_distances(points_mb, points_mb, count) / np.float32(max(count - 1, 1))


def _summed_distances(
    points_mb: NDArray[np.float32], queries_nb: NDArray[np.float32], count: int
) -> NDArray[np.float32]:
    points, queries = torch.from_numpy(points_mb), torch.from_numpy(queries_nb)
    half_norms_m = 0.5 * points.square().sum(dim=1)
    found = []
    for part_nb in queries.split(max(_TILE // max(len(points), 1), 1)):
        nearest_nk = torch.topk(part_nb @ points.T - half_norms_m, count, dim=1).indices
        # Of the differences: from norms and products a small distance would have few digits, others in each batch.
        found.append((points[nearest_nk] - part_nb[:, None]).square().sum(dim=2).sqrt().sum(dim=1))
    result: NDArray[np.float32] = torch.cat(found).numpy()
    return result


def _share_as_high(known_v: NDArray[np.float32], scores_n: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) share of the known scores, ascending, and the score itself that are at least as high."""
    as_high_n = len(known_v) - np.searchsorted(known_v, scores_n, side="left")
    share_n: NDArray[np.float32] = ((1 + as_high_n) / (len(known_v) + 1)).astype(np.float32)
    return share_n


def _centre_and_spread(values: NDArray[np.float32]) -> tuple[float, float]:
    centre = float(np.median(values))
    return centre, max(float(np.median(np.abs(values - centre))) * _MAD_TO_SD, _SMALLEST)
