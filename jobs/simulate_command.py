"""The command line of `simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command_line import Json, finish


def add_simulate(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(simulate)


def simulate(
    cells: Annotated[int, typer.Option(help="How many cells.", metavar="N")],
    out: Annotated[Path, typer.Option(help="Folder for the files, one .h5ad an organ.", metavar="DIR")],
    genes: Annotated[
        str | None,
        typer.Option(
            help="How many genes; or a file of genes, one a line; or a file with real cells (.h5ad, .h5, .zarr), whose "
            "genes and mean counts are taken.",
            metavar="FILE|G",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed and settings make the same bytes.")] = 0,
    organs: Annotated[int, typer.Option(help="How many organs, up to 38.")] = 38,
    genes_detected: Annotated[
        int | None, typer.Option(help="Genes detected in the median cell; 1300, or a quarter of the genes.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="A file with real cells: genes of --genes get their mean counts.")
    ] = None,
    compress: Annotated[
        bool, typer.Option(help="Store X in gzip chunks: 7 instead of 16 KB a cell, a little slower to read.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Invent an atlas with the statistics of a real one, to try things on at any size.

    Writes an .h5ad for each organ, with raw counts in X and in obs cell_type (missing for some cells), cell_class,
    organ, dataset, donor, seq_tech, gradient_1, gradient_2 (positions that gene programmes follow) and true_cell_type
    (never missing).  With some 44,000 genes the median cell shows 1,300 of them and the mean cell 2,000.

    Example: unicoord-atlas simulate --cells 100000 --genes 43878 --out cells, then unicoord-atlas ingest cells
    --label cell_type --out atlas.zarr.  A killed run goes on with the organs that are not written yet.
    """
    from . import simulate as job

    finish(job.run(job.SimulateOptions(cells, out, genes, seed, organs, genes_detected, like, compress)), as_json)
