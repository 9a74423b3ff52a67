"""The command line of `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command_line import Json, finish


def add_report(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    out: Annotated[Path, typer.Option(help="The page to write.", metavar="HTML")],
    atlas: Annotated[
        Path | None, typer.Option(help="The atlas of the run: graph, gene sets, truth of tables.", metavar="STORE")
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option(help="What export-latents wrote: map, validation cells against the truth.", metavar="ZARR"),
    ] = None,
    mapped: Annotated[
        Path | None,
        typer.Option(help="What map-query wrote: its cells against the labels that obs has.", metavar="FILE"),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Also write the figures, as PNG and SVG, into this directory.", metavar="DIR")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one page about a run that opens offline; needs the extra `report`.

    A section whose input is not given says in one line which option gives it.  The numbers of the page lie in it as
    JSON, in the element #report-data.

    Example: unicoord-atlas report run --atlas atlas.zarr --latents latents.zarr --out report.html
    """
    from . import report as job

    finish(job.run(job.ReportOptions(run, out, atlas, latents, mapped, figures)), as_json)
