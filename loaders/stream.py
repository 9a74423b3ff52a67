"""CellStream: random minibatches from a store larger than memory, resumable to the cell, on any number of ranks."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from unicoord_atlas.errors import ConfigError, DataError

from .plan import ALONE, Cut, EpochPlan, Order, Partition
from .prefetch import read_ahead, read_in_workers
from .sampling import draw_rows
from .window import Window, read_window

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from unicoord_atlas.batch import CellColumns, MiniBatch

    from .store import CellStore, CsrBuffer

STATE_VERSION = 1
_STORED_CELLS, _STORED_BYTES = 4_096, 1 << 27
"""In memory together where cells come in the order of the store."""


class CellStream:
    """Minibatches of the cells of a store; each iteration is an epoch.

    Parameters
    ----------
    store
        Where counts are read.
    columns
        What else a minibatch carries, for all cells of the store.
    batch_size
        Cells a minibatch.
    seed
        With the epoch it fixes the order.
    order
        "shuffled", or "stored" for inference: each cell once, in the order of the store.
    rows
        Which cells: any ascending rows of the store; all of them if None.
    weights
        (N,) how often each cell of the store is drawn in relation to the others, see `sampling`; an epoch has as many
        draws as there are cells with a weight.  None: each cell once.
    window_cells
        Cells that are shuffled together; fewer where `memory_bytes` demands it, or where nothing is shuffled.
    block_cells
        Cells read in one piece.
    memory_bytes
        What the window in use and those that are read ahead take together, at most.
    partition
        Which share of the cells this process gets.
    drop_last
        Leave out the cells of each rank's last, smaller batch.  Otherwise a cell of weight 0 pads the last batch of a
        rank that has one cell less than the others.
    num_workers
        Processes that read; 0 reads in threads of this one, which is faster unless the store decodes in Python.
    pinned
        Counts of minibatches lie in pinned memory, from where a GPU fetches them while the host does other work.
    """

    def __init__(
        self,
        store: CellStore,
        columns: CellColumns,
        *,
        batch_size: int,
        seed: int = 0,
        order: Order = "shuffled",
        rows: NDArray[np.int64] | None = None,
        weights: NDArray[np.float64] | None = None,
        window_cells: int = 20_000,
        block_cells: int = 256,
        memory_bytes: int = 1 << 30,
        partition: Partition = ALONE,
        drop_last: bool = False,
        num_workers: int = 0,
        pinned: bool = False,
    ) -> None:
        if rows is not None and (
            np.any(np.diff(rows) <= 0) or (len(rows) and not 0 <= rows[0] <= rows[-1] < store.n_obs)
        ):
            raise ConfigError(f"rows must ascend within 0..{store.n_obs - 1}")
        self._store = store
        self._columns = columns
        self._seed = seed
        self._order: Order = order
        self._selected = rows
        self._weights = weights
        self._rank = partition.rank
        self._drop_last = drop_last
        self._num_workers = num_workers
        self._pinned = pinned
        self._epoch = 0
        self._past: tuple[tuple[Cut, int], ...] = ()
        """Cuts that this epoch was read with before, and the batches each rank delivered."""
        cut = Cut(partition.world_size, batch_size, 1, block_cells)
        if order == "stored":  # nothing is mixed
            window_cells, memory_bytes = min(window_cells, _STORED_CELLS), min(memory_bytes, _STORED_BYTES)
        # Cells that are drawn often lie together in blocks of their own, which may hold more entries than any others.
        fits = cells_in_memory(store, self._rows(), block_cells, memory_bytes // (2 + 2 * num_workers))
        self._cut = replace(cut, window_batches=max(min(window_cells, fits) // batch_size, 1))
        self._start = 0
        self._done = 0
        if order == "shuffled" and fits < min(batch_size, self._plan().num_cells):
            _warn_of_memory(memory_bytes, fits, batch_size)
        if drop_last and self._plan().num_batches == 0:
            raise ConfigError(
                f"batch_size {batch_size} with drop_last leaves no batch of {self._plan().num_cells} cells"
            )

    def __len__(self) -> int:
        """Batches that the coming iteration yields."""
        return self._plan().num_batches - self._start

    def __iter__(self) -> Iterator[MiniBatch]:
        plan, rows = self._plan(), self._rows()
        first = self._done = self._start
        size = self._cut.batch_size
        windows = range(plan.window_of(first), plan.num_windows)
        for number, window in zip(windows, self._windows(windows, plan, rows), strict=True):
            start, stop = plan.window_starts[number : number + 2].tolist()
            for batch in range(max(start, first), stop):
                minibatch = self._batch(window, (batch - start) * size, (batch + 1 - start) * size)
                self._done = batch + 1
                yield minibatch
        self.set_epoch(self._epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration yields; a loaded position in that same epoch is kept."""
        if epoch != self._epoch:
            self._epoch, self._past, self._start, self._done = epoch, (), 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, over all ranks: the same on each, as JSON types."""
        past = [*self._past, (self._cut, self._done)]
        return {
            "version": STATE_VERSION,
            "seed": self._seed,
            "epoch": self._epoch,
            "fingerprint": self._fingerprint,
            "read": [{**asdict(cut), "batches": batches} for cut, batches in past],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; ConfigError or DataError if it is the state of another stream."""
        if state.get("version") != STATE_VERSION:
            raise DataError(f"stream state: version {state.get('version')}, this program reads {STATE_VERSION}")
        if state["seed"] != self._seed:
            raise ConfigError(
                f"stream state: seed {state['seed']}, but the stream has seed {self._seed}; use the same seed"
            )
        if state["fingerprint"] != self._fingerprint:
            raise DataError(
                f"stream state: it was read from other cells than those of {self._store.uri}; has the atlas changed?"
            )
        read = [dict(entry) for entry in state["read"]]
        past = tuple((Cut(**entry), batches) for entry in read if (batches := entry.pop("batches")))
        self._epoch, self._past, self._start = state["epoch"], past, 0
        if past and past[-1][0] == self._cut:
            self._past, self._start = past[:-1], past[-1][1]
        self._done = self._start

    def facts(self) -> dict[str, float]:
        """Nothing of its own for the log of an epoch; `NeighborStream` has."""
        return {}

    def _rows(self) -> NDArray[np.int64] | None:
        """Row of each position of the plan; None if they are the same."""
        rows = self._selected
        if self._weights is not None:
            rows = draw_rows(
                self._weights, self._selected, np.random.default_rng([self._seed, self._epoch, 0, 0, 0, 1])
            )
        if self._past and rows is None:
            rows = np.arange(self._store.n_obs)
        for part, (cut, batches) in enumerate(self._past):
            assert rows is not None
            rows = np.delete(rows, self._plan_of(len(rows), cut, part).consumed(batches))
        return rows

    def _plan(self) -> EpochPlan:
        rows = self._rows()
        return self._plan_of(self._store.n_obs if rows is None else len(rows), self._cut, len(self._past))

    def _plan_of(self, num_cells: int, cut: Cut, part: int) -> EpochPlan:
        return EpochPlan(num_cells, cut, (self._seed, self._epoch, part), self._order, self._drop_last)

    def _windows(self, numbers: range, plan: EpochPlan, rows: NDArray[np.int64] | None) -> Iterator[Window]:
        read = partial(_read, self._store, plan, self._rank, rows)
        if self._num_workers:
            return read_in_workers(numbers, read, self._num_workers)
        return read_ahead(numbers, read)

    def _batch(self, window: Window, start: int, stop: int) -> MiniBatch:
        return self._columns.batch(
            window.batch_counts(start, stop, self._pinned), window.rows[start:stop], window.weights[start:stop]
        )

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(f"{self._store.fingerprint} {self._order} {self._drop_last}".encode(), digest_size=16)
        for chosen in (self._selected, self._weights):
            digest.update(b"all" if chosen is None else chosen.tobytes())
        return digest.hexdigest()


def _read(
    store: CellStore, plan: EpochPlan, rank: int, rows: NDArray[np.int64] | None, number: int, buffer: CsrBuffer
) -> Window:
    return read_window(store, plan.window(rank, number), rows, buffer)


def _warn_of_memory(memory_bytes: int, fits: int, batch_size: int) -> None:
    warnings.warn(
        f"memory_bytes = {memory_bytes:,} holds {fits:,} of the largest cells, fewer than a minibatch of "
        f"{batch_size:,}: cells of one minibatch only are shuffled together, and more memory is taken",
        stacklevel=3,
    )


def cells_in_memory(store: CellStore, rows: NDArray[np.int64] | None, block_cells: int, memory_bytes: int) -> int:
    """How many cells fit in so much memory even if they are all from the blocks with the most entries."""
    lengths = np.diff(store.indptr) if rows is None else store.indptr[rows + 1] - store.indptr[rows]
    if not len(lengths):
        return 0
    blocks = np.sort(np.add.reduceat(lengths, np.arange(0, len(lengths), block_cells)))[::-1]
    fits = int(np.searchsorted(np.cumsum(blocks) * store.entry_bytes, memory_bytes, side="right"))
    return fits * block_cells
