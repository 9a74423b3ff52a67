"""Cells with their counts: X and var as they are in the input, copied block by block."""

from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING

from tqdm import tqdm

from unicoord_atlas.loaders.growing_writer import growing_writer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

    from unicoord_atlas.loaders.query_cells import QueryCells

_ROWS = 2048
"""Of X that are read together, at most."""


def write_with_counts(path: Path, cells: QueryCells, obs: pd.DataFrame, uns: Mapping[str, object]) -> None:
    """Write an .h5ad, or a Zarr store under any other name: X and var of the cells, their obs as given, no tables yet.

    Parameters
    ----------
    cells
        At least one; X is CSR in their type, whatever it was.
    """
    blocks = cells.blocks(_ROWS)
    first = next(blocks)
    var = cells.var
    with (
        growing_writer(path, len(var), first.data.dtype) as writer,
        tqdm(total=cells.n_obs, desc="counts", unit="cell", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
    ):
        for block in chain([first], blocks):
            writer.append(block)
            bar.update(block.num_rows)
        writer.finish(obs, var, uns)
