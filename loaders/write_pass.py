"""The second pass: every source's counts into the shards of one store, and the tally of its normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unicoord_atlas.batch import CsrBlock
from unicoord_atlas.genes import GeneMap, remap

from .in_order import in_order
from .tally import BlockSums, Tally, block_sums
from .zarr_writer import AtlasWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from unicoord_atlas.normalization import Normalization

    from .sources import CellSource
    from .zarr_layout import MatrixLayout

_TALLY = "tally.npz"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows first:last of a source, which are the atlas's rows start:stop."""

    source: CellSource
    gene_map: GeneMap
    first: int
    last: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.last - self.first


def write_counts(
    out: Path,
    layout: MatrixLayout,
    sources: Sequence[tuple[CellSource, GeneMap]],
    frozen: Normalization,
    rows_per_block: int,
    threads: int,
    progress: Callable[[int], object],
) -> tuple[Normalization, NDArray[np.float64]]:
    """Write X, going on from whatever whole shards and saved tally are in `out`.

    Returns
    -------
    The normalization with the moments of genes, and (all cells,) size factors.
    """
    tally = Tally.load(out / _TALLY, layout.num_rows, layout.num_genes)

    def prepare(piece: _Piece) -> tuple[_Piece, CsrBlock, BlockSums | None]:
        block = remap(piece.source.read(piece.first, piece.last), piece.gene_map, layout.num_genes)
        return piece, block, None if piece.start < tally_start else block_sums(block, frozen)

    with AtlasWriter(out, layout, threads=threads) as writer:
        tally_start = tally.next_row
        known = min(tally_start, writer.next_row if writer.next_row < writer.stop_row else layout.num_rows)
        pieces = [piece for piece in _pieces(sources, rows_per_block) if piece.stop > known]
        progress(pieces[0].start if pieces else layout.num_rows)
        for piece, block, sums in in_order(prepare, pieces, threads):
            if writer.next_row < min(piece.stop, writer.stop_row):
                writer.write(CsrBlock(block.indptr[writer.next_row - piece.start :], block.indices, block.data))
            if sums is not None:
                tally.add(sums)
                if _shard_of(layout, piece.stop) > _shard_of(layout, piece.start):
                    tally.save(out / _TALLY)
            progress(piece.stop - piece.start)
    (out / _TALLY).unlink(missing_ok=True)
    return tally.normalization(frozen), tally.size_factors_n


def _pieces(sources: Sequence[tuple[CellSource, GeneMap]], rows_per_block: int) -> list[_Piece]:
    pieces = []
    start = 0
    for source, gene_map in sources:
        for first, last in source.cuts(rows_per_block):
            pieces.append(_Piece(source, gene_map, first, last, start))
            start += last - first
    return pieces


def _shard_of(layout: MatrixLayout, row: int) -> int:
    return int(layout.indptr[row]) // layout.shard_entries
