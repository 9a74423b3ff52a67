"""Negative binomial counts of many cells, drawn by compiled code.

Shapes: n cells, g genes, h genes drawn densely, d donors, p programmes, k kinds of cells, s slots, z entries.

A gene's mean in a cell is depth x its kind's mean x the donor's efficiency x the activity of the gene's programme, and
its variance mean + mean**2: the shape r of the negative binomial is 1, which makes it geometric.  The few genes that
many cells show are drawn one by one.  The many that few cells show are drawn by a Poisson process along a line on
which every gene has a stretch as long as its mean, at a cost that follows the counts and not cells x genes; mean**2 is
nothing to them.

Each cell has random numbers of its own, a function of (key, its number): how many cells are drawn at once changes
nothing.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .errors import UsageError

try:
    import numba
except ModuleNotFoundError:
    raise UsageError("simulate needs numba; pip install 'unicoord-atlas[simulate]'") from None

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_DENSE_FROM = 0.15
"""Mean count from which a gene is drawn by itself: there one costs what the other does."""
_SLOTS_PER_GENE = 2
_MOST_COUNTS = 50_000
_ENTRIES_AT_ONCE = 1 << 18

# Quantiles of the exponential distribution with mean 1: a look-up in the innermost cache costs a fifth of a logarithm.
_GAP_BITS = 12
_GAPS = -np.log((np.arange(1 << _GAP_BITS) + 0.5) / (1 << _GAP_BITS)).astype(np.float32)


class CellStates(NamedTuple):
    """What is drawn for, cell by cell."""

    kinds_n: NDArray[np.int64]
    donors_n: NDArray[np.int64]
    depth_n: NDArray[np.float32]
    activity_np: NDArray[np.float32]
    """0..1; the last column, for genes of no programme, is 1."""


class CountModels(NamedTuple):
    """What cells of each kind are drawn from; see `count_models`."""

    programme_g: NDArray[np.uint16]
    efficiency_dg: NDArray[np.float32]
    reads_k: NDArray[np.float32]
    gene_ks: NDArray[np.unsignedinteger]
    """Gene of each slot of a kind's line, as narrow as can be: it is read all over."""
    rate_k: NDArray[np.float64]
    """Molecules of a line's genes together, at depth 1."""
    dense_h: NDArray[np.uint32]
    """Genes drawn by themselves, ascending within a kind, kind after kind."""
    dense_programme_h: NDArray[np.uint16]
    dense_mean_h: NDArray[np.float32]
    dense_ends_k: NDArray[np.int64]
    """Where a kind's dense genes end; the first is 0 and belongs to none."""


def count_models(
    mean_kg: Sequence[NDArray[np.float32]],
    typical_depth_k: Sequence[float],
    reads_k: Sequence[float],
    efficiency_dg: NDArray[np.float32],
    programme_g: NDArray[np.integer],
    rng: np.random.Generator,
) -> CountModels:
    """What cells of several kinds are drawn from.

    Parameters
    ----------
    mean_kg
        Mean counts of each kind at depth 1, efficiency 1 and activity 1.
    typical_depth_k
        Depth of most of its cells: it decides which genes are drawn by themselves, and so the speed only.
    reads_k
        Counts that a molecule leaves on average; 1 where molecules are counted.
    efficiency_dg
        0..1: how well a gene is seen in a donor's cells.
    programme_g
        Column of the activity of each gene.
    rng
        For what a gene has over whole slots.
    """
    dense, means, lines, rates = [], [], [], []
    for mean_g, depth in zip(mean_kg, typical_depth_k, strict=True):
        is_dense = mean_g * depth > _DENSE_FROM
        dense.append(np.flatnonzero(is_dense).astype(np.uint32))
        means.append(mean_g[is_dense])
        rate_g = np.where(is_dense, 0, mean_g).astype(np.float64)
        rates.append(rate_g.sum())
        lines.append(gene_slots(rate_g, rng))
    return CountModels(
        programme_g=programme_g.astype(np.uint16),
        efficiency_dg=efficiency_dg,
        reads_k=np.asarray(reads_k, np.float32),
        gene_ks=np.stack(lines).astype(np.min_scalar_type(len(programme_g))),
        rate_k=np.asarray(rates),
        dense_h=np.concatenate(dense),
        dense_programme_h=programme_g.take(np.concatenate(dense)).astype(np.uint16),
        dense_mean_h=np.concatenate(means).astype(np.float32),
        dense_ends_k=np.cumsum([0, *map(len, dense)]),
    )


def gene_slots(rate_g: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint32]:
    """(s,) gene of each slot of a line; what a gene has over whole slots is one more with that probability."""
    slots: NDArray[np.uint32] = _filled_slots(rate_g, rng.random(), _SLOTS_PER_GENE * len(rate_g))
    return slots


def draw_counts(
    models: CountModels, cells: CellStates, key: int, first: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]]:
    """CSR parts (entries of each cell, genes ascending, counts) of cells numbered from `first`, some at a time.

    The arrays are reused: what is yielded is valid until the next part is asked for.
    """
    room = _ENTRIES_AT_ONCE + len(models.programme_g)
    genes, counts = np.empty(room, np.int32), np.empty(room, np.float32)
    ends_n = np.zeros(len(cells.kinds_n) + 1, np.int64)
    start = 0
    while start < len(cells.kinds_n):
        stop = _draw(models, cells, np.uint64(key), first, start, _GAPS, genes, counts, ends_n)
        lengths_n = np.diff(ends_n[start : stop + 1])
        yield lengths_n, genes[: ends_n[stop]], counts[: ends_n[stop]]
        ends_n[stop] = 0
        start = stop


@numba.njit(nogil=True, cache=True)
def _filled_slots(rate_g, offset, num_slots):  # type: ignore[no-untyped-def]
    slots = np.empty(num_slots, np.uint32)
    total = 0.0
    for rate in rate_g:
        total += rate
    scale, end, filled = num_slots / max(total, 1e-300), 0.0, 0
    for gene in range(len(rate_g)):
        end += rate_g[gene]
        edge = num_slots if gene == len(rate_g) - 1 else min(int(np.floor(end * scale + offset)), num_slots)
        slots[filled:edge] = gene
        filled = edge
    return slots


@numba.njit(inline="always")
def _mixed(x):  # type: ignore[no-untyped-def]
    """A random number by a counter: the output function of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(inline="always")
def _share(x, low):  # type: ignore[no-untyped-def]
    """A number between 0 and 1, neither included, by a 32-bit counter and a key: cheap in vector registers."""
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)) ^ low  # products are wider than 32 bits
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    x = np.uint32(x ^ (x >> np.uint32(16)))
    return (np.float32(np.int32(x >> np.uint32(8))) + np.float32(0.5)) * np.float32(2**-24)


@numba.njit(nogil=True, cache=True)
def _draw(models, cells, key, first, start, gaps, genes, counts, ends_n):  # type: ignore[no-untyped-def]
    """Fill genes and counts with cells from `start` on while another is sure to fit; returns the next cell."""
    num_genes = len(models.programme_g)
    means = np.empty(num_genes + 1, np.float32)
    u_h = np.empty(num_genes, np.float32)
    genes_z, counts_z = np.empty(num_genes + 1, np.uint32), np.empty(num_genes + 1, np.float32)
    genes_y, counts_y = np.empty(num_genes + 1, np.uint32), np.empty(num_genes + 1, np.float32)
    filled = 0
    for i in range(start, len(cells.kinds_n)):
        if filled + num_genes > len(genes):
            return i
        kind, depth, efficiency_g, activity_p = (
            cells.kinds_n[i], cells.depth_n[i], models.efficiency_dg[cells.donors_n[i]], cells.activity_np[i]
        )  # fmt: skip
        x = _mixed(key + np.uint64(first + i) * np.uint64(0xD1342543DE82EF95))
        own = slice(models.dense_ends_k[kind], models.dense_ends_k[kind + 1])
        num_dense = _draw_dense(
            models.dense_h[own], models.dense_programme_h[own], models.dense_mean_h[own],
            depth, efficiency_g, activity_p, x, means, u_h, genes_z, counts_z,
        )  # fmt: skip
        num_sparse = _draw_sparse(
            models.gene_ks[kind], models.programme_g, depth * models.rate_k[kind],
            efficiency_g, activity_p, x, gaps, genes_y, counts_y,
        )  # fmt: skip
        end = _merge(genes_z, counts_z, num_dense, genes_y, counts_y, num_sparse, genes, counts, filled)
        if models.reads_k[kind] > 1:
            for j in range(filled, end):
                x += np.uint64(0x9E3779B97F4A7C15)
                counts[j] = ceil(counts[j] * models.reads_k[kind] * gaps[_mixed(x) >> np.uint64(64 - _GAP_BITS)])
        filled = end
        ends_n[i + 1] = filled
    return len(cells.kinds_n)


@numba.njit
def _draw_dense(  # type: ignore[no-untyped-def]
    dense_h, programme_h, mean_h, depth, efficiency_g, activity_p, x, means, u_h, genes, counts
):
    """One random number a gene; a count is at least j with probability q**j, q = mean / (mean + 1)."""
    one, high, low = np.float32(1), np.uint32(x), np.uint32(x >> np.uint64(32))
    for h in range(len(dense_h)):  # by itself, so that it runs in vector registers
        u_h[h] = _share(np.uint32(np.uint32(h) * np.uint32(0x9E3779B9) + high), low)
    filled = 0
    for h in range(len(dense_h)):
        gene = dense_h[h]
        mean = mean_h[h] * depth * efficiency_g[gene] * activity_p[programme_h[h]]
        genes[filled], counts[filled], means[filled] = gene, u_h[h], mean
        filled += u_h[h] * (mean + one) < mean  # as often as not: no branch to guess
    for j in range(filled):
        u, q = counts[j], means[j] / (means[j] + one)
        count = one if u > q * q else np.floor(np.log(u) / np.log(q))
        counts[j] = min(count, np.float32(_MOST_COUNTS))
    return filled


@numba.njit
def _draw_sparse(line, programme_g, expected, efficiency_g, activity_p, x, gaps, genes, counts):  # type: ignore[no-untyped-def]
    """What falls on a gene's slots is seen with its probability."""
    if expected <= 0:
        return 0
    gap = np.float64(len(line)) / expected
    filled, place = 0, gap * gaps[_mixed(x) >> np.uint64(64 - _GAP_BITS)]
    while place < len(line):
        gene = line[np.uint64(place)]
        x += np.uint64(0x9E3779B97F4A7C15)
        r = _mixed(x)
        place += gap * gaps[r >> np.uint64(64 - _GAP_BITS)]
        share = (np.float32(np.int32(r & np.uint64(0xFFFFFF))) + np.float32(0.5)) * np.float32(2**-24)
        seen = share < efficiency_g[gene] * activity_p[programme_g[gene]]
        if filled > 0 and genes[filled - 1] == gene:
            counts[filled - 1] += seen
        else:
            genes[filled], counts[filled] = gene, np.float32(1)
            filled += seen
    return filled


@numba.njit
def _merge(genes_z, counts_z, num_z, genes_y, counts_y, num_y, genes, counts, filled):  # type: ignore[no-untyped-def]
    """Two ascending lists of other genes as one."""
    genes_z[num_z] = genes_y[num_y] = np.uint32(0xFFFFFFFF)
    z = y = 0
    end = filled + num_z + num_y
    for j in range(filled, end):
        is_z = genes_z[z] < genes_y[y]
        genes[j] = genes_z[z] if is_z else genes_y[y]
        counts[j] = counts_z[z] if is_z else counts_y[y]
        z += is_z
        y += not is_z
    return end


def depth_of_genes(mean_g: NDArray[np.float32], wanted_n: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n,) depth at which cells of these means show so many different genes on average."""
    bins_g = mean_g.view(np.uint32) >> 18  # means that differ by less than a thirtieth
    number_b = np.bincount(bins_g)
    mean_b = np.bincount(bins_g, mean_g)[number_b > 0] / number_b[number_b > 0]
    depths = np.geomspace(1e-3, 1e3, 25)
    shown = (1 - 1 / (1 + depths[:, None] * mean_b)) @ number_b[number_b > 0]
    depth_n: NDArray[np.float64] = np.exp(np.interp(np.log(wanted_n), np.log(shown), np.log(depths)))
    return depth_n.astype(np.float32)
