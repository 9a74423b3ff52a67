"""map-query: coordinates and labels of new cells by a reference."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata

from unicoord_atlas.calls import CallRule
from unicoord_atlas.coordinates import annotated, facts_of, named_tables
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.genes import read_gene_table
from unicoord_atlas.loaders.query_cells import open_query
from unicoord_atlas.query import Coverage, QueryBatches
from unicoord_atlas.reference import ReferenceModel

from .map_report import say_calls, say_predictions
from .workdir import finished_file
from .write_coordinates import table_files, write_output

if TYPE_CHECKING:
    from pathlib import Path

    from unicoord_atlas.loaders.sources import InputKind


@dataclass(frozen=True)
class MapQueryOptions:
    """What `unicoord-atlas map-query` is asked to do."""

    query: Path
    reference: Path
    out: Path
    probabilities: bool = False
    csv: Path | None = None
    layer: str | None = None
    input: InputKind = "counts"
    gene_table: Path | None = None
    rule: CallRule = field(default_factory=CallRule)
    min_coverage: float = 0.3
    """A query whose genes carry less of the reference's mean profile is refused."""
    force: bool = False
    """Map it all the same."""
    consistent: bool = False
    """Labels of tied levels are decoded together."""


def run(options: MapQueryOptions) -> dict[str, Any]:
    """Stream the query through the encoder; MAPPED keeps the query's own obs, columns and names."""
    require_suffix(options.out)
    reference = ReferenceModel.load(options.reference)
    if options.out.exists() or (options.csv and options.csv.exists()):
        raise DataError(
            f"{options.out if options.out.exists() else options.csv} exists; remove it or choose another name"
        )
    table = read_gene_table(options.gene_table) if options.gene_table else None
    with open_query(options.query, options.layer, options.input) as source, table_files(options.out) as files:
        require_cells(source.n_obs, options.query)
        batches = QueryBatches(source, reference.schema, reference.normalization, table=table)
        _say_coverage(options.query, batches.coverage)
        _require_coverage(options, batches.coverage)
        obs = annotated(
            reference,
            batches,
            source.obs,
            files.make,
            "map-query",
            probabilities=options.probabilities,
            rule=options.rule,
            measured_g=batches.measured_g,
            consistent=options.consistent,
        )
        mapped_from = {"reference": options.reference.name, "profile_share": batches.coverage.profile_share}
        named = named_tables(reference, files.tables["X_unicoord"].rows(), obs.index)
        adata = anndata.AnnData(obs=obs, obsm=named, uns={"unicoord": facts_of(reference) | mapped_from})
        write_output(adata, options.out, [options.query, options.reference], files.tables)
    if options.csv:
        with finished_file(options.csv) as partial:
            obs.to_csv(partial)
    return {
        "mapped": str(options.out),
        "cells": adata.n_obs,
        "genes_found": batches.coverage.num_found,
        "profile_share": batches.coverage.profile_share,
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


def _require_coverage(options: MapQueryOptions, coverage: Coverage) -> None:
    if coverage.profile_share < options.min_coverage and not options.force:
        raise DataError(
            f"{options.query}: its genes carry {coverage.profile_share:.1%} of the reference's mean profile, less than "
            f"--min-coverage {options.min_coverage:g}; are species and gene key right (see --gene-table)?  "
            "--force maps it all the same"
        )
