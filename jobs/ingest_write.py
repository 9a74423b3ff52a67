"""The part of `ingest` that writes: counts, then obs, var and uns.

Random order goes by way of a store in order, and a SOMA by way of an atlas: hidden siblings of the output.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from unicoord_atlas.allocator import give_back_freed_memory
from unicoord_atlas.errors import AlreadyDone, DataError
from unicoord_atlas.gene_names import guess_gene_key, other_key
from unicoord_atlas.loaders.reorder import reordered_layout, write_reordered
from unicoord_atlas.loaders.tally import unfinished_normalization
from unicoord_atlas.loaders.write_pass import TALLY, write_counts
from unicoord_atlas.loaders.zarr_layout import SIZE_FACTOR, MatrixLayout, count_dtype
from unicoord_atlas.loaders.zarr_store import ZarrStore
from unicoord_atlas.loaders.zarr_tables import finish_store

from .convert import write_soma
from .workdir import check_output, finished_directory, scratch_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from unicoord_atlas.genes import GeneSpace
    from unicoord_atlas.loaders.write_pass import RunEach

    from .ingest import Atlas
    from .ingest_options import IngestOptions


def write_atlas(out: Path, inputs: Sequence[Path], atlas: Atlas, options: IngestOptions, run_each: RunEach) -> None:
    """Make the store, or go on from what a killed job left of it."""
    counts = {
        "cells": sum(source.n_obs for source in atlas.sources),
        "genes": len(atlas.space.genes),
        "entries": sum(int(facts.entries_n.sum()) for facts in atlas.facts),
    }
    settings = options.settings()
    with finished_directory(out, inputs, settings, resume=True, counts=counts) as partial:
        if options.format == "soma":
            zarr, whole = replace(options, format="zarr"), _whole(out)
            if _is_missing(whole, inputs, zarr.settings()):
                write_atlas(whole, inputs, atlas, zarr, run_each)
            write_as_soma(partial, whole)
        elif options.shuffle:
            ordered = _ordered(out)
            if _is_missing(ordered, inputs, settings):
                with finished_directory(ordered, inputs, settings, resume=True, counts=counts) as unfinished:
                    write_in_order(unfinished, atlas, options, run_each)
            write_shuffled(partial, ZarrStore(str(ordered.absolute())), atlas, options, run_each)
        else:
            write_in_order(partial, atlas, options, run_each)


def write_in_order(partial: Path, atlas: Atlas, options: IngestOptions, run_each: RunEach) -> None:
    """The sources as they are, one after the other."""
    facts = atlas.total()
    log_input = options.input == "lognorm"
    layout = MatrixLayout(
        np.concatenate([[0], np.cumsum(facts.entries_n)]),
        len(atlas.space.genes),
        np.dtype(np.float32) if log_input else count_dtype(facts.largest),
    )
    frozen = unfinished_normalization(facts.dominated_g >= options.min_cells, options.min_cells, log_input)
    pairs = list(zip(atlas.sources, atlas.maps, strict=True))
    with _bar("write", layout.num_rows) as bar:
        normalization, size_factors_n = write_counts(
            partial, layout, pairs, frozen, options.rows_per_block, options.num_threads(), bar.update, run_each
        )
    give_back_freed_memory()
    obs = atlas.obs.with_column(SIZE_FACTOR, size_factors_n)
    finish_store(partial, layout, obs, atlas_var(atlas.space), atlas.schema(), normalization)
    shutil.rmtree(partial / TALLY)


def write_shuffled(partial: Path, ordered: ZarrStore, atlas: Atlas, options: IngestOptions, run_each: RunEach) -> None:
    """The cells of a store in random order; all facts of the atlas stay as they are."""
    order = np.random.default_rng(options.seed).permutation(ordered.n_obs)
    layout = reordered_layout(ordered.layout, order)
    with _bar("shuffle", layout.num_rows) as bar:
        write_reordered(partial, layout, ordered, order, options.num_threads(), bar.update, run_each)
    obs = ordered.obs(arrow_names=True).iloc[order]
    finish_store(partial, layout, obs, atlas_var(atlas.space), ordered.schema, ordered.normalization)


def write_as_soma(partial: Path, whole: Path) -> None:
    """An experiment of all that an atlas holds."""
    store = ZarrStore(str(whole.absolute()))
    with _bar("soma", store.n_obs) as bar:
        write_soma(partial, store, whole, bar.update)


def remove_siblings(out: Path) -> None:
    """Remove what the output was made by way of, once it is finished; also if a job was killed in between."""
    for sibling in (_ordered(_whole(out)), _whole(out), _ordered(out), scratch_of(out)):
        if sibling.exists():
            shutil.rmtree(sibling)


def atlas_var(space: GeneSpace) -> pd.DataFrame:
    """The genes, with their name by the other key where one is known."""
    other = other_key(space.key)
    names = [""] * len(space.genes)
    for alias, index in space.aliases.items():
        if not names[index] and guess_gene_key([alias]) == other:
            names[index] = alias
    columns = {other: names} if any(names) else {}
    return pd.DataFrame(columns, index=pd.Index(space.genes, dtype=object))


def _ordered(out: Path) -> Path:
    return out.parent / f".{out.name}.ordered"


def _whole(out: Path) -> Path:
    return out.parent / f".{out.name}.atlas.zarr"


def _is_missing(sibling: Path, inputs: Sequence[Path], settings: dict[str, Any]) -> bool:
    """Whether it is yet to be made; what another job left there is removed."""
    try:
        check_output(sibling, inputs, settings)
    except DataError:
        shutil.rmtree(sibling)
    except AlreadyDone:
        return False
    return True


def _bar(name: str, num_cells: int) -> tqdm[None]:
    return tqdm(total=num_cells, desc=name, unit=" cells", unit_scale=True, disable=None)
