"""Which cells, in which order, on which rank: pure index arithmetic, known before anything is read.

The cells of an epoch are cut into blocks of consecutive ones, the blocks are shuffled like a deck and dealt to the
ranks; a rank cuts its share into windows of whole batches, and shuffles the cells within each.  So all randomness is a
function of seed and epoch, any batch is found without those before it, and the cells that were consumed are known.

Positions are indices into the cells of the epoch; `CellStream` maps them to rows of the store.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unicoord_atlas.errors import ConfigError

Order = Literal["shuffled", "stored"]


@dataclass(frozen=True, slots=True)
class Partition:
    """Which share of an epoch this process reads."""

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank must be in 0..{self.world_size - 1}, got {self.rank}; torchrun sets RANK and WORLD_SIZE"
            )

    def take(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Every world_size-th block: ranks are dealt from one shuffled deck, so each sees the whole atlas."""
        return blocks[self.rank :: self.world_size]

    def split(self, count: int) -> tuple[int, int]:
        """Start and stop of this rank's share of `count` things; shares differ by one at most."""
        each, more = divmod(count, self.world_size)
        start = self.rank * each + min(self.rank, more)
        return start, start + each + (self.rank < more)


ALONE = Partition(0, 1)


@dataclass(frozen=True, slots=True)
class Cut:
    """Sizes that an epoch is cut by; a resumed stream needs those that it was cut by before."""

    world_size: int
    batch_size: int
    window_batches: int
    block_cells: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Cells that are in memory together."""

    ranges: NDArray[np.int64]
    """(p, 2) positions start:stop, in the order they are read."""
    order: NDArray[np.int64]
    """(k,) which of the cells read is delivered first, second, ..."""
    weights: NDArray[np.float32]
    """(k,) of the cells delivered: 0 for one that only pads the last batch."""


@dataclass(frozen=True)
class EpochPlan:
    """All batches of all ranks; every rank gets the same number."""

    num_cells: int
    cut: Cut
    key: tuple[int, ...]
    """Seed, epoch, and what else the randomness is to depend on."""
    order: Order = "shuffled"
    drop_last: bool = False

    @property
    def share_cells(self) -> int:
        """Cells that each rank delivers: one of them only pads where they do not divide evenly."""
        world_size = self.cut.world_size
        if self.drop_last:
            return self.num_cells // world_size // self.cut.batch_size * self.cut.batch_size
        return -(-self.num_cells // world_size)

    @property
    def num_batches(self) -> int:
        """Batches of each rank."""
        return -(-self.share_cells // self.cut.batch_size)

    @cached_property
    def window_starts(self) -> NDArray[np.int64]:
        """(windows + 1,) first batch of each window; equal windows, for a small last one would be mixed badly."""
        num_windows = -(-self.num_batches // self.cut.window_batches)
        return np.arange(num_windows + 1) * self.num_batches // max(num_windows, 1)

    @property
    def num_windows(self) -> int:
        """Windows of each rank."""
        return len(self.window_starts) - 1

    def window_of(self, batch: int) -> int:
        """The window that a batch is in; the one past the last if the epoch ends before it."""
        return int(np.searchsorted(self.window_starts, batch, side="right")) - 1

    def share(self, rank: int) -> NDArray[np.int64]:
        """(p, 2) positions that a rank reads, in order."""
        partition = Partition(rank, self.cut.world_size)
        if self.order == "stored":
            return np.array([partition.split(self.num_cells)], np.int64)
        size, rng = self.cut.block_cells, np.random.default_rng(self.key)
        deck = rng.permutation(self.num_cells // size)
        num_dealt = len(deck) - len(deck) % self.cut.world_size
        dealt = block_ranges(partition.take(deck[:num_dealt]), size)
        # What cannot be dealt in whole blocks is cut into equal shares, so that ranks differ by one cell at most.
        tail = np.array([[len(deck) * size, self.num_cells]], np.int64)
        rest = np.concatenate([block_ranges(deck[num_dealt:], size), tail])
        mine = slice_ranges(rest, *partition.split(self.num_cells - num_dealt * size))
        # The borders of blocks are elsewhere in each epoch, and so are the cells of the tail.
        return rotate_ranges(np.concatenate([dealt, mine]), int(rng.integers(self.num_cells or 1)), self.num_cells)

    def window(self, rank: int, window: int) -> WindowPlan:
        """What a rank reads for a window, and the order in which it delivers the cells."""
        start, stop = (self.window_starts[window : window + 2] * self.cut.batch_size).tolist()
        stop = min(stop, self.share_cells)
        ranges = slice_ranges(self._shares[rank], start, stop)
        num_read = int((ranges[:, 1] - ranges[:, 0]).sum())
        order = np.arange(num_read)
        if self.order == "shuffled":
            order = np.random.default_rng([*self.key, rank, window + 1]).permutation(num_read)
        weights = np.ones(stop - start, np.float32)
        if num_read < stop - start:
            ranges = np.concatenate([ranges, [[0, 1]]])
            order, weights[-1] = np.append(order, num_read), 0
        return WindowPlan(ranges, order, weights)

    def consumed(self, num_batches: int) -> NDArray[np.int64]:
        """Positions of the cells that all ranks together delivered in their first batches."""
        window = self.window_of(num_batches)
        before = int(self.window_starts[window]) * self.cut.batch_size
        inside = num_batches * self.cut.batch_size - before
        positions = [expand_ranges(slice_ranges(self._shares[rank], 0, before)) for rank in range(self.cut.world_size)]
        if inside:
            for rank in range(self.cut.world_size):
                plan = self.window(rank, window)
                delivered = plan.order[:inside][plan.weights[:inside] > 0]
                positions.append(expand_ranges(plan.ranges)[delivered])
        return np.concatenate(positions)

    @cached_property
    def _shares(self) -> _Shares:
        return _Shares(self)


class _Shares(dict[int, NDArray[np.int64]]):
    """Shares by rank, made when asked for."""

    def __init__(self, plan: EpochPlan) -> None:
        self._plan = plan

    def __missing__(self, rank: int) -> NDArray[np.int64]:
        self[rank] = self._plan.share(rank)
        return self[rank]


def block_ranges(blocks: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """(b, 2) start:stop of blocks of equal size."""
    return np.stack([blocks * size, (blocks + 1) * size], axis=1)


def slice_ranges(ranges: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """The start-th to stop-th number of the (p, 2) ranges laid end to end, as ranges; none is empty."""
    ends = np.cumsum(ranges[:, 1] - ranges[:, 0])
    begins = ends - (ranges[:, 1] - ranges[:, 0])
    cut = np.stack([np.maximum(begins, start) - begins, np.minimum(ends, stop) - begins], axis=1) + ranges[:, :1]
    return cut[cut[:, 1] > cut[:, 0]]


def rotate_ranges(ranges: NDArray[np.int64], offset: int, modulus: int) -> NDArray[np.int64]:
    """Ranges within 0:modulus moved up by an offset; one that passes the end goes on at 0."""
    moved = ranges + offset
    moved -= modulus * (moved[:, :1] >= modulus)
    across = np.flatnonzero(moved[:, 1] > modulus)
    wrapped = np.insert(moved, across + 1, moved[across] * [0, 1] - [0, modulus], axis=0)
    return np.minimum(wrapped, modulus)


def expand_ranges(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers of the (p, 2) ranges start:stop, in order."""
    lengths = ranges[:, 1] - ranges[:, 0]
    before = np.cumsum(lengths) - lengths
    return np.repeat(ranges[:, 0] - before, lengths) + np.arange(int(lengths.sum()))


def find_runs(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """(p, 2) ranges of consecutive numbers, which laid end to end are `numbers`: the inverse of `expand_ranges`."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    firsts = np.concatenate([[0], breaks]) if len(numbers) else breaks
    lasts = np.append(breaks, len(numbers)) - 1 if len(numbers) else breaks
    return np.stack([numbers[firsts], numbers[lasts] + 1], axis=1)
