"""Inputs of bench_loader, made once in a working directory: the same cells as each loader likes them best."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np

from unicoord_atlas.jobs.workdir import finished_directory
from unicoord_atlas.loaders import open_store
from unicoord_atlas.loaders.zarr_layout import MatrixLayout
from unicoord_atlas.loaders.zarr_tables import finish_store
from unicoord_atlas.loaders.zarr_writer import AtlasWriter

if TYPE_CHECKING:
    from unicoord_atlas.loaders.zarr_store import ZarrStore

GENES = 43_878
_ROWS = 10_000


@dataclass(frozen=True)
class Inputs:
    """Where each form of the cells lies."""

    atlas: Path
    h5ad: Path
    collection: Path
    """annbatch's own."""
    small: Path
    large: Path
    """The atlas's cells, repeated: ten times as many as in `small`."""


def make_inputs(work: Path, cells: int, small: int, peer_python: str | None) -> Inputs:
    """Make what is not there yet."""
    source, atlas, h5ad = work / "source", work / "atlas.zarr", work / "cells.h5ad"
    inputs = Inputs(atlas, h5ad, work / "annbatch.zarr", work / "small.zarr", work / "large.zarr")
    if not atlas.exists():
        sizes = ["--cells", str(cells), "--genes", str(GENES)]
        _command("simulate", *sizes, "--out", str(source))
        _command("ingest", str(source), "--out", str(atlas), "--label", "organ")
    files = sorted(map(str, source.glob("*.h5ad")))
    if not h5ad.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            anndata.experimental.concat_on_disk(files, h5ad)
    if peer_python and not (inputs.collection / "done").exists():
        subprocess.run([peer_python, _beside("annbatch_collection.py"), str(inputs.collection), *files], check=True)
        (inputs.collection / "done").touch()
    for out, num_cells in ((inputs.small, small), (inputs.large, 10 * small)):
        if not out.exists():
            repeat_cells(open_store(atlas), num_cells, out)
    return inputs


def repeat_cells(store: ZarrStore, num_cells: int, out: Path, columns: tuple[str, ...] = ("organ",)) -> None:
    """Write a store of so many cells: those of another and some obs columns, from the first on, again and again."""
    rows = np.arange(num_cells) % store.n_obs
    indptr = np.concatenate([[0], np.cumsum(np.diff(store.indptr)[rows])])
    layout = MatrixLayout(indptr, store.n_vars, store.layout.data_dtype)
    with finished_directory(out, inputs=[], config={}, counts={"cells": num_cells}) as partial:
        with AtlasWriter(partial, layout) as writer:
            while writer.next_row < writer.stop_row:
                start = writer.next_row % store.n_obs
                stop = min(start + _ROWS, store.n_obs, start + writer.stop_row - writer.next_row)
                read = store.read_ranges(np.array([[start, stop]]))
                writer.write(read)
        obs = store.obs([*columns, "source", "size_factor"]).iloc[rows]
        obs.index = [f"cell{row}" for row in range(num_cells)]
        var = anndata.io.read_elem(store.group["var"])
        finish_store(partial, layout, obs, var, store.schema, store.normalization)


def run_child(python: str, name: str, path: Path, *options: object) -> list[str]:
    """The command that measures one loader."""
    return [python, _beside("loader_child.py"), name, str(path), *map(str, options)]


def last_json(text: str) -> dict:
    """The object that a child printed in its last line."""
    return json.loads(text.strip().splitlines()[-1])


def _beside(name: str) -> str:
    return str(Path(__file__).parent / name)


def _command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "unicoord_atlas.jobs.cli", *arguments], check=True)
