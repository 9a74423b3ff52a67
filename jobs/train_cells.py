"""The cells that a run is trained on, as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicoord_atlas.loaders.stream import CellStream

if TYPE_CHECKING:
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.loaders.plan import Partition
    from unicoord_atlas.loaders.store import CellStore
    from unicoord_atlas.training.preparation import Preparation


def shuffled(
    store: CellStore,
    prepared: Preparation,
    config: RunConfig,
    batch_size: int,
    partition: Partition,
    *,
    balanced: bool,
    pinned: bool = False,
) -> CellStream:
    """Training cells in random order: each once an epoch, or if `balanced` as often as `stream.balance` has it."""
    return CellStream(
        store,
        prepared.columns,
        batch_size=batch_size,
        seed=config.train.seed,
        rows=prepared.training_rows,
        weights=prepared.weights if balanced else None,
        window_cells=config.stream.window_cells,
        memory_bytes=config.stream.memory_bytes,
        partition=partition,
        drop_last=True,
        pinned=pinned,
    )
