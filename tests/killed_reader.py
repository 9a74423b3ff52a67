"""An epoch of a store in another process, which may be killed in the middle of it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from stores import plain_columns

from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.stream import CellStream

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.queues import SimpleQueue

    import numpy as np

    from unicoord_atlas.loaders.byte_cache import ByteCache
    from unicoord_atlas.loaders.store import CellStore


def epoch(store: CellStore, after_batch: Callable[[int], None] = lambda number: None) -> list[list[np.ndarray]]:
    """Rows and counts of each minibatch of a shuffled epoch."""
    stream = CellStream(store, plain_columns(store), batch_size=20, seed=3, window_cells=100, block_cells=16)
    found = []
    for number, batch in enumerate(stream):
        parts = (batch.rows_n, batch.counts.indptr, batch.counts.indices, batch.counts.data)
        found.append([part.numpy().copy() for part in parts])
        after_batch(number)
    return found


def read_in_process(address: str, cache: ByteCache, killed_at: int | None, queue: SimpleQueue[list[list[int]]]) -> None:
    """Put the rows of each minibatch into a queue, unless killed at one of them."""

    def die(number: int) -> None:
        if number == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    queue.put([batch[0].tolist() for batch in epoch(open_store(address, cache), die)])
