"""Minibatches of a reordered atlas: whether their cells are as mixed as in random order.  A part of bench_graph."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from loader_measure import mixing

LABEL, BATCH = "cell_type", 256


def mixing_when_reordered(store_path: Path) -> dict[str, Any]:
    """Entropy of the label within the minibatches of an epoch, and that of the same minibatches in random order.

    The atlas is written in graph order beside itself for as long as this takes.  Unlabelled cells count as a type.
    """
    from unicoord_atlas.batch import CellColumns
    from unicoord_atlas.jobs import reorder
    from unicoord_atlas.loaders.store import open_store
    from unicoord_atlas.loaders.stream import CellStream

    with tempfile.TemporaryDirectory(dir=store_path.parent) as name:
        near = Path(name) / "near.zarr"
        reorder.run(reorder.ReorderOptions(store_path, near))
        store = open_store(near)
        n = store.n_obs
        codes_n = pd.Categorical(store.obs([LABEL])[LABEL]).codes.astype(np.int64) + 1
        none = np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32)
        columns = CellColumns(store.size_factors.astype(np.float32), np.zeros(n, np.int32), *none)
        stream = CellStream(store, columns, batch_size=BATCH)
        return {"cells": n, **mixing([codes_n[batch.rows_n.numpy()] for batch in stream], codes_n)}
