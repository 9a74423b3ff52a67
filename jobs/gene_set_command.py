"""The command line's part about gene sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .command_line import Json, finish


def add_gene_set_commands(app: typer.Typer) -> None:
    """Add select-gene-sets and activities."""

    @app.command("select-gene-sets")
    def select_gene_sets(
        store: Annotated[Path, typer.Argument(help="The atlas store; obsm/X_gene_sets is added to it.")],
        gmt: Annotated[Path, typer.Option(help="Gene sets: name, description, genes, between tabs.", metavar="FILE")],
        label: Annotated[str, typer.Option(help="obs column with the types to tell apart.", metavar="cell_type")],
        out: Annotated[
            Path | None, typer.Option(help="Folder for tables and figures; beside the store if not given.")
        ] = None,
        score: Annotated[Literal["aucell", "mean_z"], typer.Option(help="How sets are scored.")] = "aucell",
        zeros: Annotated[
            Literal["unranked", "random"],
            typer.Option(help="Genes that a cell does not show: unranked, or ranked at random by a hash."),
        ] = "unranked",
        genes: Annotated[
            Literal["common", "all"], typer.Option(help="Genes that count: those that all sources measured, or all.")
        ] = "common",
        min_genes: Annotated[int, typer.Option(help="A set has at least so many genes that count.")] = 50,
        max_genes: Annotated[int, typer.Option(help="A set has at most so many genes that count.")] = 500,
        top_share: Annotated[float, typer.Option(help="AUCell looks at this share of the ranking.")] = 0.05,
        bins: Annotated[int, typer.Option(help="Bins of the histograms that entropies are of.")] = 100,
        cells: Annotated[int, typer.Option(help="Labelled cells to select on, by their types' shares.")] = 50_000,
        null_draws: Annotated[int, typer.Option(help="Random sets of each size.")] = 10_000,
        null_sizes: Annotated[int, typer.Option(help="Sizes of random sets; others lie between.")] = 12,
        null_cells: Annotated[int, typer.Option(help="Cells that the test looks at.")] = 2_000,
        p: Annotated[float, typer.Option("--p", help="A set's entropy is above chance with less than this.")] = 0.001,
        trees: Annotated[int, typer.Option(help="Trees of the random forest.")] = 500,
        levels: Annotated[
            int, typer.Option(help="Trees split between so many quantiles of a set's scores; 0 = between all scores.")
        ] = 64,
        top: Annotated[int, typer.Option(help="Most important sets that go on.")] = 100,
        groups: Annotated[int, typer.Option(help="Groups of correlated sets; one set of each is chosen.")] = 30,
        seed: Annotated[int, typer.Option(help="Seed of subsample, random sets and forest.")] = 0,
        replace: Annotated[bool, typer.Option(help="Take out scores that were made with other settings.")] = False,
        dask: Annotated[str | None, typer.Option(help="Score on a cluster.", metavar="local:N|k8s|ADDRESS")] = None,
        as_json: Json = False,
    ) -> None:
        """Choose gene sets that tell types apart, and score them in all cells.

        Sets whose scores have more information entropy than random sets; of these the ones a random forest needs most;
        of these one a group of correlated sets.  Then `train --continuous obsm:X_gene_sets` makes them coordinates,
        and mapped queries get them by name.
        """
        from . import select_gene_sets as job

        options = job.SelectGeneSetsOptions(
            store, gmt, label, out, score, zeros, genes, min_genes, max_genes, top_share, bins, cells,
            null_draws, null_sizes, null_cells, p, trees, levels, top, groups, seed, replace, dask,
        )  # fmt: skip
        finish(job.run(options), as_json)

    @app.command()
    def activities(
        cells: Annotated[Path, typer.Argument(help="An atlas with scores, or a mapped query (.h5ad, .zarr).")],
        label: Annotated[
            str, typer.Option(help="obs column with types; of a mapped query <label>_predicted.", metavar="cell_type")
        ],
        out: Annotated[Path, typer.Option(help="Folder for table and dot plot.")],
        key: Annotated[str, typer.Option(help="obsm table with named columns.")] = "X_gene_sets",
        as_json: Json = False,
    ) -> None:
        """Say which gene sets are active in which types: a table with tests, and a dot plot."""
        from . import activities as job

        finish(job.run(job.ActivitiesOptions(cells, label, out, key)), as_json)
