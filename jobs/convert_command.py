"""The command lines of what moves cells and coordinates between Zarr and SOMA, here and in object stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command_line import Json, finish

_SOMA = (
    "A SOMA Experiment, here or on S3: PATH?measurement=NAME&layer=NAME&filter=CONDITION; all but PATH may be left out."
)


def add_convert(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(convert)
    app.command("add-latents")(add_latents)
    app.command("copy")(copy)


def convert(
    store: Annotated[Path, typer.Argument(help=f"An atlas store. Or: {_SOMA[0].lower()}{_SOMA[1:]}")],
    out: Annotated[Path, typer.Option(help="A name that ends in .zarr for an atlas, any other for a SOMA.")],
    as_json: Json = False,
) -> None:
    """Write an atlas as a SOMA Experiment, or cells of one as an atlas; both are read through and compared.

    A SOMA gets all tables and the graph of the atlas; an atlas gets counts, obs and var, and its graph is built anew.
    Every job but reorder takes a SOMA where it takes an atlas; build-graph and select-gene-sets write into one on this
    machine.  Needs the extra soma.

    Example: unicoord-atlas convert 'census.soma?layer=raw&filter=tissue == "lung"' --out lung.zarr
    """
    from . import convert as job

    finish(job.run(job.ConvertOptions(store, out)), as_json)


def add_latents(
    latents: Annotated[Path, typer.Argument(help="What export-latents wrote for the cells of the SOMA.")],
    soma: Annotated[Path, typer.Option(help=_SOMA)],
    prefix: Annotated[str, typer.Option(help="Put before the names of the tables in obsm.")] = "",
    as_json: Json = False,
) -> None:
    """Write coordinates back into obsm of a SOMA Experiment; cells outside of its filter get NaN."""
    from . import convert as job

    finish(job.add_latents(job.AddLatentsOptions(latents, soma, prefix)), as_json)


def copy(
    source: Annotated[Path, typer.Argument(help="A finished directory (atlas, latents, reference), or its address.")],
    out: Annotated[Path, typer.Option(help="Its address in an object store, or a path for what lies in one.")],
    as_json: Json = False,
) -> None:
    """Copy a finished output to an object store, or from one; every file is compared with its manifest on the way.

    The manifest goes last, so nobody takes half a copy for a whole one, and nothing that is there is replaced.  The
    same command completes what was killed.  Needs the extra s3.

    Example: unicoord-atlas copy atlas.zarr --out s3://bucket/atlas.zarr
    """
    from . import copy_finished as job

    finish(job.run(job.CopyOptions(source, out)), as_json)
