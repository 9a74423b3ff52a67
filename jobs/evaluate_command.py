"""The command line of `evaluate`: MAPPED --truth ..., and whatever is added beside it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .command_line import Json, finish, listed

_DEFAULT = "mapped"


class EvaluateGroup(TyperGroup):
    """`evaluate FILE ...` is `evaluate mapped FILE ...`, unless FILE is the name of another command."""

    def resolve_command(self, context: Any, args: list[str]) -> Any:
        """The command that the first word names, or the default one."""
        if args and args[0] not in self.commands and Path(args[0]).suffix:
            args = [_DEFAULT, *args]
        return super().resolve_command(context, args)


def add_mapped(evaluate: typer.Typer) -> None:
    """Add the command for mapped cells to the parser of `evaluate`."""
    evaluate.command(_DEFAULT)(mapped)


def mapped(
    mapped: Annotated[Path, typer.Argument(help="What map-query wrote: .h5ad or .zarr.")],
    truth: Annotated[
        str,
        typer.Option(
            help="obs columns with the truth: COLUMN if named as a label of the reference, else COLUMN=LABEL.",
            metavar="COL[,COL]",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory for JSON, tables and figures.", metavar="DIR")],
    label_map: Annotated[
        Path | None,
        typer.Option(help="CSV as of ingest: column, label, and what the label is called here.", metavar="CSV"),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="obs column: also how well batches mix (needs scib-metrics).", metavar="COL")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare predictions with the truth: `evaluate MAPPED --truth cell_type --out DIR`.

    Accuracy, F1, hierarchical F1, calibration (ECE over 15 bins of equal mass; NLL if MAPPED was made with
    --probabilities), calls, novelty of each type that the reference lacks, confusion, the flow from labels to
    predictions, and what each dimension knows of every label of the reference that obs has.  Classes that the
    reference folded, and "Others", count as its class "other".
    """
    from . import evaluate as job

    finish(job.run(job.EvaluateOptions(mapped, listed(truth), out, label_map, batch)), as_json)
