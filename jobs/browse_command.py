"""The command line of `browse`."""

from __future__ import annotations

from typing import Annotated

import typer


def add_browse(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(browse)


def browse(
    path: Annotated[
        str,
        typer.Argument(
            metavar="LATENTS|REFERENCE",
            help="What export-latents or map-query wrote, or a reference: a directory, its address (s3://...), or "
            "hf://USER/NAME on the Hugging Face hub.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; others than 127.0.0.1 let others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any that is free.", min=0, max=65535)] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A further host name that the server is called by; others are refused.", metavar="NAME"),
    ] = None,
) -> None:
    """Show cells in the browser: colour, search, select, export; needs the extra `report`.

    The map is obsm/X_umap, or a UMAP that is made once and kept beside the cells (of a reference on the hub in our own
    cache).  Of a reference a coordinate of a type or of a cell can be moved: which genes change most, and where the
    cell goes.

    Example: unicoord-atlas browse latents.zarr, then open http://127.0.0.1:8000/
    """
    from unicoord_atlas.loaders.soma_facts import cache_folder

    from . import browse as job
    from .hub import PREFIX, local_reference

    maps = cache_folder() / "maps" if path.startswith(PREFIX) else None  # a further file is a fault in the hub's cache
    job.run(job.BrowseOptions(local_reference(path), host, port, tuple(name or ()), maps))
