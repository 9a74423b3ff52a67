"""The command line of `figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .command_line import Json, MinCoverage, Reference, finish, listed, pairs


def add_figure(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(figure)


def figure(
    kind: Annotated[
        Literal["nearest", "markers", "trajectory", "sweep-gif"],
        typer.Argument(
            help="nearest: generated cells at their nearest real cell; markers: genes before and after; trajectory: "
            "cells along a sweep coloured by its value; sweep-gif: a film of the sweep."
        ),
    ],
    cells: Annotated[Path, typer.Argument(help="Cells to start from: .h5ad, 10x .h5, .zarr, or an atlas store.")],
    reference: Reference,
    out: Annotated[Path, typer.Option(help="The picture: .png, or .gif of sweep-gif.")],
    by: Annotated[str, typer.Option(help="Column of obs that colours or groups cells.", metavar="cell_type")],
    set_label: Annotated[list[str] | None, typer.Option(help="As of generate.", metavar="cell_type=B")] = None,
    set_value: Annotated[list[str] | None, typer.Option(help="As of generate.", metavar="time=300")] = None,
    sweep: Annotated[str | None, typer.Option(help="As of generate.", metavar="time=0:1:21")] = None,
    genes: Annotated[str, typer.Option(help="Of markers: symbols or Ensembl ids.", metavar="CD3E,LYZ")] = "",
    sample: Annotated[Literal["posterior", "mode"], typer.Option(help="As of generate.")] = "posterior",
    seed: Annotated[int, typer.Option(help="Of the draws, and of which cells are taken.")] = 0,
    max_cells: Annotated[int, typer.Option(min=1, help="So many cells at most, taken at random.")] = 2000,
    layer: Annotated[str | None, typer.Option(help="Matrix to read: X, raw or the name of a layer.")] = None,
    min_coverage: MinCoverage = 0.3,
    as_json: Json = False,
) -> None:
    """Draw generated cells as the paper does; needs the extra `report`.

    Example: unicoord-atlas figure markers cells.h5ad --reference reference --set-label cell_type="CD8 T" --by
    cell_type --genes PTPRC,CD3E,LYZ --out markers.png.
    """
    from unicoord_atlas.coordinate_changes import Changes
    from unicoord_atlas.generate import Generation

    from . import figure as job
    from .hub import local_reference

    sweeps = pairs([sweep] if sweep else None, "--sweep")
    changes = Changes(pairs(set_label, "--set-label"), pairs(set_value, "--set-value"), {}, sweeps)
    how = Generation(changes, sample=sample, seed=seed)
    place = local_reference(reference)
    options = job.FigureOptions(kind, cells, place, out, how, by, listed(genes), max_cells, layer, min_coverage)
    finish(job.run(options), as_json)
