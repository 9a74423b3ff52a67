"""map-query: coordinates and labels of new cells by a reference."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from unicoord_atlas.coordinates import coordinates
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.genes import read_gene_table
from unicoord_atlas.loaders.sources import InputKind, open_source
from unicoord_atlas.query import Coverage, QueryBatches
from unicoord_atlas.reference import ReferenceModel

from .workdir import finished_directory, finished_file
from .write_coordinates import write_anndata

if TYPE_CHECKING:
    from pathlib import Path

    import anndata

LOW_CONFIDENCE = 0.5


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


def run(options: MapQueryOptions) -> dict[str, Any]:
    """Stream the query through the encoder; MAPPED keeps the query's own obs, columns and names."""
    require_suffix(options.out)
    reference = ReferenceModel.load(options.reference)
    if options.out.exists() or (options.csv and options.csv.exists()):
        raise DataError(
            f"{options.out if options.out.exists() else options.csv} exists; remove it or choose another name"
        )
    table = read_gene_table(options.gene_table) if options.gene_table else None
    with open_source(options.query, options.layer, options.input) as source:
        require_cells(source.n_obs, options.query)
        batches = QueryBatches(source, reference.schema, reference.normalization, table=table)
        _say_coverage(options.query, batches.coverage)
        adata = coordinates(reference, batches, source.obs, options.probabilities, "map-query")
    adata.uns["unicoord"] |= {"reference": options.reference.name, "profile_share": batches.coverage.profile_share}
    write_output(adata, options.out, [options.query, options.reference])
    if options.csv:
        with finished_file(options.csv) as partial:
            adata.obs.to_csv(partial)
    return {
        "mapped": str(options.out),
        "cells": adata.n_obs,
        "genes_found": batches.coverage.num_found,
        "profile_share": batches.coverage.profile_share,
        "predictions": _say_predictions(adata, reference),
    }


def require_suffix(out: Path) -> None:
    """UsageError unless the name says what to write."""
    if out.suffix not in (".h5ad", ".zarr"):
        raise UsageError(f"--out {out}: give it a name that ends in .h5ad or .zarr")


def require_cells(num_cells: int, path: Path) -> None:
    """DataError for a file without cells."""
    if not num_cells:
        raise DataError(f"{path}: holds no cells")


def write_output(adata: anndata.AnnData, out: Path, inputs: list[Path]) -> None:
    """Write .h5ad or .zarr aside and rename."""
    if out.suffix == ".zarr":
        with finished_directory(out, inputs, {}) as partial:
            write_anndata(adata, partial)
    else:
        with finished_file(out) as partial:
            write_anndata(adata, partial)


def _say_coverage(query: Path, coverage: Coverage) -> None:
    text = (
        f"{query.name}: {coverage.num_found:,} of the reference's {coverage.num_reference_genes:,} genes found "
        f"({coverage.num_query_genes:,} in the query); they carry {coverage.profile_share:.1%} of the mean profile"
    )
    if coverage.missing:
        text += f"\n  most missed: {', '.join(coverage.missing[:8])}"
    print(text, file=sys.stderr)


def _say_predictions(adata: anndata.AnnData, reference: ReferenceModel) -> dict[str, dict[str, int]]:
    """Print cells per class with their mean confidence, for labels that are not technical."""
    predictions: dict[str, dict[str, int]] = {}
    for label in reference.config.labels:
        predicted, confidence = adata.obs[f"{label.name}_predicted"], adata.obs[f"{label.name}_confidence"]
        counts = predicted.value_counts()
        predictions[label.name] = {str(name): int(count) for name, count in counts.items() if count}
        if label.name in reference.config.technical:
            continue
        table = Table("class", "cells", "mean confidence", "below 0.5", title=f"{label.name} predicted")
        for name in predictions[label.name]:
            inside = confidence[predicted == name]
            table.add_row(name, f"{len(inside):,}", f"{inside.mean():.2f}", f"{(inside < LOW_CONFIDENCE).mean():.1%}")
        Console(stderr=True).print(table)
    return predictions
