"""The second pass: every source's counts into the shards of one store, and the tally of its normalization.

A shard is the unit of work: it needs nothing of the others, so threads, processes and a resumed job write the same
bytes.  It is done when both its files and its tally are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import zarr

from unicoord_atlas.genes import GeneMap, remap

from .in_order import in_order
from .tally import BlockSums, Tally, block_sums, join_sums
from .zarr_layout import read_layout
from .zarr_writer import AtlasWriter, create_matrix, is_whole, remove_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock
    from unicoord_atlas.normalization import Normalization

    from .sources import CellSource
    from .zarr_layout import MatrixLayout

Item = TypeVar("Item")
Result = TypeVar("Result")

TALLY = "tally"
"""Folder of the sums of each shard; the job removes it once the store is written."""


class RunEach(Protocol):
    """`map`, in this process or on a cluster: results in order."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """The function's result of each item."""
        ...


@dataclass(frozen=True, slots=True)
class SourceRows:
    """Rows first:last of a source."""

    source: CellSource
    gene_map: GeneMap
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ShardTask:
    """All that a process needs to write one shard; sources pickle as their address."""

    out: Path
    shard: int
    own_row: int
    """The rows from here on begin in this shard and are tallied with it; the one before may straddle its border."""
    stop_row: int
    rows: tuple[SourceRows, ...]
    """From the first row with an entry in the shard to `stop_row`."""
    frozen: Normalization
    rows_per_block: int
    threads: int

    @property
    def tally(self) -> Path:
        """File of the sums."""
        return self.out / TALLY / f"{self.shard}.npz"


def write_counts(
    out: Path,
    layout: MatrixLayout,
    sources: Sequence[tuple[CellSource, GeneMap]],
    frozen: Normalization,
    rows_per_block: int,
    threads: int,
    progress: Callable[[int], object],
    run_each: RunEach = map,
) -> tuple[Normalization, NDArray[np.float64]]:
    """Write X, going on from whatever shards are done in `out`.

    Returns
    -------
    The normalization with the moments of genes, and (all cells,) size factors.
    """
    out = out.absolute()  # a process of a cluster may stand elsewhere
    begin_shards(out, layout)
    (out / TALLY).mkdir(exist_ok=True)
    tasks = [
        ShardTask(out, shard, own_row, stop_row, rows, frozen, rows_per_block, threads)
        for shard, own_row, stop_row, rows in _shares(layout, sources)
    ]
    left = [task for task in tasks if not (is_whole(out, layout, task.shard) and BlockSums.load(task.tally))]
    progress(layout.num_rows - sum(task.stop_row - task.own_row for task in left))
    for num_rows in run_each(write_shard, left):
        progress(num_rows)
    return join_sums((task.tally for task in tasks), layout.num_rows, frozen)


def begin_shards(out: Path, layout: MatrixLayout) -> None:
    """The metadata of X, without what a killed job left of unfinished shards."""
    create_matrix(out, layout)
    remove_unfinished(out)


def write_shard(task: ShardTask) -> int:
    """Write a shard and its tally; the number of rows tallied."""
    layout = read_layout(zarr.open_group(task.out, mode="r"), str(task.out))
    tally = Tally(layout.num_genes)

    def prepare(piece: tuple[SourceRows, bool]) -> tuple[CsrBlock, BlockSums | None]:
        rows, is_own = piece
        block = remap(rows.source.read(rows.first, rows.last), rows.gene_map, layout.num_genes)
        return block, block_sums(block, task.frozen) if is_own else None

    with AtlasWriter(task.out, layout, task.shard, task.shard + 1, task.threads) as writer:
        row = task.stop_row - sum(rows.last - rows.first for rows in task.rows)
        for block, sums in in_order(prepare, _pieces(task), task.threads):
            writer.write_from(row, block)
            row += block.num_rows
            if sums is not None:
                tally.add(sums)
        tally.sums().save(task.tally)
    return task.stop_row - task.own_row


def own_rows(layout: MatrixLayout) -> NDArray[np.int64]:
    """(num_shards + 1,): shard k owns the rows k to k + 1 of these, which begin in it; every row has one owner."""
    starts = np.arange(layout.num_shards + 1) * layout.shard_entries
    owned = np.searchsorted(layout.indptr, starts, side="left")
    owned[0], owned[-1] = 0, layout.num_rows
    return owned


def _shares(
    layout: MatrixLayout, sources: Sequence[tuple[CellSource, GeneMap]]
) -> Iterator[tuple[int, int, int, tuple[SourceRows, ...]]]:
    ends = np.cumsum([source.n_obs for source, _ in sources])
    owned = own_rows(layout).tolist()
    for shard in range(layout.num_shards):
        own_row, stop_row = owned[shard], owned[shard + 1]
        first_row = min(layout.rows_of_shard(shard)[0], own_row)
        rows = []
        for (source, gene_map), end in zip(sources, ends.tolist(), strict=True):
            start = end - source.n_obs
            if max(first_row, start) < min(stop_row, end):
                rows.append(SourceRows(source, gene_map, max(first_row, start) - start, min(stop_row, end) - start))
        yield shard, own_row, stop_row, tuple(rows)


def _pieces(task: ShardTask) -> Iterator[tuple[SourceRows, bool]]:
    """Blocks of the shard's rows, and whether they are its own; the rows of others come first."""
    others = sum(rows.last - rows.first for rows in task.rows) - (task.stop_row - task.own_row)
    for rows in task.rows:
        border = min(rows.first + others, rows.last)
        others -= border - rows.first
        for is_own, first, last in ((False, rows.first, border), (True, border, rows.last)):
            for start, stop in rows.source.cuts(task.rows_per_block, first, last) if first < last else ():
                yield SourceRows(rows.source, rows.gene_map, start, stop), is_own
