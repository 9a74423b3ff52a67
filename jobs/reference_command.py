"""The command lines of what is done with a reference: export it, map cells onto it, ask it for neighbours, share it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command_line import DaskOption, Json, MinCoverage, Out, PartOption, Reference, WithCounts, finish, listed


def add_reference_commands(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export-reference")(export_reference)
    app.command("map-query")(map_query)
    app.command("query-neighbors")(query_neighbors)
    app.command("fine-tune")(fine_tune)
    app.command("share-reference")(share_reference)


def export_reference(
    run: Annotated[Path, typer.Option(help="A finished run directory.")],
    out: Out,
    latents: Annotated[
        Path | None,
        typer.Option(help="Bundle these coordinates of the atlas's cells: for query-neighbors, in place of counts."),
    ] = None,
    index: Annotated[bool, typer.Option(help="Also a faiss index of the bundled cells: for millions of them.")] = False,
    as_json: Json = False,
) -> None:
    """Write a reference model to share: safetensors, JSON, model card."""
    from . import export_reference as job

    finish(job.run(job.ExportReferenceOptions(run, out, latents, index)), as_json)


def map_query(
    query: Annotated[Path, typer.Argument(help=".h5ad, 10x .h5 or AnnData .zarr with raw counts, or an atlas store.")],
    reference: Reference,
    out: Out,
    probabilities: Annotated[bool, typer.Option(help="Write the probability of every class to obsm.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write obs, with the predictions, as CSV too.")] = None,
    layer: Annotated[str | None, typer.Option(help="Matrix to read: X, raw or the name of a layer.")] = None,
    gene_table: Annotated[Path | None, typer.Option(help="Ensembl ids and symbols.", metavar="TSV")] = None,
    consistent: Annotated[
        bool,
        typer.Option(
            help="Labels of tied levels are decoded together, so that each lies below its parent, if that has children."
        ),
    ] = False,
    min_confidence: Annotated[
        float, typer.Option(help="A class of less probability is not called: its parent is, or the cell is unassigned.")
    ] = 0.5,
    max_novelty_p: Annotated[
        float, typer.Option(help="Cells whose novelty_p is below it are not called; 0 = call them, too.")
    ] = 0.01,
    min_coverage: MinCoverage = 0.3,
    force: Annotated[bool, typer.Option(help="Map it whatever it covers.")] = False,
    part: PartOption = None,
    dask: DaskOption = None,
    with_counts: WithCounts = False,
    as_json: Json = False,
) -> None:
    """Map new cells onto a reference: coordinates, labels, confidence, novelty.

    The output holds the query's obs and the coordinates in obsm, and no X but with --with-counts.  <label>_predicted
    is always the most probable class; <label>_call and <label>_call_level say what may be relied on.  novelty is higher
    for stranger cells, novelty_p the share of held-out reference cells as strange.
    """
    from unicoord_atlas.calls import CallRule

    from . import map_query as job
    from .hub import local_reference
    from .parts import Part

    options = job.MapQueryOptions(
        query,
        local_reference(reference),
        out,
        probabilities,
        csv,
        layer,
        gene_table,
        CallRule(min_confidence, max_novelty_p),
        min_coverage,
        force,
        consistent,
        Part.of(part),
        dask,
        with_counts,
    )
    finish(job.run(options), as_json)


def query_neighbors(
    query: Annotated[Path, typer.Argument(help="A file that map-query wrote, or cells with raw counts.")],
    reference: Reference,
    out: Annotated[Path, typer.Option(help="Table to write: .csv or .parquet.")],
    k: Annotated[int, typer.Option("--k", help="Neighbours of each cell.")] = 15,
    columns: Annotated[
        str, typer.Option(help="obs columns of the reference cells to write, too; its labels if not given.")
    ] = "",
    min_coverage: MinCoverage = 0.3,
    as_json: Json = False,
) -> None:
    """Find the nearest reference cells of each cell, with their labels, in X_unicoord_bio.

    The reference is one that was exported with --latents.  The table has a row a neighbour: cell, rank, neighbor,
    distance, labels.
    """
    from . import query_neighbors as job
    from .hub import local_reference

    options = job.QueryNeighborsOptions(query, local_reference(reference), out, k, listed(columns), min_coverage)
    finish(job.run(options), as_json)


def fine_tune(
    query: Annotated[Path, typer.Argument(help="Cells of a new batch: .h5ad, 10x .h5, .zarr or an atlas store.")],
    reference: Reference,
    out: Out,
    label: Annotated[str, typer.Option(help="Technical label that gets a new class.", metavar="dataset")],
    name: Annotated[str, typer.Option(help="Name of the new class.", metavar="my_batch")],
    epochs: Annotated[int, typer.Option(help="Passes over the cells.")] = 20,
    min_coverage: MinCoverage = 0.3,
    as_json: Json = False,
) -> None:
    """Add a query's batch to a reference as a class of a technical label; nothing else of the reference changes."""
    from . import fine_tune as job
    from .hub import local_reference

    options = job.FineTuneOptions(query, local_reference(reference), out, label, name, epochs, min_coverage)
    finish(job.run(options), as_json)


def share_reference(
    reference: Annotated[Path, typer.Argument(help="A reference directory.")],
    repository: Annotated[
        str, typer.Option(help="USER/NAME on the Hugging Face hub, or an address.", metavar="USER/NAME|s3://...")
    ],
    public: Annotated[bool, typer.Option(help="Let everybody see it; private otherwise.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a reference to the Hugging Face hub, by the account of `hf auth login`, or to an object store.

    In an object store nothing is replaced, and the reference is there once its manifest is, which goes up last.
    """
    from .hub import upload

    finish(upload(reference, repository, public), as_json)
