"""Cells of a file that are taken out before anything else: no split, selection or choice of an epoch sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

HELD_OUT = 0.2


def split_file(data: Path, name: str, work: Path, seed: int) -> tuple[Path, Path]:
    """Write WORK/train/NAME.h5ad and WORK/test/NAME.h5ad, a fifth of the cells of a data set; returns both."""
    cells = anndata.read_h5ad(data / name / f"{name}.h5ad")
    out = np.random.default_rng(seed).random(cells.n_obs) < HELD_OUT
    parts = work / "train" / f"{name}.h5ad", work / "test" / f"{name}.h5ad"
    for path, rows in zip(parts, (~out, out), strict=True):
        path.parent.mkdir(exist_ok=True)
        cells[rows].copy().write_h5ad(path)
    return parts
