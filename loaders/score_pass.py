"""Scores of gene sets over an atlas, in one streamed pass, or of some of its cells.

Shapes: n cells, g genes, s sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .graph_pass import RunPieces, blocks_of, pieces, scales_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock
    from unicoord_atlas.gene_sets.score import CellValues, SetSums

    from .graph_pass import Rows
    from .row_file import RowFile
    from .store import CellStore

PIECE = 8_192
_ROWS_TOGETHER = 512


@dataclass(frozen=True)
class CellScorer:
    """All that a process needs to give cells of a store their values."""

    store: CellStore
    method: CellValues
    keys_n: NDArray[np.uint64] | None = None
    """A number for each cell of the store, if the method asks for it."""

    def values(self, block: CsrBlock, rows: NDArray[np.int64]) -> sp.csr_matrix:
        """(n, g) values of the cells of a block, which are these rows of the store."""
        return self.method.values(
            block, scales_of(self.store, rows), None if self.keys_n is None else self.keys_n[rows]
        )


def write_scores(
    scorer: CellScorer, sets: SetSums, out: RowFile, run: RunPieces, progress: Callable[[int], object]
) -> None:
    """Append the scores of all cells that `out` does not have yet."""
    progress(out.next_row)
    left = pieces(scorer.store.n_obs, out.next_row, PIECE)
    for scores_ns in run(partial(_scores_of_piece, scorer, sets), left):
        out.append(scores_ns)
        progress(len(scores_ns))


def scores_of_rows(
    scorer: CellScorer, sets: SetSums, rows: NDArray[np.int64], run: RunPieces, progress: Callable[[int], object] = int
) -> NDArray[np.float32]:
    """(n, s) scores of some cells, ascending rows."""
    portions = [rows[start : start + _ROWS_TOGETHER] for start in range(0, len(rows), _ROWS_TOGETHER)]
    scores_ns = np.empty((len(rows), len(sets.factor_s)), np.float32)
    at = 0
    for part in run(partial(_scores_of_portion, scorer, sets), portions):
        scores_ns[at : at + len(part)] = part
        at += len(part)
        progress(len(part))
    return scores_ns


def values_of_rows(scorer: CellScorer, rows: NDArray[np.int64]) -> sp.csr_matrix:
    """(n, g) values of some cells, ascending rows."""
    read = scorer.store.read_ranges(np.stack([rows, rows + 1], axis=1))
    return scorer.values(read, rows)


def _scores_of_portion(scorer: CellScorer, sets: SetSums, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return sets.scores(values_of_rows(scorer, rows))


def _scores_of_piece(scorer: CellScorer, sets: SetSums, rows: Rows) -> NDArray[np.float32]:
    parts = [
        sets.scores(scorer.values(block, np.arange(start, stop)))
        for start, stop, block in blocks_of(scorer.store, rows)
    ]
    return np.concatenate(parts)
