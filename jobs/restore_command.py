"""The command line of `evaluate restore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unicoord_atlas.errors import UsageError

from .command_line import Json, finish, listed


def add_restore(evaluate: typer.Typer) -> None:
    """Add the command to the parser of `evaluate`."""
    evaluate.command("restore")(restore)


def restore(
    store: Annotated[Path, typer.Argument(help="The atlas store.")],
    coordinate: Annotated[
        str, typer.Option(help="Continuous column to restore levels of; several are set together.", metavar="time")
    ],
    out: Annotated[Path, typer.Option(help="Directory for table, JSON and figures.", metavar="DIR")],
    leave_out: Annotated[str, typer.Option(help="Levels to leave out in turn, or each.", metavar="V|each")] = "each",
    levels: Annotated[
        str | None, typer.Option(help="Column whose values are the levels; the coordinate itself if not given.")
    ] = None,
    discrete: Annotated[str, typer.Option(help="Label columns to supervise, too.", metavar="cell_type")] = "",
    config: Annotated[Path | None, typer.Option(help="Settings; see `config --default`.", metavar="TOML")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of the trainings.", metavar="A.B=C")
    ] = None,
    as_json: Json = False,
) -> None:
    """Leave a level out of training and restore it: the paper's test of a continuous coordinate.

    Trains once a level, on 80 % of the cells of the other levels; the other 20 % are moved to the level left out and
    compared with its real cells, beside two baselines and the agreement of the real level's own halves.
    """
    from unicoord_atlas.config import RunConfig

    from . import restore as job

    if not listed(coordinate):
        raise UsageError("--coordinate: name a continuous column of obs")
    given = [f"latent.discrete={json.dumps(listed(discrete))}"] if discrete else []
    settings = RunConfig.load(config, [*given, *(set or [])])
    finish(job.run(job.RestoreOptions(store, listed(coordinate), out, settings, leave_out, levels)), as_json)
