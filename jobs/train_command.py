"""The command line of `train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .command_line import CacheFolder, CacheSize, Json, cache_of, finish, listed


def add_train(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    store: Annotated[Path, typer.Argument(help="The atlas store to train on, or its address.")],
    out: Annotated[
        Path, typer.Option(help="Run directory; an unfinished run of the same settings goes on.", metavar="RUN")
    ],
    config: Annotated[Path | None, typer.Option(help="Settings; see `config --default`.", metavar="TOML")] = None,
    discrete: Annotated[
        str | None, typer.Option(help="Label columns to supervise.", metavar="cell_type,dataset")
    ] = None,
    continuous: Annotated[str | None, typer.Option(help="Numeric columns to supervise.", metavar="time")] = None,
    hierarchy: Annotated[
        str | None,
        typer.Option(
            help="Parent and child column; or a tree of labels, with its column if that is not the first of "
            "--discrete: a CSV with father,child or the Cell Ontology.",
            metavar='"cell_class > cell_type"|FILE|"FILE: cell_type"',
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training cells.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, split, order and noise.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: section.key=value.", metavar="A.B=C")
    ] = None,
    report: Annotated[
        bool, typer.Option(help="Write RUN/report.html at the end; needs the extra `report`, and says so without it.")
    ] = True,
    cache: CacheFolder = None,
    cache_size: CacheSize = "50GB",
    mirror: Annotated[
        str | None,
        typer.Option(
            help="Address in an object store (s3://, gs://, az://) where a copy of RUN is kept, sent behind each "
            "checkpoint: the same command goes on from it where RUN is gone or older, as on another machine.",
            metavar="ADDRESS",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the joint-VAE on an atlas store.

    The store may be an address: s3://, gs://, az://, http:// or https:// of an atlas (needs the extra s3; credentials
    and AWS_ENDPOINT_URL come from the environment).  So may that of every command that only reads it.
    """
    from unicoord_atlas.config import RunConfig

    given = {
        "latent.discrete": listed(discrete) if discrete is not None else None,
        "latent.continuous": listed(continuous) if continuous is not None else None,
        "latent.hierarchy": [hierarchy] if hierarchy is not None else None,
        "train.epochs": epochs,
        "train.seed": seed,
        "train.device": device,
    }
    options = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    settings = RunConfig.load(config, [*options, *(set or [])])
    from .train import TrainOptions, run

    finish(run(TrainOptions(store, out, settings, report, cache_of(cache, cache_size), mirror)), as_json)
