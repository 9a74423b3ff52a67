"""The first pass over a source: its values are checked, and what must be known before a cell is written is counted.

Shapes: n cells, g genes of the atlas, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.errors import DataError
from unicoord_atlas.genes import GeneMap, remap
from unicoord_atlas.normalization import row_sums

from .in_order import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

    from .sources import CellSource

_LARGEST = np.iinfo(np.uint32).max


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What was counted in one source, or in one block of it."""

    entries_n: NDArray[np.int32]
    """(n,) non-zeros of each cell in the atlas's genes."""
    num_empty: int
    """Cells without any."""
    largest: float
    """Largest value, after duplicated genes were summed."""
    total: float
    """Sum of all values in the atlas's genes."""
    lost: float
    """Sum of the values of genes that the atlas lacks."""
    dominated_g: NDArray[np.int64]
    """(g,) cells in which the gene has more than `max_fraction` of the counts; zeros for log-normalized input."""


def collect_facts(
    source: CellSource,
    gene_map: GeneMap,
    max_fraction: float,
    rows_per_block: int,
    threads: int,
    progress: Callable[[int], object],
) -> SourceFacts:
    """Stream a source once.

    Parameters
    ----------
    source, gene_map
        The cells, and where their genes go.
    max_fraction
        Share of a cell's counts over which a gene is highly expressed there.
    rows_per_block, threads
        Bound the memory: a block for each thread and one more.
    progress
        Called with the number of cells of each block.

    Raises
    ------
    DataError
        For the first value that is negative, not finite or, in counts, not whole; it names the cell and the gene.
    """

    def of_block(rows: tuple[int, int]) -> SourceFacts:
        block = source.read(*rows)
        check_values(source, block, rows[0])
        return block_facts(block, gene_map, max_fraction if source.is_counts else None)

    parts = []
    for part in in_order(of_block, source.cuts(rows_per_block), threads):
        parts.append(part)
        progress(len(part.entries_n))
        if len(parts) == 16:  # sums of g numbers a block would add up to much in a large source
            parts = [join_facts(parts, len(gene_map.measured_g))]
    return join_facts(parts, len(gene_map.measured_g))


def block_facts(block: CsrBlock, gene_map: GeneMap, max_fraction: float | None) -> SourceFacts:
    """Facts of one block; without `max_fraction`, highly expressed genes are not looked for."""
    num_genes = len(gene_map.measured_g)
    mapped = remap(block, gene_map, num_genes)
    sums_n = row_sums(mapped.indptr, mapped.data)
    entries_n = np.diff(mapped.indptr).astype(np.int32)
    dominated_g = np.zeros(num_genes, np.int64)
    if max_fraction is not None:
        over = mapped.data > np.repeat(max_fraction * sums_n, entries_n)
        dominated_g = np.bincount(mapped.indices[np.flatnonzero(over)], minlength=num_genes)
    total = float(sums_n.sum())
    return SourceFacts(
        entries_n,
        num_empty=int((entries_n == 0).sum()),
        largest=float(mapped.data.max(initial=0)),
        total=total,
        lost=float(block.data.sum(dtype=np.float64)) - total if gene_map.num_lost else 0.0,
        dominated_g=dominated_g,
    )


def join_facts(parts: Sequence[SourceFacts], num_genes: int) -> SourceFacts:
    """Facts of consecutive blocks or sources together."""
    return SourceFacts(
        np.concatenate([np.zeros(0, np.int32), *(part.entries_n for part in parts)]),
        num_empty=sum(part.num_empty for part in parts),
        largest=max((part.largest for part in parts), default=0.0),
        total=sum(part.total for part in parts),
        lost=sum(part.lost for part in parts),
        dominated_g=sum((part.dominated_g for part in parts), np.zeros(num_genes, np.int64)),
    )


def check_values(source: CellSource, block: CsrBlock, first_row: int) -> None:
    """Refuse values that no counts, or no log-normalized values, can have."""
    data = block.data
    if len(data) == 0:
        return
    sound = bool(data.min() >= 0 and data.max() < np.inf)  # a NaN makes both false
    if source.is_counts and sound:
        sound = bool(data.max() <= _LARGEST and (data.dtype.kind in "ui" or (data == np.rint(data)).all()))
    if sound:
        return
    bad = ~(data >= 0) | ~np.isfinite(data)
    if source.is_counts:
        bad |= (data != np.rint(data)) | (data > _LARGEST)
    entry = int(np.flatnonzero(bad)[0])
    row = int(np.searchsorted(block.indptr, entry, side="right")) - 1
    cell, gene = source.obs.index[first_row + row], source.var.index[int(block.indices[entry])]
    raise DataError(
        f"{source.path}: {source.matrix}: cell {cell!r} (row {first_row + row}), gene {gene!r}: "
        f"{_fault(data[entry], source.is_counts)}"
    )


def _fault(value: np.number, is_counts: bool) -> str:
    if not np.isfinite(value):
        return f"{value} is no number; mend the file, or choose another matrix by --layer NAME"
    if value < 0:
        wanted = "counts" if is_counts else "log-normalized values"
        return f"{value:g} is negative, so these are no {wanted}; choose another matrix by --layer NAME"
    if value > _LARGEST:
        return f"{value:g} is over {_LARGEST}, too large for a count; choose another matrix by --layer NAME"
    return f"{value:g} is no whole number; choose another matrix by --layer NAME, or ingest with --input lognorm"
