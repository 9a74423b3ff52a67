"""NeighborStream: minibatches that bring along what the diffusion loss needs of their cells' neighbours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from unicoord_atlas.batch import Neighborhood, SparseRows
from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.losses.diffusion import choose_live
from unicoord_atlas.model.noise import Noise, Purpose

from .take_rows import take_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from unicoord_atlas.batch import CellColumns, MiniBatch
    from unicoord_atlas.training.latent_table import LatentTable

    from .store import CellStore
    from .stream import CellStream


class NeighborSource(Protocol):
    """A graph of the store's cells."""

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(n + 1,) where the neighbours of each of these cells begin, and the neighbours' rows."""
        ...


@dataclass(frozen=True, slots=True)
class NeighborSettings:
    """How much of the diffusion loss is computed in a step."""

    share: float
    """Of the cells that carry the term."""
    live: int
    """Neighbours of each that are encoded; the others come from the latent table."""
    seed: int


@dataclass
class _Counts:
    """Of an epoch so far."""

    cells: int = 0
    carrying: int = 0
    rows_read: int = 0
    remembering: int = 0
    """Batches with remembered neighbours."""
    ages: float = 0.0
    """Sum over these of the median age."""


class NeighborStream:
    """A CellStream whose minibatches have a `neighborhood`.

    Neighbours that are no training cells are left out, or held-out cells would be learned from.  What is drawn depends
    on (seed, epoch, cell) only.
    """

    def __init__(
        self,
        stream: CellStream,
        store: CellStore,
        columns: CellColumns,
        neighbors: NeighborSource,
        table: LatentTable,
        trained: NDArray[np.bool_],
        settings: NeighborSettings,
    ) -> None:
        self._stream, self._store, self._columns = stream, store, columns
        self._neighbors, self._table, self._trained, self._settings = neighbors, table, trained, settings
        self._epoch = 0
        self._counts, self._next_counts = _Counts(), _Counts()

    def __len__(self) -> int:
        """Batches that the coming iteration yields."""
        return len(self._stream)

    def __iter__(self) -> Iterator[MiniBatch]:
        self._counts, self._next_counts = self._next_counts, _Counts()
        for batch in self._stream:
            yield replace(batch, neighborhood=self._around(batch))

    def set_epoch(self, epoch: int) -> None:
        """See CellStream."""
        self._epoch = epoch
        self._counts, self._next_counts = _Counts(), _Counts()
        self._stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See CellStream; with what `facts` counts, so that an epoch that was cut short says the same of itself."""
        return {**self._stream.state_dict(), "neighbors": asdict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See CellStream."""
        state = dict(state)
        self._counts = _Counts(**state.pop("neighbors", {}))
        self._next_counts = replace(self._counts)  # nothing may be left to iterate over
        self._stream.load_state_dict(state)
        self._epoch = state["epoch"]

    def facts(self) -> dict[str, float]:
        """Of this rank's epoch so far, for the log.

        Live neighbours read; median age in steps of the remembered ones, a mean over minibatches; share of the cells
        that carried the term, and how many live neighbours each of these had, as they came out.
        """
        counts = self._counts
        return {
            "diffusion_rows_read": float(counts.rows_read),
            "diffusion_median_age": counts.ages / max(counts.remembering, 1),
            "diffusion_share": counts.carrying / max(counts.cells, 1),
            "diffusion_live": counts.rows_read / max(counts.carrying, 1),
        }

    def _around(self, batch: MiniBatch) -> Neighborhood | None:
        """The neighbourhood of the cells that carry the term; None if no cell does."""
        noise = Noise(self._settings.seed, self._epoch, batch.rows_n)
        self._counts.cells += int((batch.weights_n > 0).sum())
        drawn_n = noise.uniform(Purpose.DIFFUSION_SHARE, 1)[:, 0] < self._settings.share
        positions = np.flatnonzero((drawn_n & (batch.weights_n > 0)).numpy())
        indptr, indices = self._neighbors.of(batch.rows_n.numpy()[positions])
        kept = self._trained[indices]
        owners = np.repeat(np.arange(len(positions)), np.diff(indptr))[kept]
        near = indices[kept].astype(np.int64)
        counts = np.bincount(owners, minlength=len(positions))
        some = counts > 0
        if not some.any():
            return None
        owners = (np.cumsum(some) - 1)[owners]
        positions, counts = positions[some], counts[some]
        self._counts.carrying += len(positions)
        live = self._live(replace(noise, rows_n=batch.rows_n[torch.from_numpy(positions)]), owners, near)
        self._counts.rows_read += int(live.sum())
        if not live.all():
            self._counts.remembering += 1
            self._counts.ages += self._table.median_age(near[~live])
        mean_md, variance_md = self._table.sums(near[~live], owners[~live], len(positions))
        return Neighborhood(
            positions_m=torch.from_numpy(positions),
            carrying=_part(batch, positions),
            live=self._read(near[live]),
            owner_v=torch.from_numpy(owners[live]),
            mean_md=mean_md,
            variance_md=variance_md,
            counts_m=torch.from_numpy(counts),
            share=self._settings.share,
        )

    def _live(self, noise: Noise, owners: NDArray[np.int64], near: NDArray[np.int64]) -> NDArray[np.bool_]:
        owner_e = torch.from_numpy(owners)
        priority_e = noise.entry_bits(Purpose.DIFFUSION_LIVE, owner_e, torch.from_numpy(near))
        drawn: NDArray[np.bool_] = choose_live(owner_e, priority_e, self._settings.live).numpy()
        return drawn

    def _read(self, rows: NDArray[np.int64]) -> MiniBatch:
        counts = self._store.read_ranges(np.stack([rows, rows + 1], axis=1))
        return self._columns.batch(_tensors(counts, self._store.n_vars), rows, np.ones(len(rows), np.float32))


def _part(batch: MiniBatch, positions: NDArray[np.int64]) -> MiniBatch:
    """Some cells of a minibatch on the host."""
    counts = batch.counts
    taken = take_rows(CsrBlock(counts.indptr.numpy(), counts.indices.numpy(), counts.data.numpy()), positions)
    return batch.part(_tensors(taken, counts.num_genes), torch.from_numpy(positions))


def _tensors(rows: CsrBlock, num_genes: int) -> SparseRows:
    return SparseRows(
        torch.from_numpy(rows.indptr), torch.from_numpy(rows.indices), torch.from_numpy(rows.data), num_genes
    )
