"""What a graph needs of the counts, each in one streamed pass: moments and products of genes, scores of cells.

A pass sums over pieces of a fixed number of cells, in order: threads, processes and interruptions change nothing.
Shapes: n cells of a piece, g genes (all, or the chosen ones), d components.
"""

from __future__ import annotations

import zipfile
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from unicoord_atlas.neighbors.highly_variable import amount_moments, amount_sums
from unicoord_atlas.neighbors.pca import Components, ProductSums, principal_components

from .row_matrix import bounded_cuts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

    from .row_file import RowFile
    from .store import CellStore

Item = TypeVar("Item")
Result = TypeVar("Result")

PIECE = 16_384
"""Cells of a piece."""
_BLOCK = 2_048
"""Cells that are dense in memory together: 16 MB at 2,000 genes."""
_PIECES_PER_SAVE = 8


class RunPieces(Protocol):
    """`map` with results in order: `in_order` in threads, or Dask."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of the function, a bounded number of them ahead of who asks."""
        ...


Rows = tuple[int, int]


def pieces(num_rows: int, start: int = 0, size: int = PIECE) -> list[Rows]:
    """Row ranges of a pass that begins at `start`."""
    return [(first, min(first + size, num_rows)) for first in range(start, num_rows, size)]


def moments_of_amounts(
    store: CellStore, run: RunPieces, saved: Path | None = None, progress: Callable[[int], object] = int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(g,) mean and variance of the normalized counts of all genes; see `neighbors.highly_variable`."""
    zero = (np.zeros((2, store.n_vars)),)
    (sums_2g,) = summed(zero, partial(_amounts_of_piece, store), pieces(store.n_obs), run, saved, progress)
    return amount_moments(sums_2g, store.n_obs)


def components_of_genes(
    store: CellStore,
    genes: NDArray[np.int64],
    num_components: int,
    run: RunPieces,
    saved: Path | None = None,
    progress: Callable[[int], object] = int,
) -> Components:
    """Principal components of the log-normalized values of some genes."""
    centre_g = store.normalization.mean_g[genes]
    zero = (np.zeros(len(genes)), np.zeros((len(genes), len(genes)), order="F"))
    of_piece = partial(_products_of_piece, store, genes, centre_g)
    with _one_blas_thread():
        sums_g, products_gg = summed(zero, of_piece, pieces(store.n_obs), run, saved, progress)
        return principal_components(sums_g, products_gg, centre_g, store.n_obs, num_components)


def write_scores(
    store: CellStore,
    genes: NDArray[np.int64],
    components: Components,
    out: RowFile,
    run: RunPieces,
    progress: Callable[[int], object],
) -> None:
    """Append the scores of all cells that `out` does not have yet."""
    progress(out.next_row)
    left = pieces(store.n_obs, out.next_row)
    with _one_blas_thread():
        for scores_nd in run(partial(_scores_of_piece, store, genes, components), left):
            out.append(scores_nd)
            progress(len(scores_nd))


def summed(
    zero: tuple[NDArray[np.float64], ...],
    function: Callable[[Rows], tuple[NDArray[Any], ...]],
    items: list[Rows],
    run: RunPieces,
    saved: Path | None,
    progress: Callable[[int], object],
) -> tuple[NDArray[np.float64], ...]:
    """Sums of what the function says of each piece, going on from what a killed pass saved."""
    done, sums = _load(saved, zero)
    progress(items[done - 1][1] if done else 0)
    for (start, stop), parts in zip(items[done:], run(function, items[done:]), strict=True):
        for total, part in zip(sums, parts, strict=True):
            total += part
        done += 1
        if saved is not None and (done % _PIECES_PER_SAVE == 0 or done == len(items)):
            _save(saved, done, sums)
        progress(stop - start)
    return sums


def _one_blas_thread() -> threadpool_limits:
    """The last bits of a product depend on the number of BLAS threads; those of a graph must not.

    Whoever runs a pass holds it, as in one process only one thread can; a piece does so for a worker of a cluster.
    """
    return threadpool_limits(1, user_api="blas")


def _amounts_of_piece(store: CellStore, rows: Rows) -> tuple[NDArray[np.float64]]:
    sums_2g = np.zeros((2, store.n_vars))
    for start, stop, block in blocks_of(store, rows):
        sums_2g += amount_sums(block, scales_of(store, slice(start, stop)), store.n_vars)
    return (sums_2g,)


def _products_of_piece(
    store: CellStore, genes: NDArray[np.int64], centre_g: NDArray[np.float64], rows: Rows
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    sums = ProductSums(len(genes))
    with _one_blas_thread():
        for values_ng in dense_blocks(store, genes, rows):
            values_ng -= centre_g.astype(np.float32)
            sums.add(values_ng)
    return sums.sums_g, sums.products_gg


def _scores_of_piece(
    store: CellStore, genes: NDArray[np.int64], components: Components, rows: Rows
) -> NDArray[np.float32]:
    with _one_blas_thread():
        return np.concatenate([components.project(values_ng) for values_ng in dense_blocks(store, genes, rows)])


def dense_blocks(store: CellStore, genes: NDArray[np.int64], rows: Rows) -> Iterator[NDArray[np.float32]]:
    """Log-normalized values of some genes, a block of cells at a time; each block is the caller's to change."""
    place_g = np.full(store.n_vars, -1, np.int32)
    place_g[genes] = np.arange(len(genes), dtype=np.int32)
    for start, stop, block in blocks_of(store, rows):
        places = place_g[block.indices]
        kept = np.flatnonzero(places >= 0)
        entries_n = np.diff(np.searchsorted(kept, block.indptr))
        values = block.data[kept].astype(np.float64)
        scales_n = scales_of(store, slice(start, stop))
        if scales_n is not None:
            values *= np.repeat(scales_n, entries_n)
            np.log1p(values, out=values)
        dense_ng = np.zeros((stop - start, len(genes)), np.float32)
        dense_ng[np.repeat(np.arange(stop - start), entries_n), places[kept]] = values
        yield dense_ng


def blocks_of(store: CellStore, rows: Rows) -> Iterator[tuple[int, int, CsrBlock]]:
    """First row, the row past the last, and the counts of each block of a piece."""
    for start, stop in bounded_cuts(store.indptr, _BLOCK, *rows):
        read = store.read_ranges(np.array([[start, stop]], np.int64))
        yield start, stop, read


def scales_of(store: CellStore, rows: slice | NDArray[np.int64]) -> NDArray[np.float64] | None:
    """(n,) what the counts of these cells are multiplied by; None for log-normalized input."""
    if store.normalization.log_input:
        return None
    factors_n = store.size_factors[rows]
    return np.divide(store.normalization.target_sum, factors_n, out=np.ones(len(factors_n)), where=factors_n > 0)


def _load(saved: Path | None, zero: tuple[NDArray[np.float64], ...]) -> tuple[int, tuple[NDArray[np.float64], ...]]:
    if saved is None:
        return 0, zero
    try:
        with np.load(saved) as before:
            return int(before["arr_0"]), tuple(before[f"arr_{number}"] for number in range(1, len(zero) + 1))
    except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return 0, zero


def _save(saved: Path, done: int, sums: tuple[NDArray[np.float64], ...]) -> None:
    partial_file = saved.with_suffix(".partial")
    with partial_file.open("wb") as file:
        np.savez(file, np.array(done), *sums)
    partial_file.replace(saved)
