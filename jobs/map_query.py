"""map-query: coordinates and labels of new cells by a reference, by one process or by many."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from unicoord_atlas.calls import CallRule
from unicoord_atlas.coordinate_facts import facts_of
from unicoord_atlas.coordinates import NOVELTY_COLUMNS, annotated, named_columns
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.genes import read_gene_table
from unicoord_atlas.loaders.cell_names import with_python_names
from unicoord_atlas.loaders.query_cells import CellRange, QueryCells, open_query
from unicoord_atlas.query import Coverage, QueryBatches, require_coverage
from unicoord_atlas.reference import ReferenceModel

from .dask_parts import run_in_parts
from .made_from import check_written, made_from
from .map_report import say_calls, say_predictions
from .mapped_file import read_obs
from .part_files import copy_tables, table_maker, with_columns, write_columns
from .parts import Part, do_part
from .workdir import describe_input, finished_file
from .write_coordinates import TableFiles, table_files, write_output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from unicoord_atlas.coordinates import Table


@dataclass(frozen=True)
class MapQueryOptions:
    """What `unicoord-atlas map-query` is asked to do."""

    query: Path
    reference: Path
    out: Path
    probabilities: bool = False
    csv: Path | None = None
    layer: str | None = None
    gene_table: Path | None = None
    rule: CallRule = field(default_factory=CallRule)
    min_coverage: float = 0.3
    """A query whose genes carry less of the reference's mean profile is refused."""
    force: bool = False
    """Map it all the same."""
    consistent: bool = False
    """Labels of tied levels are decoded together."""
    part: Part | None = None
    """Only this share of the cells; the last part to be done makes `out`."""
    dask: str | None = None
    with_counts: bool = False
    """Copy X and var of the query, too."""

    @property
    def inputs(self) -> list[Path]:
        """All that cells and model come from."""
        return [self.query, self.reference]

    @property
    def settings(self) -> dict[str, Any]:
        """What tells one mapping of these from another."""
        table = describe_input(self.gene_table) if self.gene_table else None
        kept = {name: getattr(self, name) for name in ("probabilities", "layer", "consistent")}
        counts = {"with_counts": True} if self.with_counts else {}
        return {"rule": asdict(self.rule), "gene_table": table, **kept, **counts}


def run(options: MapQueryOptions) -> dict[str, Any]:
    """Stream the query through the encoder; MAPPED keeps the query's own obs, columns and names.

    Raises
    ------
    AlreadyDone
        If it was made before, from the same inputs and settings; with parts, of these very parts.
    UnicoordError
        Naming the query or the option, and the way out.
    """
    require_suffix(options.out)
    if options.csv and (options.part or options.dask):
        raise UsageError(f"--csv {options.csv}: for one process only; the table is obs of {options.out}")
    if options.part is None and options.dask is None:
        _require_new(options)
    reference = ReferenceModel.load(options.reference)
    held = reference.normalization.input
    if options.dask is not None:
        with open_query(options.query, options.layer, held) as source:
            require_cells(source.n_obs, options.query)
        return run_in_parts(options.dask, run, options, source.n_obs)
    with open_query(options.query, options.layer, held) as source:
        require_cells(source.n_obs, options.query)
        if options.part is not None:
            return _run_part(options, options.part, reference, source)
        batches = _batches(options, reference, source)
        with table_files(options.out) as files:
            obs = _annotate(options, reference, batches, source.obs, files.make)
            return _finish(options, reference, batches.coverage, source, obs, files)


def _require_new(options: MapQueryOptions) -> None:
    """Look at what has the names of MAPPED and its CSV.

    Raises
    ------
    AlreadyDone
        If both are finished, of the same inputs and settings; a CSV that a kill left out is made of MAPPED first.
    DataError
        If something else has a name.
    """
    csv = options.csv
    if options.out.exists():
        try:
            check_written(options.out, options.inputs, options.settings)
        except AlreadyDone:
            if csv is None or _is_made_of(csv, options.out):
                raise
    if csv is not None and csv.exists():
        raise DataError(f"{csv} exists; remove it or choose another name")


def _is_made_of(csv: Path, mapped: Path) -> bool:
    """Whether the CSV is obs of MAPPED, which it is made to be if it is missing."""
    obs = read_obs(mapped)
    if csv.exists():
        return csv.is_file() and csv.read_bytes() == obs.to_csv().encode()
    with finished_file(csv) as partial:
        obs.to_csv(partial)
    print(f"wrote {csv}, which was missing", file=sys.stderr)
    return True


def _batches(options: MapQueryOptions, reference: ReferenceModel, source: QueryCells) -> QueryBatches:
    """The query's cells in the reference's genes; DataError if these are too few."""
    table = read_gene_table(options.gene_table) if options.gene_table else None
    batches = QueryBatches(source, reference.schema, reference.normalization, table=table)
    _say_coverage(options.query, batches.coverage)
    if not options.force:
        require_coverage(batches.coverage, options.query, options.min_coverage)
    return batches


def _annotate(
    options: MapQueryOptions,
    reference: ReferenceModel,
    batches: QueryBatches,
    obs: pd.DataFrame,
    make_table: Callable[[str, int, int], Table],
) -> pd.DataFrame:
    return annotated(
        reference,
        batches,
        obs,
        make_table,
        "map-query",
        probabilities=options.probabilities,
        rule=options.rule,
        measured_g=batches.measured_g,
        consistent=options.consistent,
    )


def _run_part(options: MapQueryOptions, part: Part, reference: ReferenceModel, source: QueryCells) -> dict[str, Any]:
    """Map a share of the cells, and join all shares if it was the last."""
    first, last = part.rows(source.n_obs)
    mine = CellRange(source, first, last)
    batches = _batches(options, reference, mine)
    result: dict[str, Any] = {"part": [first, last]}

    def write(partial: Path) -> None:
        bare = pd.DataFrame(index=mine.obs.index)
        write_columns(partial, _annotate(options, reference, batches, bare, table_maker(partial)))

    def join(parts: Sequence[Path]) -> None:
        obs = with_columns(source.obs, parts, NOVELTY_COLUMNS)
        with table_files(options.out) as files:
            copy_tables(parts, files.make)
            result.update(_finish(options, reference, batches.coverage, source, obs, files))

    do_part(part, options.out, options.inputs, options.settings, write, join)
    return result


def _finish(
    options: MapQueryOptions,
    reference: ReferenceModel,
    coverage: Coverage,
    source: QueryCells,
    obs: pd.DataFrame,
    files: TableFiles,
) -> dict[str, Any]:
    """Write what was found of all cells, and say it."""
    obs = with_python_names(obs)
    inputs, settings = options.inputs, options.settings
    mapped_from = {"reference": options.reference.name, "profile_share": coverage.profile_share}
    named = named_columns(reference, files.tables["X_unicoord"], obs.index)
    uns = {"unicoord": facts_of(reference) | mapped_from | made_from(inputs, settings)}
    counts = source if options.with_counts else None
    with ExitStack() as stack:  # so that both get their names at one moment, when both are whole; MAPPED is the first
        if options.csv:
            obs.to_csv(stack.enter_context(finished_file(options.csv)))
        write_output(options.out, inputs, settings, obs, named, files.tables, uns, counts)
    return {
        "mapped": str(options.out),
        "cells": len(obs),
        "genes_found": coverage.num_found,
        "profile_share": coverage.profile_share,
        "predictions": say_predictions(obs, reference),
        **say_calls(obs, reference, options.rule),
    }


def require_suffix(out: Path) -> None:
    """UsageError unless the name says what to write."""
    if out.suffix not in (".h5ad", ".zarr"):
        raise UsageError(f"--out {out}: give it a name that ends in .h5ad or .zarr")


def require_cells(num_cells: int, path: Path) -> None:
    """DataError for a file without cells."""
    if not num_cells:
        raise DataError(f"{path}: holds no cells")


def _say_coverage(query: Path, coverage: Coverage) -> None:
    text = (
        f"{query.name}: {coverage.num_found:,} of the reference's {coverage.num_reference_genes:,} genes found "
        f"({coverage.num_query_genes:,} in the query); they carry {coverage.profile_share:.1%} of the mean profile"
    )
    if coverage.missing:
        text += f"\n  most missed: {', '.join(coverage.missing[:8])}"
    print(text, file=sys.stderr)
