"""The command line of `ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .command_line import Json, finish, listed


def add_ingest(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(ingest)


def ingest(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help=".h5ad, 10x .h5 or AnnData .zarr: files, folders, globs.")
    ],
    out: Annotated[Path | None, typer.Option(help="The atlas store to make.", metavar="STORE")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="obs columns that are labels, comma-separated or one at a time.", metavar="cell_type,dataset"
        ),
    ] = None,
    label_map: Annotated[
        Path | None, typer.Option(help="CSV with source,column,label and the label columns to fill.", metavar="CSV")
    ] = None,
    genes: Annotated[
        str,
        typer.Option(
            help="union, intersection, or a file with the genes in their order.", metavar="FILE|union|intersection"
        ),
    ] = "union",
    gene_key: Annotated[
        Literal["symbol", "ensembl"] | None, typer.Option(help="symbol or ensembl; guessed if not given.")
    ] = None,
    gene_table: Annotated[
        Path | None, typer.Option(help="Ensembl ids and symbols, tab-separated.", metavar="TSV")
    ] = None,
    input: Annotated[
        Literal["counts", "lognorm"], typer.Option(help="counts, or lognorm for log1p of normalized counts.")
    ] = "counts",
    layer: Annotated[
        str | None, typer.Option(help="Matrix to read: X, raw or the name of a layer; chosen if not given.")
    ] = None,
    unlabelled: Annotated[str, typer.Option(help="Further words that mean 'no label', comma-separated.")] = "",
    allow_missing_labels: Annotated[
        bool, typer.Option(help="Cells of a source without a label column are unlabelled.")
    ] = False,
    min_cells: Annotated[
        int, typer.Option(help="A gene is left out of size factors if highly expressed in so many cells; 1 = scanpy.")
    ] = 1,
    shuffle: Annotated[
        bool,
        typer.Option(
            help="Write the cells of all sources in random order.  First a store in order is written, then its cells "
            "are read from all over it: a second pass, and twice the disk until it is done."
        ),
    ] = False,
    format: Annotated[
        Literal["zarr", "soma"],
        typer.Option(
            help="zarr, or soma for a TileDB-SOMA Experiment (needs the extra soma), written by way of an atlas that "
            "is removed: twice the disk until it is done."
        ),
    ] = "zarr",
    seed: Annotated[int, typer.Option(help="Seed of --shuffle.")] = 0,
    dask: Annotated[
        str | None,
        typer.Option(
            help="Look through sources and write shards in processes: local:N, k8s in the pods of an Indexed Job, or "
            "the address of a scheduler whose workers see the same files.  The bytes are the same; threads of one "
            "process if not given.",
            metavar="local:N|k8s|ADDRESS",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print all facts and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Turn files of cells into one atlas store: raw counts, frozen normalization, labels."""
    from .ingest import IngestOptions, run

    options = IngestOptions(
        sources=sources,
        out=out,
        labels=[name for words in label or [] for name in listed(words)],
        label_map=label_map,
        unlabelled=listed(unlabelled),
        allow_missing_labels=allow_missing_labels,
        genes=genes,
        gene_key=gene_key,
        gene_table=gene_table,
        input=input,
        layer=layer,
        min_cells=min_cells,
        shuffle=shuffle,
        seed=seed,
        dask=dask,
        format=format,
        dry_run=dry_run,
    )
    finish(run(options), as_json)
