"""The command line of `evaluate reconstruction`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command_line import Json, MinCoverage, Reference, finish


def add_reconstruction(evaluate: typer.Typer) -> None:
    """Add the command to the parser of `evaluate`."""
    evaluate.command("reconstruction")(reconstruction)


def reconstruction(
    cells: Annotated[Path, typer.Argument(help=".h5ad, 10x .h5 or AnnData .zarr with raw counts, or an atlas store.")],
    reference: Reference,
    out: Annotated[Path, typer.Option(help="Directory for JSON, tables and a figure.", metavar="DIR")],
    by: Annotated[str | None, typer.Option(help="obs column: also group by group.", metavar="cell_type")] = None,
    layer: Annotated[str | None, typer.Option(help="Matrix to read: X, raw or the name of a layer.")] = None,
    gene_table: Annotated[Path | None, typer.Option(help="Ensembl ids and symbols.", metavar="TSV")] = None,
    min_coverage: MinCoverage = 0.3,
    as_json: Json = False,
) -> None:
    """Encode and decode cells, and say how much of them comes back: in all, by gene, by group.

    explained is 1 - squared error / squared error of the atlas's mean profile (each gene over the cells whose
    source measured it), summed over the genes that the cells measured; cells that the model was not trained on make
    it honest.
    """
    from . import evaluate_reconstruction as job
    from .hub import local_reference

    place = local_reference(reference)
    options = job.EvaluateReconstructionOptions(cells, place, out, by, layer, gene_table, min_coverage)
    finish(job.run(options), as_json)
