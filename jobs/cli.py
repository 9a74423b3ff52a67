"""unicoord-atlas: the command line.  Each command imports its job when it runs, so that --help is quick."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unicoord_atlas.errors import AlreadyDone, UnicoordError, UsageError

from .browse_command import add_browse
from .command_line import (
    CacheFolder,
    CacheSize,
    DaskOption,
    Json,
    Out,
    PartOption,
    cache_of,
    finish,
    listed,
    one_line,
)
from .convert_command import add_convert
from .evaluate_command import EvaluateGroup, add_mapped
from .figure_command import add_figure
from .gene_set_command import add_gene_set_commands
from .generate_command import add_generate
from .reconstruction_command import add_reconstruction
from .reference_command import add_reference_commands
from .report_command import add_report
from .restore_command import add_restore

_TYPER_USAGE = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Learn a coordinate system of cells from whole atlases; map, annotate and generate cells with it.",
    epilog="Typical order: ingest, build-graph, select-gene-sets, train, export-latents, export-reference, map-query.  "
    "Exit codes: 0 done, 64 usage, 65 bad data, 78 bad config, 75 lost another process or a server, "
    "130/143 interrupted/terminated, 1 anything else.",
)


def _page(as_json: bool) -> Any:
    """Where a command shows what it was asked for: stdout, or nowhere if JSON goes there."""
    from rich.console import Console

    return Console(quiet=as_json)


@app.command()
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
        dry_run=dry_run,
    )
    finish(run(options), as_json)


@app.command("build-graph")
def build_graph(
    store: Annotated[Path, typer.Argument(help="The atlas store; the graph is added to it.")],
    k: Annotated[
        int, typer.Option("--k", help="Neighbours of each cell beside itself; with --batch, of each batch.")
    ] = 15,
    metric: Annotated[Literal["euclidean", "cosine"], typer.Option(help="How distances are measured.")] = "euclidean",
    num_pcs: Annotated[int, typer.Option(help="Principal components; fewer if there are fewer genes or cells.")] = 50,
    num_genes: Annotated[int, typer.Option(help="Highly variable genes, of those that all sources measured.")] = 2000,
    use_rep: Annotated[
        str | None, typer.Option(help="obsm table to find neighbours in, in place of components.", metavar="KEY")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="obs column: as many neighbours from each batch, as BBKNN.", metavar="COLUMN")
    ] = None,
    recall: Annotated[float, typer.Option(help="Share of true neighbours to find where cells are many.")] = 0.99,
    seed: Annotated[int, typer.Option(help="Seed of k-means and of the sample that recall is measured on.")] = 0,
    replace: Annotated[bool, typer.Option(help="Take out a graph that was made with other settings.")] = False,
    dask: Annotated[str | None, typer.Option(help="Work on a Dask cluster.", metavar="local:N|k8s|ADDRESS")] = None,
    as_json: Json = False,
) -> None:
    """Add principal components, nearest neighbours and UMAP weights to an atlas."""
    from . import build_graph as job

    options = job.BuildGraphOptions(
        store, k, metric, num_pcs, num_genes, use_rep, batch, recall, seed, replace=replace, dask=dask
    )
    finish(job.run(options), as_json)


add_gene_set_commands(app)


@app.command()
def reorder(
    store: Annotated[Path, typer.Argument(help="An atlas store with a graph (build-graph).")],
    out: Annotated[Path, typer.Option(help="The new atlas store.")],
    as_json: Json = False,
) -> None:
    """Write an atlas with a graph again so that neighbours lie close on disk; obs/original_row keeps where each was."""
    from . import reorder as job

    finish(job.run(job.ReorderOptions(store, out)), as_json)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="An atlas store, its address, or any input file.")], as_json: Json = False
) -> None:
    """Say what a store or a file holds: cells, genes, matrices, candidate label columns."""
    from .info import run

    finish(run(path, _page(as_json)), as_json)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="Any finished output directory, or an address of one.")],
    as_json: Json = False,
) -> None:
    """Verify a finished output against its manifest: every file, size and checksum."""
    from .check import run

    finish(run(path, _page(as_json)), as_json)


@app.command()
def config(
    default: Annotated[bool, typer.Option("--default", help="Print the default settings, commented.")] = False,
) -> None:
    """Print settings as TOML."""
    from unicoord_atlas.config import RunConfig

    if not default:
        raise UsageError("config: say --default to print the default settings")
    print(RunConfig().to_toml(comments=True), end="")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has: versions, devices, bf16, memory, disk."""
    from .doctor import run

    finish(run(_page(as_json)), as_json)


@app.command()
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

    finish(run(TrainOptions(store, out, settings, report, cache_of(cache, cache_size))), as_json)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def launch(
    context: typer.Context,
    processes: Annotated[int, typer.Option(help="Processes on this node; they share its cores.")] = 1,
    nnodes: Annotated[int, typer.Option(help="Nodes; each runs this same command.")] = 1,
    rdzv_endpoint: Annotated[str, typer.Option(help="Where the nodes meet: one of them.", metavar="HOST:PORT")] = "",
    rdzv_id: Annotated[str, typer.Option(help="Tells jobs at one endpoint apart.")] = "unicoord-atlas",
    local_addr: Annotated[str | None, typer.Option(help="This node's address, if its name is not known.")] = None,
    node_rank: Annotated[
        int | None, typer.Option(help="This node's number; the nodes meet at node 0.  Found by address if not given.")
    ] = None,
) -> None:
    """Run a command on several processes: launch --processes 2 train atlas.zarr --out run.

    Cells are dealt to the processes; the batch size is that of all together.  RUN must lie where all of them see it.
    """
    from .launch import LaunchOptions, run

    raise SystemExit(run(LaunchOptions(context.args, processes, nnodes, rdzv_endpoint, rdzv_id, local_addr, node_rank)))


@app.command("export-latents")
def export_latents(
    store: Annotated[Path, typer.Argument(help="The atlas store, or its address.")],
    run: Annotated[Path, typer.Option(help="A finished run directory.")],
    out: Out,
    part: PartOption = None,
    dask: DaskOption = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = "50GB",
    as_json: Json = False,
) -> None:
    """Write the coordinates of all cells of an atlas: AnnData Zarr and parquet."""
    from . import export_latents as job
    from .parts import Part

    options = job.ExportLatentsOptions(store, run, out, Part.of(part), dask, cache_of(cache, cache_size))
    finish(job.run(options), as_json)


add_reference_commands(app)
add_convert(app)
evaluate = typer.Typer(
    cls=EvaluateGroup, no_args_is_help=True, help="Measure how good coordinates and generated cells are."
)
app.add_typer(evaluate, name="evaluate")
add_mapped(evaluate)
add_restore(evaluate)
add_reconstruction(evaluate)
add_generate(app)
add_figure(app)
add_report(app)
add_browse(app)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that the demo makes.")] = Path("demo"), as_json: Json = False
) -> None:
    """Run the main job on 700 real blood cells that need no download: about two minutes."""
    from .demo import run

    finish(run(out), as_json)


@app.command()
def simulate(
    cells: Annotated[int, typer.Option(help="How many cells.", metavar="N")],
    out: Annotated[Path, typer.Option(help="Folder for the files, one .h5ad an organ.", metavar="DIR")],
    genes: Annotated[
        str | None,
        typer.Option(
            help="How many genes; or a file of genes, one a line; or a file with real cells (.h5ad, .h5, .zarr), whose "
            "genes and mean counts are taken.",
            metavar="FILE|G",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed and settings make the same bytes.")] = 0,
    organs: Annotated[int, typer.Option(help="How many organs, up to 38.")] = 38,
    genes_detected: Annotated[
        int | None, typer.Option(help="Genes detected in the median cell; 1300, or a quarter of the genes.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="A file with real cells: genes of --genes get their mean counts.")
    ] = None,
    compress: Annotated[
        bool, typer.Option(help="Store X in gzip chunks: 7 instead of 16 KB a cell, a little slower to read.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Invent an atlas with the statistics of a real one, to try things on at any size.

    Writes an .h5ad for each organ, with raw counts in X and in obs cell_type (missing for some cells), cell_class,
    organ, dataset, donor, seq_tech, gradient_1, gradient_2 (positions that gene programmes follow) and true_cell_type
    (never missing).  With some 44,000 genes the median cell shows 1,300 of them and the mean cell 2,000.

    Example: unicoord-atlas simulate --cells 100000 --genes 43878 --out cells, then unicoord-atlas ingest cells
    --label cell_type --out atlas.zarr.  A killed run goes on with the organs that are not written yet.
    """
    from . import simulate as job

    finish(job.run(job.SimulateOptions(cells, out, genes, seed, organs, genes_detected, like, compress)), as_json)


def main() -> None:
    """Entry point: runs a command and turns errors into one line and an exit code."""
    sys.exit(run_command(app))


def run_command(command: Callable[[], Any]) -> int:
    """Exit code of a command; a user's error is one line on stderr, anything else keeps its traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        command()
    except UnicoordError as error:
        print(f"unicoord-atlas: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except AlreadyDone as done:
        print(f"unicoord-atlas: {done}", file=sys.stderr)
    except SystemExit as stop:  # typer ends every command so; 2 is its code for usage
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return UsageError.exit_code if code == _TYPER_USAGE else code
    return 0


def _terminated(number: int, _frame: Any) -> None:
    print("unicoord-atlas: terminated", file=sys.stderr)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
