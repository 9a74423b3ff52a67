"""simulate: an invented atlas as .h5ad files, one an organ, with the statistics of a real one."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from unicoord_atlas.blueprint import ORGANS, fill_means, invent_means, make_blueprint, split_cells
from unicoord_atlas.cores import usable_cores
from unicoord_atlas.errors import AlreadyDone, UsageError
from unicoord_atlas.gene_names import gene_names, read_gene_columns
from unicoord_atlas.genes import GeneSpace, listed_space, map_names, remap, union_space
from unicoord_atlas.loaders.source_files import H5_SUFFIXES
from unicoord_atlas.loaders.sources import open_source
from unicoord_atlas.simulate import Organ

from .ingest_write import atlas_var
from .organ_file import write_organ
from .workdir import check_output, finished_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from unicoord_atlas.blueprint import Blueprint

FEWEST_GENES = 100
MEDIAN_GENES = 1300
_ROWS = 8192


@dataclass(frozen=True)
class SimulateOptions:
    """What `unicoord-atlas simulate` is asked to do."""

    cells: int
    out: Path
    genes: str | None = None
    """How many genes, a file of them, or a file with cells, whose genes and means are taken; None takes `like`'s."""
    seed: int = 0
    organs: int = len(ORGANS)
    genes_detected: int | None = None
    """Of the median cell; 1,300, or a quarter of all genes if that is less."""
    like: Path | None = None
    """A file with cells, whose genes' means are taken."""
    compress: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.organs <= len(ORGANS):
            raise UsageError(f"--organs {self.organs}: must be in 1..{len(ORGANS)}")
        if self.cells < self.organs:
            raise UsageError(f"--cells {self.cells}: fewer than --organs {self.organs}, each of which needs one")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: must be 0 or more")
        if self.genes is None and self.like is None:
            raise UsageError("--genes is missing: a number, or a file of genes; or give --like FILE to take its genes")

    def settings(self, num_genes: int) -> dict[str, Any]:
        """What changes the result; UsageError if it cannot be."""
        detected = min(MEDIAN_GENES, num_genes // 4) if self.genes_detected is None else self.genes_detected
        if num_genes < FEWEST_GENES:
            raise UsageError(f"--genes: {num_genes} are too few; {FEWEST_GENES} are needed for types to differ in")
        if not 1 <= detected <= num_genes // 2:
            raise UsageError(f"--genes-detected {detected}: must be in 1..{num_genes // 2}, half of the genes")
        return {
            "cells": self.cells,
            "genes": num_genes,
            "seed": self.seed,
            "organs": self.organs,
            "genes_detected": detected,
            "compress": self.compress,
        }


def run(options: SimulateOptions) -> dict[str, Any]:
    """Write an .h5ad an organ; a killed run goes on with the organs that are not there."""
    if options.genes is not None and options.like is None and Path(options.genes).suffix in (*H5_SUFFIXES, ".zarr"):
        options = replace(options, genes=None, like=Path(options.genes))
    space = _gene_space(options)
    settings = options.settings(len(space.genes))
    inputs = [path for path in (_gene_file(options), options.like) if path is not None]
    try:
        check_output(options.out, inputs, settings)
        rng = np.random.default_rng([options.seed, 0])
        cells = split_cells(options.cells, options.organs, rng)
        blueprint = make_blueprint(_mean_counts(options, space, rng), options.cells, rng)
        counts = {"cells": options.cells, "genes": len(space.genes)}
        with finished_directory(options.out, inputs, settings, resume=True, counts=counts) as partial:
            _write_organs(partial, blueprint, atlas_var(space), cells, options, settings["genes_detected"])
    except AlreadyDone as done:
        print(done, file=sys.stderr)
    return {"simulated": str(options.out), **settings}


def _write_organs(
    out: Path, blueprint: Blueprint, var: pd.DataFrame, cells: Sequence[int], options: SimulateOptions, detected: int
) -> None:
    """In as many threads as there are cores, largest first."""
    stop, lock = threading.Event(), threading.Lock()
    with tqdm(total=sum(cells), desc="simulate", unit=" cells", unit_scale=True, disable=None) as bar:

        def advance(number: int) -> None:
            if stop.is_set():
                raise CancelledError
            with lock:
                bar.update(number)

        def write(number: int) -> None:
            organ = Organ(blueprint, options.seed, number, len(cells), cells[number], detected)
            path = out / f"{organ.name}.h5ad"
            if path.exists():
                advance(organ.num_cells)
            else:
                write_organ(path, organ, var, options.compress, advance)

        with ThreadPoolExecutor(usable_cores()) as pool:
            largest_first = sorted(range(len(cells)), key=lambda number: -cells[number])
            futures = [pool.submit(write, number) for number in largest_first]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


def _gene_file(options: SimulateOptions) -> Path | None:
    return None if options.genes is None or options.genes.isdigit() else Path(options.genes)


def _gene_space(options: SimulateOptions) -> GeneSpace:
    """The genes by number, by file, or of the real cells."""
    path = _gene_file(options)
    if path is not None:
        return listed_space(path, next(iter(read_gene_columns(path))))
    if options.genes is not None:
        return GeneSpace("symbol", tuple(f"GENE{number}" for number in range(1, int(options.genes) + 1)), {})
    assert options.like is not None
    with open_source(options.like) as source:
        names = gene_names(source.var)
        return union_space([names], names.own)


def _mean_counts(options: SimulateOptions, space: GeneSpace, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean counts of the genes in an average cell: invented, or those of the real cells."""
    num_genes = len(space.genes)
    if options.like is None:
        return invent_means(num_genes, rng)
    with open_source(options.like) as source:
        gene_map = map_names(gene_names(source.var), space, str(options.like))
        sum_g = np.zeros(num_genes)
        for block in source.blocks(_ROWS):
            own = remap(block, gene_map, num_genes)
            sum_g += np.bincount(own.indices, own.data, num_genes)
    return fill_means(np.where(gene_map.measured_g, sum_g, np.nan), rng)
