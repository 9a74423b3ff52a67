"""unicoord-atlas: the command line.  Each command imports its job when it runs, so that --help is quick."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unicoord_atlas.allocator import share_one_heap
from unicoord_atlas.errors import AlreadyDone, UnicoordError, UsageError

from .browse_command import add_browse
from .command_line import (
    CacheFolder,
    CacheSize,
    DaskOption,
    Json,
    Out,
    PartOption,
    WithCounts,
    cache_of,
    finish,
)
from .console_text import one_line, plain_console
from .convert_command import add_convert
from .evaluate_command import EvaluateGroup, add_mapped
from .figure_command import add_figure
from .gene_set_command import add_gene_set_commands
from .generate_command import add_generate
from .ingest_command import add_ingest
from .reconstruction_command import add_reconstruction
from .reference_command import add_reference_commands
from .report_command import add_report
from .restore_command import add_restore
from .simulate_command import add_simulate
from .train_command import add_train

_ONE_OF_SEVERAL = "TORCHELASTIC_RUN_ID"
_TYPER_USAGE = 2
_OPEN_FILES = 65_536

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
    return plain_console(file=sys.stdout, quiet=as_json)


add_ingest(app)


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
    """Write an atlas with a graph again so that neighbours lie close on disk; obs/original_row keeps where each was.

    Beside the new atlas, the disk needs room for its counts once more until it is finished.
    """
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
    recipe: Annotated[
        Literal["default", "paper", "released"] | None,
        typer.Option(help="Print the settings of this recipe, commented: what a file says wins over its `recipe`."),
    ] = None,
) -> None:
    """Print settings as TOML."""
    from unicoord_atlas.config import RunConfig

    if recipe is None and not default:
        raise UsageError("config: say --default, or --recipe NAME, to print settings")
    print(RunConfig.of({"recipe": recipe or "default"}).to_toml(comments=True), end="")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has: versions, devices, bf16, memory, disk."""
    from .doctor import run

    finish(run(_page(as_json)), as_json)


add_train(app)


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
    with_counts: WithCounts = False,
    as_json: Json = False,
) -> None:
    """Write the coordinates of all cells of an atlas: AnnData Zarr and parquet."""
    from . import export_latents as job
    from .parts import Part

    kept = cache_of(cache, cache_size)
    options = job.ExportLatentsOptions(store, run, out, Part.of(part), dask, kept, with_counts)
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


add_simulate(app)


def main() -> None:
    """Entry point: runs a command and turns errors into one line and an exit code."""
    share_one_heap()
    _allow_many_files()
    code = run_command(app)
    if _ONE_OF_SEVERAL in os.environ:
        # Threads of gloo that outlive their group abort a process that ends on a busy machine: it would seem to fail.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _allow_many_files() -> None:
    """An atlas of hundreds of sources or shards holds more open than the usual 1,024."""
    if sys.platform == "win32":  # no such limit, and no such module
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError):  # macOS says that there is no hard limit, and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_command(command: Callable[[], Any]) -> int:
    """Exit code of a command; a user's error is one line on stderr, anything else keeps its traceback."""
    received: list[int] = []

    def terminated(number: int, _frame: Any) -> None:
        received.append(128 + number)
        print("unicoord-atlas: terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminated)
    code = _code_of(command)
    # What is raised within a callback or a finalizer gets lost; the signal must not.
    return code or (received[0] if received else 0)


def _code_of(command: Callable[[], Any]) -> int:
    try:
        command()
    except UnicoordError as error:
        print(f"unicoord-atlas: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except AlreadyDone as done:
        print(f"unicoord-atlas: {done}", file=sys.stderr)
        if "--json" in sys.argv and os.environ.get("RANK", "0") == "0":
            print(json.dumps({"out": str(done.out), "already_done": True}))
    except SystemExit as stop:  # typer ends every command so; 2 is its code for usage
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return UsageError.exit_code if code == _TYPER_USAGE else code
    return 0


if __name__ == "__main__":
    main()
