"""Counts drawn burst by burst.  Shapes: n cells, g genes, t types, d donors, p programmes, z bursts, s slots.

A gene is expressed in Poisson many bursts of logarithmic size, which makes its count negative binomial (Quenouille
1949).  The cells of a block lie end to end on a line, each as long as the bursts expected of it, and in each cell lie
its genes in their order: a Poisson process on that line hits cells and genes in sorted order, so that rows come out as
CSR without a sort, at a cost that follows the bursts and not cells x genes.

What differs from cell to cell is applied by thinning: a burst is seen with the probability efficiency x activity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from .batch import CsrBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_SLOTS = 1 << 19
"""Resolution of a cell's line: a gene has its share of the slots, to a slot."""
_CELLS_AT_ONCE = 64
"""What one pass over the bursts of so many cells needs stays in the processor's cache."""
_GAP_UNIT = 1 << 24
_FEWEST_ENDING = np.float32(0.001)
"""A burst has 145 counts on average at most."""


@dataclass(frozen=True, slots=True)
class CellStates:
    """What is drawn for, cell by cell."""

    types_n: NDArray[np.intp]
    donors_n: NDArray[np.intp]
    depth_n: NDArray[np.float64]
    """Bursts before thinning, in multiples of the type's rates."""
    activity_np: NDArray[np.float32]
    """0..1: how much of a programme's bursts the cell has."""
    reads_n: NDArray[np.float32]
    """Counts that each molecule leaves on average: 1 where molecules are counted."""


@dataclass(frozen=True, slots=True)
class BurstModel:
    """Types and donors that cells are drawn of."""

    slots_ts: NDArray[np.integer]
    """Gene of each slot of the line of a type."""
    bursts_t: NDArray[np.float64]
    """Bursts expected of a cell of depth 1, before thinning."""
    ending_tg: NDArray[np.float32]
    """1 - parameter of the logarithmic sizes."""
    efficiency_dg: NDArray[np.float32]
    """0..1: how well a gene is seen in a donor's cells."""
    programme_g: NDArray[np.intp]
    """Programme of each gene."""

    def draw(self, cells: CellStates, rng: np.random.Generator) -> CsrBlock:
        """Counts of these cells, float32, genes ascending within a cell."""
        order = np.argsort(cells.types_n, kind="stable")  # one type at a time: its slots then stay in the cache
        borders = np.flatnonzero(np.diff(cells.types_n[order])) + 1
        lots = [
            lot[start : start + _CELLS_AT_ONCE]
            for lot in np.split(order, borders)
            for start in range(0, len(lot), _CELLS_AT_ONCE)
        ]
        lengths, genes, counts = zip(*(self._draw_lot(cells, lot, rng) for lot in lots), strict=True)
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        shape = len(order), len(self.programme_g)
        rows = sp.csr_matrix((np.concatenate(counts), np.concatenate(genes), indptr), shape, copy=False)
        rows = rows[np.argsort(order)]
        return CsrBlock(rows.indptr.astype(np.int64), rows.indices, rows.data)

    def _draw_lot(
        self, cells: CellStates, lot: NDArray[np.intp], rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.float32]]:
        """Entries of each of some cells of one type, and the genes and counts of these entries."""
        kind, num_genes, num_programmes = cells.types_n[lot[0]], len(self.programme_g), cells.activity_np.shape[1]
        hits_n, slot_z = draw_slots(self.bursts_t[kind] * cells.depth_n[lot], rng, self.slots_ts.shape[1])
        gene_z = self.slots_ts[kind].take(slot_z)
        of_donor = np.repeat(cells.donors_n[lot] * num_genes, hits_n) + gene_z
        of_cell = np.repeat(lot * num_programmes, hits_n) + self.programme_g.take(gene_z)
        seen_z = self.efficiency_dg.ravel().take(of_donor) * cells.activity_np.ravel().take(of_cell)
        kept = np.flatnonzero(uniform(len(seen_z), rng) <= seen_z)

        row_z, gene_z = np.repeat(np.arange(len(lot)), hits_n).take(kept), gene_z.take(kept)
        ending_z = self.ending_tg[kind].take(gene_z) / cells.reads_n[lot].take(row_z)
        following_z = 1 - np.maximum(ending_z, _FEWEST_ENDING)
        sizes_z = draw_sizes(following_z, rng)
        is_first = np.ones(len(kept), np.bool_)
        is_first[1:] = (gene_z[1:] != gene_z[:-1]) | (row_z[1:] != row_z[:-1])
        first, again = np.flatnonzero(is_first), np.flatnonzero(~is_first)
        counts = sizes_z.take(first)
        np.add.at(counts, again - np.arange(1, len(again) + 1), sizes_z.take(again))
        return np.bincount(row_z.take(first), minlength=len(lot)), gene_z.take(first).astype(np.int32), counts


def draw_slots(
    bursts_n: NDArray[np.float64], rng: np.random.Generator, num_slots: int = NUM_SLOTS
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Poisson many bursts: how many each cell has, and the slot of each, ascending within a cell."""
    # Sorted uniform numbers are partial sums of exponential gaps over their total; whole numbers sum ten times faster.
    ends = np.cumsum(bursts_n)
    gaps = np.log(uniform(rng.poisson(ends[-1]) + 1, rng))
    gaps *= np.float32(-_GAP_UNIT)
    places = np.cumsum(gaps.astype(np.int64))
    unit = places[-1] / ends[-1]
    places = places[:-1]
    hits_n = np.diff(np.searchsorted(places, (ends * unit).astype(np.int64)), prepend=0)
    offset = places - np.repeat(((ends - bursts_n) * unit).astype(np.int64), hits_n)
    slot_z = (offset * np.repeat(num_slots / np.maximum(bursts_n * unit, 1), hits_n)).astype(np.int64)
    return hits_n, np.clip(slot_z, 0, num_slots - 1, out=slot_z)  # rounding may put one on the border


def draw_sizes(following_z: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Logarithmic numbers, (p**k / k) / -log(1 - p) for k = 1, 2, ..., of these parameters p.

    Source: Kemp 1981, "Efficient generation of logarithmically distributed pseudo-random variables", algorithm LK.
    """
    v_z = uniform(len(following_z), rng)
    sizes_z = np.ones(len(following_z), np.float32)
    larger = np.flatnonzero(v_z < following_z)
    v, p = v_z.take(larger), following_z.take(larger)
    q = 1 - np.exp(np.log(1 - p) * uniform(len(larger), rng))
    sizes_z[larger] = np.maximum(np.floor(1 + np.log(v) / np.log(np.clip(q, 1e-7, 1 - 6e-8))), 1)
    return sizes_z


def uniform(num: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Multiples of 2**-24 over 0 and up to 1; `rng.random` would take twice as long, and a third of all the time."""
    bits = rng.bit_generator.random_raw((num + 1) // 2).view(np.uint32)[:num] >> 8
    numbers = (bits + 1).astype(np.float32)
    numbers *= np.float32(2**-24)
    return numbers


def burst_rates(
    mean_g: NDArray[np.float64], shape_g: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Bursts and the parameter of their sizes that give negative binomial counts of this mean and shape r.

    The variance is mean + mean**2 / r.
    """
    following_g = mean_g / (mean_g + shape_g)
    return shape_g * np.log1p(mean_g / shape_g), following_g.astype(np.float32)


def gene_slots(
    bursts_g: NDArray[np.float64], rng: np.random.Generator, num_slots: int = NUM_SLOTS
) -> NDArray[np.int64]:
    """(s,) gene of each slot; what a gene has over whole slots is one more with that probability."""
    edges = np.floor(np.cumsum(bursts_g) * (num_slots / bursts_g.sum()) + rng.random())
    edges[-1] = num_slots
    genes = np.arange(len(bursts_g), dtype=np.uint16 if len(bursts_g) <= 1 << 16 else np.int32)
    return np.repeat(genes, np.diff(edges, prepend=0).astype(np.int64))


def depth_of_genes(bursts_g: NDArray[np.float64], wanted_n: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) depth at which cells of these rates show so many different genes on average."""
    depths = np.geomspace(1e-3, 1e3, 49)
    shown = np.array([-np.expm1(-depth * bursts_g).sum() for depth in depths])
    depth_n: NDArray[np.float64] = np.exp(np.interp(np.log(wanted_n), np.log(shown), np.log(depths)))
    return depth_n
