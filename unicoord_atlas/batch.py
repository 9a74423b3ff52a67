"""What the loaders hand to the model.  Shapes: n cells, g genes, l label columns, c continuous columns, z non-zeros."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Rows of a CSR matrix as tensors, in the compact types of the store until they are normalized on the device."""

    indptr: Tensor
    """(n + 1,) int64: row i holds the entries indptr[i]:indptr[i + 1]."""
    indices: Tensor
    """(z,) uint16 or int32: gene of each entry, strictly ascending within a row."""
    data: Tensor
    """(z,) uint8, uint16, uint32 or float32: value of each entry; 0 only where augmentation left nothing of it."""
    num_genes: int

    @property
    def num_rows(self) -> int:
        """Number of rows n."""
        return self.indptr.shape[0] - 1

    def to(self, device: torch.device | str, non_blocking: bool = True) -> SparseRows:
        """The same rows on another device, still in compact types."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, change: Callable[[Tensor], Tensor]) -> SparseRows:
        """The same rows with each tensor changed."""
        return SparseRows(change(self.indptr), change(self.indices), change(self.data), self.num_genes)

    def row_of_entry(self) -> Tensor:
        """(z,) int64: the row that each entry belongs to."""
        lengths = self.indptr.diff()
        return torch.repeat_interleave(
            torch.arange(self.num_rows, device=lengths.device), lengths, output_size=self.indices.shape[0]
        )

    def select(self, new_index_g: Tensor, num_genes: int) -> SparseRows:
        """Keep the genes with ``new_index_g >= 0`` under their new index, which must ascend with the old."""
        moved = new_index_g[self.indices.to(torch.int64)]
        keep = moved >= 0
        kept_before = torch.zeros(keep.shape[0] + 1, dtype=torch.int64, device=keep.device)
        torch.cumsum(keep, dim=0, out=kept_before[1:])
        data = self.data.to(torch.int32) if self.data.dtype in _UNSIGNED else self.data
        return SparseRows(kept_before[self.indptr], moved[keep].to(torch.int32), data[keep], num_genes)

    def cut(self, rows: slice) -> SparseRows:
        """Consecutive rows."""
        indptr = self.indptr[rows.start : rows.stop + 1]
        entries = slice(int(indptr[0]), int(indptr[-1]))
        return SparseRows(indptr - indptr[0], self.indices[entries], self.data[entries], self.num_genes)

    def take(self, entries_m: Tensor) -> SparseRows:
        """The same rows with some of their entries: (m,) int64 positions, ascending."""
        indices, data = (_taken(values_z, entries_m) for values_z in (self.indices, self.data))
        return SparseRows(torch.searchsorted(entries_m, self.indptr), indices, data, self.num_genes)

    def to_dense(self) -> Tensor:
        """(n, g) float32."""
        dense = torch.zeros((self.num_rows, self.num_genes), device=self.data.device)
        dense[self.row_of_entry(), self.indices.to(torch.int64)] = self.data.to(torch.float32)
        return dense

    def to_scipy(self) -> sp.csr_matrix:
        """(n, g) float32 values and int32 indices on the CPU, for programs that do not use tensors; copies."""
        # NumPy widens these types in one thread faster than torch in two, which wait for each other.
        parts = zip((self.data, self.indices, self.indptr), (np.float32, np.int32, np.int32), strict=True)
        widened = tuple(tensor.cpu().numpy().astype(dtype) for tensor, dtype in parts)
        return sp.csr_matrix(widened, shape=(self.num_rows, self.num_genes))


_UNSIGNED = (torch.uint16, torch.uint32)  # torch has few kernels for these; int32 holds every count that occurs
_SAME_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32}


def _taken(values_z: Tensor, entries: Tensor) -> Tensor:
    as_stored = values_z.view(_SAME_BITS.get(values_z.dtype, values_z.dtype))
    return as_stored.index_select(0, entries).view(values_z.dtype)


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """One minibatch of cells: raw counts, and per cell what normalization and the supervised losses need."""

    counts: SparseRows
    rows_n: Tensor
    """(n,) int64: position of each cell in its store."""
    size_factors_n: Tensor
    """(n,) float32: see `normalization`; 0 leaves the cell unscaled."""
    sources_n: Tensor
    """(n,) int64: index into the schema's sources, which says what genes were measured."""
    codes_nl: Tensor
    """(n, l) int64: category of each label column, -1 where unlabelled."""
    values_nc: Tensor
    """(n, c) float32: continuous labels, NaN where missing."""
    weights_n: Tensor
    """(n,) float32: 1, or 0 for a cell that only pads the batch."""
    neighborhood: Neighborhood | None = None
    """What the diffusion loss needs, if it is on and any cell carries it."""
    measured_sg: Tensor | None = None
    """(s, g) bool: genes of the atlas that each of `sources_n` measured; None: as the model knows of its sources."""

    def __len__(self) -> int:
        """Number of cells."""
        return self.rows_n.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> MiniBatch:
        """The same minibatch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def map(self, change: Callable[[Tensor], Tensor]) -> MiniBatch:
        """The same minibatch with each tensor changed."""
        near = self.neighborhood
        measured_sg = None if self.measured_sg is None else change(self.measured_sg)
        changed = replace(self._with(self.counts.map(change), change), measured_sg=measured_sg)
        return changed if near is None else replace(changed, neighborhood=near.map(change))

    def part(self, counts: SparseRows, positions_m: Tensor) -> MiniBatch:
        """Some of its cells, whose counts the caller has taken; without their neighbourhood."""
        return self._with(counts, lambda tensor: tensor[positions_m])

    def in_parts(self, most_entries: int) -> Iterator[MiniBatch]:
        """Consecutive cells with at most so many entries together, or one cell; without their neighbourhoods."""
        ends, start = self.counts.indptr.tolist(), 0
        while start < len(self):
            stop = max(bisect_right(ends, ends[start] + most_entries) - 1, start + 1)
            cells = slice(start, min(stop, len(self)))
            yield self._with(self.counts.cut(cells), itemgetter(cells))
            start = cells.stop

    def _with(self, counts: SparseRows, change: Callable[[Tensor], Tensor]) -> MiniBatch:
        """Other counts, and what else there is of each cell, changed."""
        return MiniBatch(
            counts,
            change(self.rows_n),
            change(self.size_factors_n),
            change(self.sources_n),
            change(self.codes_nl),
            change(self.values_nc),
            change(self.weights_n),
            measured_sg=self.measured_sg,
        )


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """Neighbours of the cells of a minibatch that carry the diffusion loss; see `losses.diffusion`.

    Shapes: m carrying cells, v live neighbours, d diffusion dimensions.
    """

    positions_m: Tensor
    """(m,) int64: position of each carrying cell in the minibatch."""
    carrying: MiniBatch
    """The carrying cells by themselves: m cells."""
    live: MiniBatch
    """The neighbours that are encoded with gradient: v cells."""
    owner_v: Tensor
    """(v,) int64: which carrying cell each is a neighbour of."""
    mean_md: Tensor
    """(m, d) sum of the remembered means of the neighbours that are not live."""
    variance_md: Tensor
    """(m, d) likewise of their variances."""
    counts_m: Tensor
    """(m,) int64: neighbours of each, live or not; at least 1."""
    share: float
    """Probability with which a cell carries the term."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Neighborhood:
        """The same neighbourhood with each tensor changed."""
        return Neighborhood(
            change(self.positions_m),
            self.carrying.map(change),
            self.live.map(change),
            change(self.owner_v),
            change(self.mean_md),
            change(self.variance_md),
            change(self.counts_m),
            self.share,
        )


@dataclass(frozen=True, slots=True)
class CellColumns:
    """Per-cell facts of ALL cells of a store, in stored order, from which a stream takes each minibatch's share."""

    size_factors: NDArray[np.float32]
    """(N,)"""
    sources: NDArray[np.int32]
    """(N,)"""
    codes: NDArray[np.int32]
    """(N, l), -1 where unlabelled."""
    values: NDArray[np.float32]
    """(N, c), NaN where missing."""

    def batch(self, counts: SparseRows, rows: NDArray[np.int64], weights: NDArray[np.float32]) -> MiniBatch:
        """The minibatch of these rows, whose counts the caller has read."""
        return MiniBatch(
            counts,
            torch.from_numpy(rows),
            torch.from_numpy(self.size_factors[rows]),
            torch.from_numpy(self.sources[rows].astype(np.int64)),
            torch.from_numpy(self.codes[rows].astype(np.int64)),
            torch.from_numpy(self.values[rows]),
            torch.from_numpy(weights),
        )
