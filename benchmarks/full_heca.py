"""From organ files to coordinates, a reference model and an annotated query: a simulated atlas of hECA's size.

For each size of --cells the organ files and a held-out query are simulated (outside the clock), then the commands run
one after the other, each a process: ingest, build-graph, reorder, select-gene-sets (50,000 cells, as the paper), train
for one epoch, export-latents, export-reference, map-query, report.  Of each: wall time, cells/s, peak memory of all its
processes, bytes read and written.  With several sizes: exponents of growth from size to size.  Then the query's
annotation and gradients beside logistic and ridge regression on 50 principal components.

Files and figures stay in --work: a stage that is finished is not run again (if that was another command, the call
ends); one that was cut short goes on, and the times of its attempts are added up.  The page says on which days stages
began, and the revisions of the code.  --data has hECA's gene list and the gene sets.  Needs 33 GB at hECA's size.

    python benchmarks/full_heca.py --cells 10000 100000 300000 1093299 --work DIR --out benchmarks/results/full_heca
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from stage_record import run_stage, when_and_what

HECA_CELLS, QUERY_CELLS, FEWEST_QUERY_CELLS = 1_093_299, 57_000, 500
BYTES_PER_CELL, KEEP_FREE = 30_000, 2 * 2**30
GENES = "heca_v1/total_gene_list_43878.txt"
GENE_SETS = "go_bp_human/go_bp_human_symbols.all_evidence.10_500.gmt"
P_VALUE = 0.05
"""The paper's .001 would leave sets to chance: the programmes of simulated cells are no gene sets of GO."""
FLAT_FROM = 100_000
GIB = 2**30
MOST_MINUTES, MOST_GIB, MOST_EXPONENT, MOST_MEMORY_GROWTH = 45.0, 4.0, 1.1, 1.2
HERE = Path(__file__).parent


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[HECA_CELLS])
    parser.add_argument("--quick", action="store_true", help="10,000 cells")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="further settings of train")
    parser.add_argument("--stop-before", metavar="STAGE", help="to do the rest in another call")
    parser.add_argument("--discard", action="store_true", help="remove the inputs and stores of a size that is done")
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.png")
    args = parser.parse_args()
    sizes = [10_000] if args.quick else sorted(args.cells)
    runs = [run_size(args, cells) for cells in sizes]
    if None in runs:
        return 0
    result = {**circumstances(runs), "runs": runs, "growth": growth(runs)}
    text = table(result)
    print(text)
    bars = judge(result)
    if args.out:
        args.out.with_suffix(".json").write_text(json.dumps({**result, "bars": bars}, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(text)
        plot = [sys.executable, HERE / "heca_plot.py", args.out.with_suffix(".json"), args.out.with_suffix(".png")]
        subprocess.run(plot, check=True)
    return int(not all(bars.values()))


def query_cells(cells: int) -> int:
    """The query's share of the atlas is that of the paper's at every size."""
    return max(round(QUERY_CELLS * cells / HECA_CELLS), FEWEST_QUERY_CELLS)


def run_size(args: argparse.Namespace, cells: int) -> dict[str, Any] | None:
    """All stages at one size; None if told to stop before one."""
    folder = args.work / f"cells{cells}"
    folder.mkdir(parents=True, exist_ok=True)
    require_disk(folder, cells)
    figures = {}
    for name, command in stages(args, folder, cells).items():
        if name == args.stop_before:
            return None
        figures[name] = run_stage(folder, name, [str(word) for word in command])
        figures[name]["cells_per_second"] = of(name, cells) / figures[name]["wall_s"]
        print(f"{cells:>9,} cells  {shown(name, figures[name])}", flush=True)
    if args.discard:
        for path in folder.iterdir():
            if path.is_dir() and path.name not in ("figures", "run", "reference", "near.gene-sets"):
                shutil.rmtree(path)
    accuracy = json.loads((folder / "figures" / "accuracy.log").read_text().splitlines()[-1])
    del figures["accuracy"]
    return {"cells": cells, "inputs": figures.pop("simulate"), "stages": figures, "accuracy": accuracy}


def stages(args: argparse.Namespace, folder: Path, cells: int) -> dict[str, list[Any]]:
    """Name and command of each, in order."""
    organs, query, atlas = folder / "organs", folder / "query.h5ad", folder / "atlas.zarr"
    near, run, latents, reference = (folder / name for name in ("near.zarr", "run", "latents.zarr", "reference"))
    mapped, genes, seed = folder / "mapped.zarr", args.data / GENES, str(args.seed)
    ours = [sys.executable, "-m", "unicoord_atlas.jobs.cli"]
    counts = ["--cells", cells, "--query-cells", query_cells(cells), "--seed", seed]
    labels = ["--discrete", "cell_type,seq_tech", "--continuous", "gradient_1,gradient_2,obsm:X_gene_sets"]
    settings = [word for setting in args.set for word in ("--set", setting)]
    return {
        "simulate": [sys.executable, HERE / "heca_inputs.py", "--genes", genes, *counts, "--out", folder],
        "ingest": [*ours, "ingest", organs, "--label", "cell_type,seq_tech", "--out", atlas],
        "build-graph": [*ours, "build-graph", atlas],
        "reorder": [*ours, "reorder", atlas, "--out", near],
        "select-gene-sets": [
            *(*ours, "select-gene-sets", near, "--gmt", args.data / GENE_SETS, "--label", "cell_type"),
            *("--p", P_VALUE),
        ],
        "train": [*ours, "train", near, "--out", run, "--epochs", "1", "--seed", seed, *labels, *settings],
        "export-latents": [*ours, "export-latents", near, "--run", run, "--out", latents],
        "export-reference": [*ours, "export-reference", "--run", run, "--out", reference],
        "map-query": [*ours, "map-query", query, "--reference", reference, "--out", mapped],
        "report": [
            *(*ours, "report", run, "--atlas", near, "--latents", latents, "--mapped", mapped),
            *("--out", folder / "report.html"),
        ],
        "accuracy": [
            *(sys.executable, HERE / "heca_accuracy.py", "--store", near, "--query", query, "--mapped", mapped),
        ],
    }


def of(stage: str, cells: int) -> int:
    """How many cells a stage is about."""
    return query_cells(cells) if stage in ("map-query", "accuracy") else cells


def require_disk(folder: Path, cells: int) -> None:
    """Say what is free, and stop if it is not enough for what is not there yet."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed = max(cells * BYTES_PER_CELL - there, 0) + KEEP_FREE
    free = shutil.disk_usage(folder).free
    print(f"{cells:>9,} cells  up to {needed / 1e9:.0f} GB more are needed in {folder}, {free / 1e9:.0f} GB are free")
    if free < needed:
        raise SystemExit(f"{folder}: {free / 1e9:.0f} GB free, {needed / 1e9:.0f} needed; choose another --work")


def shown(name: str, row: dict[str, Any]) -> str:
    """A line about a stage."""
    return (
        f"{name:<17} {row['wall_s']:8.1f} s  {row['cells_per_second']:9,.0f} cells/s  {row['peak_rss'] / GIB:5.2f} GiB"
        f"  read {row['read'] / 1e9:6.2f} GB  written {row['written'] / 1e9:6.2f} GB"
    )


def growth(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """From size to size: the exponents of time and memory, and the ratio of memory, of each stage and of all."""
    found = []
    for small, large in itertools.pairwise(runs):
        step = math.log(large["cells"] / small["cells"])
        stages: dict[str, dict[str, float]] = {}
        for name, row in large["stages"].items():
            before = small["stages"][name]
            time_ratio, memory_ratio = (row[key] / before[key] for key in ("wall_s", "peak_rss"))
            stages[name] = {"time": math.log(time_ratio) / step, "memory": math.log(memory_ratio) / step}
        total = math.log(minutes(large) / minutes(small)) / step
        found.append({"from": small["cells"], "to": large["cells"], "time": total, "stages": stages})
    return found


def minutes(run: dict[str, Any]) -> float:
    """Of all stages together."""
    return sum(row["wall_s"] for row in run["stages"].values()) / 60


def table(result: dict[str, Any]) -> str:
    """Everything as markdown."""
    lines = ["# Simulated atlas of hECA's size: every stage", "", f"`{result['command']}`", ""]
    facts = ", ".join(
        f"{key} {result[key]}" for key in ("date", "revision", "machine", "cores", "load_average", "python")
    )
    lines += [f"{facts}. Memory is that of all processes of a stage together, pages of files that they map included."]
    for run in result["runs"]:
        lines += ["", f"## {run['cells']:,} cells x 43,878 genes, {query_cells(run['cells']):,} cells held out", ""]
        lines += ["| stage | s | cells/s | peak GiB | without file pages | GB read | GB written |", "|---" * 7 + "|"]
        for name, row in run["stages"].items():
            lines.append(
                f"| {name} | {row['wall_s']:,.1f} | {row['cells_per_second']:,.0f} | {row['peak_rss'] / GIB:.2f} | "
                f"{row['peak_anonymous'] / GIB:.2f} | {row['read'] / 1e9:.2f} | {row['written'] / 1e9:.2f} |"
            )
        peak = max(row["peak_rss"] for row in run["stages"].values()) / GIB
        lines += [f"| **all** | **{minutes(run) * 60:,.1f}** | | **{peak:.2f}** | | | |", "", scores(run["accuracy"])]
    for step in result["growth"]:
        lines += ["", f"## Growth from {step['from']:,} to {step['to']:,} cells: exponents", ""]
        lines += ["| stage | time | memory |", "|---|---|---|"]
        lines += [f"| {name} | {row['time']:.2f} | {row['memory']:.2f} |" for name, row in step["stages"].items()]
        lines += [f"| **all** | **{step['time']:.2f}** | |"]
    return "\n".join(lines) + "\n"


def scores(accuracy: dict[str, Any]) -> str:
    """A sentence about the held-out cells."""
    f1 = accuracy["macro_f1"]
    rhos = "; ".join(
        f"{name.removeprefix('rho_')} rho {pair['ours']:.3f} (ridge {pair['ridge']:.3f})"
        for name, pair in accuracy.items()
        if name.startswith("rho_")
    )
    return (
        f"Held-out simulated cells: macro-F1 {f1['ours']:.3f} over {f1['types']} types (logistic regression on 50 "
        f"components {f1['logistic']:.3f}, of {accuracy['regression_cells']:,} cells); {rhos}."
    )


def judge(result: dict[str, Any]) -> dict[str, bool]:
    """Print each bar; which are met.  Those of time and memory are for hECA's size on two cores."""
    largest = result["runs"][-1]
    peak = max(row["peak_rss"] for row in largest["stages"].values()) / GIB
    f1 = largest["accuracy"]["macro_f1"]
    bars = [("minutes", minutes(largest), "<=", MOST_MINUTES), ("peak_gib", peak, "<=", MOST_GIB)]
    bars.append(("macro_f1", f1["ours"], ">=", f1["logistic"]))
    for name, pair in largest["accuracy"].items():
        if name.startswith("rho_"):
            bars.append((name, pair["ours"], ">=", pair["ridge"]))
    bars += growth_bars(result["runs"])
    met = {}
    for name, value, sense, limit in bars:
        met[f"{name} {value:.3f} {sense} {limit:.3f}"] = value <= limit if sense == "<=" else value >= limit
    for line, good in met.items():
        print(f"bar {line} {'ok' if good else 'SHORT'}")
    return met


def growth_bars(runs: list[dict[str, Any]]) -> list[tuple[str, float, str, float]]:
    """Of each stage: the exponent of time from size to size, and memory from the first size to the last.

    Ten times the cells are what the bar of memory is about: raised to that from a step of three times, what two runs of
    a stage differ by would count double.
    """
    runs = [run for run in runs if run["cells"] >= FLAT_FROM]
    bars = []
    for step in growth(runs):
        for name, row in step["stages"].items():
            ends = f"{name}_{step['from']}_to_{step['to']}"
            bars.append((f"time_exponent_{ends}", row["time"], "<=", MOST_EXPONENT))
    for whole in growth([runs[0], runs[-1]]) if len(runs) > 1 else []:
        for name, row in whole["stages"].items():
            bars.append((f"memory_of_10_times_{name}", 10 ** row["memory"], "<=", MOST_MEMORY_GROWTH))
    return bars


def circumstances(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Command, when its stages ran, the revisions of the code that they ran, and the machine."""
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    return {
        "what": "simulated atlas of hECA's size",
        "command": " ".join(["python", *sys.argv]),
        **when_and_what([stage for run in runs for stage in (run["inputs"], *run["stages"].values())]),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **threads,
    }


if __name__ == "__main__":
    sys.exit(main())
