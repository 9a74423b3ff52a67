"""generate: cells with coordinates changed, new cells, or cells between two others, streamed to a file."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from unicoord_atlas.errors import UsageError
from unicoord_atlas.generate import Generation, generate
from unicoord_atlas.generated import GeneratedObs, Start, also_like, provenance, start_of
from unicoord_atlas.loaders.cell_names import with_python_names
from unicoord_atlas.loaders.growing_writer import growing_writer
from unicoord_atlas.loaders.picked_rows import PickedRows
from unicoord_atlas.loaders.prefetch import computed_ahead
from unicoord_atlas.loaders.query_cells import open_query
from unicoord_atlas.query import MIN_COVERAGE
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.seeds import choose_seeds

from .made_from import check_written, made_from
from .map_query import require_cells, require_suffix
from .workdir import finished_directory, finished_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path


@dataclass(frozen=True)
class GenerateOptions:
    """What `unicoord-atlas generate` is asked to do."""

    cells: Path | None
    reference: Path
    out: Path
    how: Generation
    like: Mapping[str, str] = field(default_factory=dict)
    num: int = 1
    between: tuple[str, str] | None = None
    """Names of two cells of the file."""
    steps: int = 11
    layer: str | None = None
    min_coverage: float = MIN_COVERAGE
    """Cells whose genes carry less of the reference's mean profile are refused."""


def run(options: GenerateOptions) -> dict[str, Any]:
    """Encode or take seeds, change coordinates, decode, write; memory is that of the tables."""
    require_suffix(options.out)
    if (options.cells is None) == (not options.like):
        raise UsageError("generate: give either CELLS to start from, or --like LABEL=CLASS for new ones")
    if options.cells is None and options.between is not None:
        raise UsageError("--between: name the file of the two cells")
    if options.cells is not None and options.num != 1:
        raise UsageError("--num is for --like; of a file each cell is taken")
    reference = ReferenceModel.load(options.reference)
    with _start(options, reference) as start:
        parts = generate(reference, start.points, start.how, start.obs)
        facts = {"reference": options.reference.name, **start.facts}
        inputs = [path for path in (options.cells, options.reference) if path]
        uns = provenance(start.how, facts)
        settings = {**uns, "num": options.num, "steps": options.steps, "layer": options.layer}
        check_written(options.out, inputs, settings)
        with (
            _output(options.out, inputs, settings) as partial,
            growing_writer(partial, len(reference.own_genes)) as writer,
            tqdm(desc="generate", unit="cell", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
        ):
            collected = GeneratedObs(reference)
            for part in computed_ahead(parts):
                writer.append(part.block)
                collected.add(part)
                bar.update(len(part.rows))
            obs = collected.table(start.obs)
            uns |= made_from(inputs, settings)
            writer.finish(obs, pd.DataFrame(index=list(reference.own_genes)), {"unicoord": uns})
    return {"generated": str(options.out), "cells": len(obs), "genes": len(reference.own_genes)}


def _output(out: Path, inputs: list[Path], settings: Mapping[str, Any]) -> AbstractContextManager[Path]:
    return finished_directory(out, inputs, settings) if out.suffix == ".zarr" else finished_file(out)


@contextmanager
def _start(options: GenerateOptions, reference: ReferenceModel) -> Iterator[Start]:
    """Points of seeds, of two cells, or of all cells of a file, which is open meanwhile."""
    if options.cells is None:
        points, obs = choose_seeds(reference, options.like, options.num, options.how.seed)
        yield Start([points], obs, {"like": dict(options.like)}, also_like(options.how, options.like))
        return
    with open_query(options.cells, options.layer, reference.normalization.input) as source:
        require_cells(source.n_obs, options.cells)
        start = start_of(
            reference,
            source,
            with_python_names(source.obs),
            options.how,
            options.between,
            options.steps,
            partial(PickedRows, source),
            options.min_coverage,
        )
        yield replace(start, facts={"cells": options.cells.name, **start.facts})
