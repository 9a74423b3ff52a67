"""Loaders of random minibatches beside each other: cells/s, memory and how random the order is.

    python benchmarks/bench_loader.py --peer-python PYTHON --json benchmarks/results/loader.json

Input: simulated cells (43,878 genes, about 2,000 non-zeros a cell) in sorted order, organ after organ; page cache warm.
ours: CellStream, its batches as the training step takes them, and as float32 + int32 CSR.  annbatch with zarrs, in its
own store, at the best of several chunk sizes; it needs Python 3.12 or later, which --peer-python names (install
annbatch, zarrs and anndata there).  scDataset and AnnData's AnnLoader on a backed .h5ad.  The limit: decoding the same
arrays in order, into a buffer that is used again.  Each runs in a process of its own, in turns; cells/s are medians of
second epochs.  Memory is the peak sum of PSS over the processes, pages of the input's files apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loader_inputs import Inputs, last_json, make_inputs, run_child
from loader_measure import watch
from loader_plot import plot

BATCHES = (512, 4096)
WINDOW = 16_384
PEER_SETTINGS = ((64, 1), (256, 1), (512, 1), (512, 2))
"""annbatch's chunk size, and how many windows of ours it preloads."""
PARTS = ("tune", "fast", "slow", "starts")
COLUMNS = (
    "loader",
    "batch",
    "cells/s",
    "CPU us/cell",
    "memory MiB",
    "page cache MiB",
    "entropy",
    "neighbours",
    "decoded/cell",
)


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="20,000 cells instead of 200,000 (hardly more than a window), one round"
    )
    parser.add_argument("--peer-python", help="a Python >= 3.12 with annbatch; without it those bars are SHORT")
    parser.add_argument("--rounds", type=int, default=3, help="of the fast loaders; --quick has one")
    parser.add_argument("--work", type=Path, help="keep the inputs here, and use those that are there")
    parser.add_argument("--prepare", action="store_true", help="only make the inputs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure these; --json has the others")
    parser.add_argument("--json", type=Path, help="where to write the result; a plot goes beside it")
    args = parser.parse_args()
    machine()  # a package that is missing is named now, not after the inputs are made
    with tempfile.TemporaryDirectory() as scratch:
        cells, small = (20_000, 20_000) if args.quick else (200_000, 100_000)
        inputs = make_inputs(args.work or Path(scratch), cells, small, args.peer_python)
        if args.prepare:
            return 0
        result = measure(inputs, args)
    rows = sorted(result["rows"], key=lambda row: (row["batch"], -row["cells_per_second"]))
    print_table(rows)
    bars = [*loader_bars(rows), *start_bars(result["starts"])]
    for name, value, sense, limit, met in bars:
        print(f"bar {name} {value:.3f} {sense} {limit} {'ok' if met else 'SHORT'}")
    if args.json:
        args.json.write_text(json.dumps({**result, "rows": rows, "bars": bars}, indent=1) + "\n")
        plot(rows, args.json.with_suffix(".png"))
    return int(not all(met for *_, met in bars))


def measure(inputs: Inputs, args: argparse.Namespace) -> dict[str, Any]:
    """The parts asked for; the others as an earlier call left them in the JSON."""
    result: dict[str, Any] = {"best": {}, "rows": [], "starts": {}}
    if args.json and args.json.exists() and set(args.parts) != set(PARTS):
        result = measured_before(args.json)
    result["command"] = "python benchmarks/bench_loader.py --peer-python PYTHON"
    when = {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    if "tune" in args.parts and args.peer_python:
        result["best"] = {str(batch): best_setting(inputs, args, batch) for batch in BATCHES}
        result["tuned"] = when
    measured = measure_fast(inputs, args, result["best"]) if "fast" in args.parts else []
    measured += measure_slow(inputs, args) if "slow" in args.parts else []
    new = {(row["loader"], row["batch"]) for row in measured}
    kept = [row for row in result["rows"] if (row["loader"], row["batch"]) not in new]
    result["rows"] = kept + [{**row, **when} for row in measured]
    if "starts" in args.parts:
        result["starts"] = {**measure_starts(inputs, args.quick), **when}
    return result


def measured_before(path: Path) -> dict[str, Any]:
    """What earlier calls measured; what all of it has in common in an older file is said of each row."""
    result = json.loads(path.read_text())
    when = {key: result.pop(key) for key in ("date", "machine") if key in result}
    result["rows"] = [{**when, **row} for row in result["rows"]]
    result["starts"] = {**when, **result["starts"]} if result["starts"] else {}
    return {"tuned": when, **result}


def measure_fast(inputs: Inputs, args: argparse.Namespace, best: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a loader and batch size, from several rounds in which they take turns."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(1 if args.quick else args.rounds):
        for batch in BATCHES:
            for name in ("limit", "ours", "ours_wide"):
                plain = ["--no-mixing"] if name == "limit" else []
                rows.setdefault((name, batch), []).append(run(name, inputs.atlas, batch, *plain))
            if best:
                rows.setdefault(("annbatch", batch), []).append(peer(inputs, args, batch, *best[str(batch)]))
    return [summary(name, batch, runs) for (name, batch), runs in rows.items()]


def measure_slow(inputs: Inputs, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One run each of ours on a tenth of the cells, and of the peers that read .h5ad: their first seconds."""
    rows = []
    for subset in ("donors", "random"):
        measured = run("ours", inputs.atlas, 512, "--subset", subset, "--no-mixing")
        rows.append(summary(f"ours, a tenth: {subset}", 512, [measured]))
    slow = ("--epochs", 1, "--max-seconds", 3 if args.quick else 8)
    for batch in BATCHES:
        tried = [run("scdataset", inputs.h5ad, batch, *slow, "--block", block) for block in (64, 256)]
        rows.append(summary("scdataset", batch, [max(tried, key=lambda row: row["cells_per_second"])]))
        rows.append(summary("annloader", batch, [run("annloader", inputs.h5ad, batch, *slow)]))
    return rows


def best_setting(inputs: Inputs, args: argparse.Namespace, batch: int) -> tuple[int, int]:
    """The chunk size and preload with which annbatch is fastest."""
    settings = [(chunk, windows * WINDOW) for chunk, windows in PEER_SETTINGS]
    speeds = {setting: peer(inputs, args, batch, *setting)["cells_per_second"] for setting in settings}
    return max(speeds, key=lambda setting: speeds[setting])


def peer(inputs: Inputs, args: argparse.Namespace, batch: int, chunk: int, preload: int) -> dict[str, Any]:
    """One run of annbatch."""
    sizes = ("--block", chunk, "--window", preload)
    return run("annbatch", inputs.collection, batch, *sizes, python=args.peer_python)


def run(name: str, path: Path, batch: int, *options: object, python: str = sys.executable) -> dict[str, Any]:
    """One loader in a process of its own."""
    text, memory = watch(run_child(python, name, path, "--batch-size", batch, *options), path)
    result = last_json(text)
    last = result["epochs"][-1]
    options_used = " ".join(map(str, options))
    speed, cpu = last["cells"] / last["seconds"], last["cpu_seconds"] / last["cells"]
    facts = f"{speed:,.0f} cells/s, {cpu * 1e6:.1f} us of CPU a cell, {memory.peak / 2**20:,.0f} MiB"
    print(f"{name} {batch} {options_used}: {facts}", file=sys.stderr)
    return {**result, "options": options_used, "cells_per_second": speed, "cpu_per_cell": cpu, **vars(memory)}


def summary(name: str, batch: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of speed, the highest peak, mixing as it is in each run."""
    facts = {key: runs[0][key] for key in ("mixing", "cells_decoded_per_cell", "version", "options") if key in runs[0]}
    return {
        "loader": name,
        "batch": batch,
        "cells_per_second": statistics.median(run["cells_per_second"] for run in runs),
        "cpu_per_cell": statistics.median(run["cpu_per_cell"] for run in runs),
        "runs": [round(run["cells_per_second"]) for run in runs],
        "peak": max(run["peak"] for run in runs),
        "page_cache": max(run["page_cache"] for run in runs),
        **facts,
    }


def measure_starts(inputs: Inputs, quick: bool) -> dict[str, float]:
    """Memory of ten times the cells, and seconds until a first batch there."""
    sizes = ("--epochs", 1, "--no-mixing", "--window", WINDOW // 4 if quick else WINDOW)
    peaks = [run("ours", path, 512, *sizes)["peak"] for path in (inputs.small, inputs.large)]
    command = run_child(sys.executable, "start", inputs.large, "--batch-size", 512, "--window", WINDOW)
    times = [last_json(watch(command, inputs.large)[0]) for _ in range(3)]
    medians = {key: statistics.median(seconds[key] for seconds in times) for key in times[0]}
    return {"small_peak": peaks[0], "large_peak": peaks[1], **medians}


NOT_RUN = {"cells_per_second": float("nan")}
Bar = tuple[str, float, str, float, bool]


def at_least(name: str, value: float, limit: float) -> Bar:
    """A bar that a value must reach."""
    return name, value, ">=", limit, value >= limit


def at_most(name: str, value: float, limit: float) -> Bar:
    """A bar that a value must not pass."""
    return name, value, "<=", limit, value <= limit


def loader_bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Ours against each peer and the limit; a peer that was not run counts as not beaten; none without ours."""
    found = {(row["loader"], row["batch"]): row for row in rows}
    bars = []
    for batch in BATCHES:
        if ("ours", batch) not in found:
            continue
        ours = found["ours", batch]

        def times(name: str, limit: float, other: str, batch: int = batch, mine: dict[str, Any] = ours) -> Bar:
            theirs = found.get((other, batch), NOT_RUN)
            return at_least(f"{name}_{batch}", mine["cells_per_second"] / theirs["cells_per_second"], limit)

        bars += [
            times("times_annbatch", 2.25, "annbatch"),
            times("times_annbatch_as_float32", 1.5, "annbatch", mine=found["ours_wide", batch]),
            times("share_of_limit", 0.5, "limit"),
            times("times_annloader", 20, "annloader"),
            times("times_scdataset", 5, "scdataset"),
        ]
        if ("annbatch", batch) in found:
            theirs = found["annbatch", batch]
            bars.append(at_most(f"memory_of_annbatch_{batch}", ours["peak"] / theirs["peak"], 1.0))
            entropy = ours["mixing"]["entropy"] / theirs["mixing"]["entropy"]
            bars.append(at_least(f"entropy_of_annbatch_{batch}", entropy, 0.99))  # seeds: 0.6 %
            above = ours["mixing"]["neighbours"] - theirs["mixing"]["neighbours"]
            bars.append(at_most(f"neighbours_above_annbatch_{batch}", above, 0.05))
    return bars


def start_bars(starts: dict[str, Any]) -> list[Bar]:
    """Memory that does not grow with the cells, and no waiting."""
    if not starts:
        return []
    waits = [at_most(f"seconds_{key}", starts[key], 1.0) for key in ("first_batch", "resume", "resume_other_ranks")]
    return [at_most("memory_of_ten_times_the_cells", starts["large_peak"] / starts["small_peak"], 1.15), *waits]


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a loader and batch size; mixing as found / ideal."""
    print("".join(f"{title:>{28 if title == 'loader' else 15}}" for title in COLUMNS))
    for row in rows:
        mix, decoded = row.get("mixing"), row.get("cells_decoded_per_cell")
        cells = [
            f"{row['batch']:,}",
            f"{row['cells_per_second']:,.0f}",
            f"{row['cpu_per_cell'] * 1e6:.1f}",
            f"{row['peak'] / 2**20:,.0f}",
            f"{row['page_cache'] / 2**20:,.0f}",
            f"{mix['entropy']:.2f} / {mix['ideal_entropy']:.2f}" if mix else "",
            f"{mix['neighbours']:.2f} / {mix['ideal_neighbours']:.2f}" if mix else "",
            f"{decoded:.2f}" if decoded else "",
        ]
        print(f"{row['loader']:>28}" + "".join(f"{cell:>15}" for cell in cells))


def machine() -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    packages = ("anndata", "numcodecs", "numpy", "pyarrow", "scdataset", "torch", "zarr")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    sys.exit(main())
