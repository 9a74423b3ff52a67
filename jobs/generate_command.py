"""The command line of `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .command_line import Json, MinCoverage, Out, Reference, finish, pairs

_LABEL = (
    "Set a discrete coordinate of all cells, or of each by a column of obs: platform=@seq_tech.  Classes of "
    "unsupervised ones are numbers: unsupervised_discrete_0=3."
)
_VALUE = "Set a continuous coordinate, in its label's units, for all cells or by a column: time=@day."
_JITTER = "Add noise to a continuous coordinate: U(low,high) or N(sd)."
_SWEEP = "Each cell at so many values from first to last: time=0:1:21; or from class to class: cell_type=B:NK:11."


def add_generate(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(generate)


def generate(
    reference: Reference,
    out: Out,
    cells: Annotated[
        Path | None,
        typer.Argument(metavar="[CELLS]", help="Cells to start from: .h5ad, 10x .h5, .zarr, or an atlas store."),
    ] = None,
    set_label: Annotated[list[str] | None, typer.Option(help=_LABEL, metavar='cell_type="CD8 T"')] = None,
    set_value: Annotated[list[str] | None, typer.Option(help=_VALUE, metavar="time=300")] = None,
    jitter: Annotated[list[str] | None, typer.Option(help=_JITTER, metavar="time=U(-0.5,0.5)")] = None,
    sweep: Annotated[list[str] | None, typer.Option(help=_SWEEP, metavar="time=0:1:21")] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(help="No file: new cells from the reference's training cells of a class.", metavar="cell_type=B"),
    ] = None,
    num: Annotated[int, typer.Option(help="With --like: how many cells.", metavar="N")] = 1,
    between: Annotated[
        tuple[str, str] | None, typer.Option(help="Cells on the way from one cell of CELLS to another.", metavar="A B")
    ] = None,
    steps: Annotated[int, typer.Option(help="With --between: how many, ends included.")] = 11,
    exact: Annotated[bool, typer.Option(help="A set continuous coordinate has no variance.")] = False,
    sample: Annotated[
        Literal["posterior", "mode"],
        typer.Option(help="posterior: draw the continuous coordinates of each cell; mode: take their means."),
    ] = "posterior",
    seed: Annotated[int, typer.Option(help="Of all draws; each depends on it and on the cell's row only.")] = 0,
    min_value: Annotated[float, typer.Option(help="Smaller log-normalized values are dropped; 0 keeps all.")] = 0.01,
    counts: Annotated[bool, typer.Option(help="Write Poisson counts in place of log-normalized values.")] = False,
    depth: Annotated[
        float | None, typer.Option(help="With --counts: size factor of the cells, in place of each one's own.")
    ] = None,
    reconstruct: Annotated[bool, typer.Option(help="Set nothing: what the model makes of the cells.")] = False,
    layer: Annotated[str | None, typer.Option(help="Matrix to read: X, raw or the name of a layer.")] = None,
    min_coverage: MinCoverage = 0.3,
    as_json: Json = False,
) -> None:
    """Reconfigure cells: set coordinates, decode, and write what the model makes of them.

    A coordinate is set for all cells or by a column, with noise, or at each value of a sweep.  Without CELLS, --like
    takes cells from the reference itself.  obs of the output has <coordinate>_generated for each that was set.
    """
    from unicoord_atlas.coordinate_changes import Changes, Jitter
    from unicoord_atlas.generate import Generation

    from . import generate as job
    from .hub import local_reference

    changes = Changes(
        pairs(set_label, "--set-label"),
        pairs(set_value, "--set-value"),
        {name: Jitter.parse(text) for name, text in pairs(jitter, "--jitter").items()},
        pairs(sweep, "--sweep"),
    )
    how = Generation(changes, reconstruct, exact, sample, seed, min_value, counts, depth)
    seeds = pairs(like, "--like")  # before the reference, which may be far
    options = job.GenerateOptions(
        cells, local_reference(reference), out, how, seeds, num, between, steps, layer, min_coverage
    )
    finish(job.run(options), as_json)
