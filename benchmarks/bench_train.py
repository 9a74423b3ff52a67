"""Training beside the paper's loop and beside the limit of the arithmetic, on the same machine in the same run.

    python benchmarks/bench_train.py --work DIR --json benchmarks/results/train.json

Input: simulated cells (43,878 genes, about 2,000 non-zeros a cell); real ones for `error`.  Ours is always the command
`train`: reading, augmentation, all losses, log and checkpoints included.  Programs run in processes of their own, in
turns; speeds are medians of the rounds.  Memory is the peak sum of PSS, pages of the store apart.

speed   cells/s of `train` at batch 512 (its second epoch) beside a plain dense PyTorch loop at batch 128 and 512, data
        in memory; the loop's products beside the same products alone; the three products of the last layer alone, in
        the precision of training: the limit; share of the time that training waits for cells
memory  peak at batch 512 over a million cells, and its growth over 1,000 steps
ranks   2 processes with a thread each beside 1 process with 2 threads, at a batch of 2,048 and of 512
error   seconds to the held-out reconstruction error that the paper's loop ends with, on real cells
cost    the paper's cost case: 56,721 cells, recipe "paper", windows of 20,000 cells; in the paper some 4 minutes and
        9 GB on a GTX 1080 Ti, number of epochs not stated
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
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from train_inputs import FULL, QUICK, REAL_LABEL, Sizes, real, repeated, simulated
from train_plot import plot
from train_runs import child, growth, train

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 512
GLOBAL_BATCHES = (2048, 512)
PART = 512
"""Cells that a process takes at a time where a batch is larger: accumulation."""
MOST_EPOCHS = 60
"""Of ours on real cells."""
SPEEDUP = {"bfloat16": 6.5, "float32": 3.0}
GIB = 2**30

Bar = tuple[str, float, str, float]


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small input, to see that all works; bars mean nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure these; --json has the others")
    parser.add_argument("--work", type=Path, help="keep the inputs here (8 GB), and use those that are there")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data sets")
    parser.add_argument("--json", type=Path, help="where to write the result; a plot goes beside it")
    args = parser.parse_args()
    result: dict[str, Any] = {"parts": {}}
    if args.json and args.json.exists() and set(args.parts) != set(PARTS):
        result["parts"] = parts_before(args.json)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        for name in args.parts:
            part = PARTS[name](work, QUICK if args.quick else FULL, args.data)
            when = {"date": time.strftime("%Y-%m-%d"), "load_average": round(os.getloadavg()[0], 1)}
            result["parts"][name] = {**part, **when, "machine": machine()}
            bars = report(result, args.json)
    return int(not all(met(*bar[1:]) for bar in bars))


def parts_before(path: Path) -> dict[str, Any]:
    """The parts that earlier calls measured; what all have in common in an older file is said of each."""
    result = json.loads(path.read_text())
    return {name: {"machine": result.get("machine"), **part} for name, part in result["parts"].items()}


def report(result: dict[str, Any], path: Path | None) -> list[Bar]:
    """Print the table and the bars so far, and write them: a later part that fails costs only itself."""
    rows, bars = summarized(result["parts"])
    for title, value in rows:
        print(f"{title:<64} {value}")
    for name, value, sense, bound in bars:
        print(f"bar {name} {value:.3f} {sense} {bound} {'ok' if met(value, sense, bound) else 'SHORT'}")
    if path:
        command = f"python benchmarks/bench_train.py --parts {' '.join(result['parts'])} --work DIR"
        result |= {"command": command, "bars": bars}
        path.write_text(json.dumps(result, indent=1) + "\n")
        plot(result["parts"], path.with_suffix(".png"))
    return bars


def speed(work: Path, sizes: Sizes, data: Path) -> dict[str, Any]:
    """Each program several times, in turns."""
    store = simulated(work, sizes)
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(sizes.rounds):
        run = train(store, work / "speed", train__batch_size=BATCH, train__epochs=2)
        last = run.epochs[-1]
        seconds = BATCH / last["cells_per_second"]
        runs.setdefault("train 512", []).append({"seconds": seconds, "data_wait": last["data_wait"], "peak": run.peak})
        for program, batch in (("limit", 512), ("loop", 128), ("products", 128), ("loop", 512), ("products", 512)):
            options = ("--batch-size", batch, "--seconds", sizes.seconds)
            runs.setdefault(f"{program} {batch}", []).append(child(program, store, *options))
    facts = {name: middle(each) for name, each in runs.items()}
    for name, each in facts.items():
        each["cells_per_second"] = int(name.split()[1]) / each["seconds"]
    return {"programs": facts, "runs": {name: [run["seconds"] for run in each] for name, each in runs.items()}}


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of each number; the largest memory; words as they are."""
    first = runs[0]
    numbers = {k: statistics.median(run[k] for run in runs) for k, v in first.items() if not isinstance(v, str)}
    numbers["peak"] = max(run["peak"] for run in runs)
    return {**first, **numbers}


def memory(work: Path, sizes: Sizes, data: Path) -> dict[str, Any]:
    """Train on many cells for so many steps, then terminate the run."""
    run = train(repeated(work, sizes), work / "memory", until_step=sizes.memory_steps, train__batch_size=BATCH)
    return {
        "cells": sizes.many_cells,
        "steps": sizes.memory_steps,
        "peak": run.peak,
        "growth": growth(run.samples, sizes.memory_steps),
        "samples": run.samples[:: max(len(run.samples) // 200, 1)],
    }


def ranks(work: Path, sizes: Sizes, data: Path) -> dict[str, Any]:
    """Cells/s of the second epoch of each, in turns; a batch is taken in parts of 512 cells at most."""
    store, found = simulated(work, sizes), {}
    for batch in GLOBAL_BATCHES:
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(sizes.rounds):
            for processes, threads in ((1, 2), (2, 1)):
                parts = max(batch // processes // PART, 1)
                given = {"train__batch_size": batch, "train__accumulate_steps": parts, "train__epochs": 2}
                run = train(store, work / f"ranks{processes}", processes=processes, threads=threads, **given)
                speeds[processes].append(run.epochs[-1]["cells_per_second"])
        found[str(batch)] = {f"{processes} processes": statistics.median(each) for processes, each in speeds.items()}
    return {"cells_per_second": found}


def error(work: Path, sizes: Sizes, data: Path) -> dict[str, Any]:
    """The error that the paper's loop ends with is the goal; ours trains until it is there, at most 60 epochs."""
    store = real(work, data)
    theirs = child("error", store, "--labels", REAL_LABEL, "--epochs", sizes.paper_epochs)
    epochs = MOST_EPOCHS if sizes is FULL else 2
    run = train(store, work / "error", labels=(REAL_LABEL,), train__batch_size=BATCH, train__epochs=epochs)
    seconds = list(accumulate(entry["seconds"] for entry in run.epochs))
    errors = [entry["validation_reconstruction"] for entry in run.epochs]
    return {
        "loop": {key: theirs[key] for key in ("seconds", "errors")},
        "train": {"seconds": seconds, "errors": errors},
    }


def seconds_to(goal: float, curve: dict[str, list[float]]) -> float:
    """Seconds until the error first is the goal or less; infinite if it never is."""
    reached = [s for s, e in zip(curve["seconds"], curve["errors"], strict=True) if e <= goal]
    return reached[0] if reached else float("inf")


def cost(work: Path, sizes: Sizes, data: Path) -> dict[str, Any]:
    """The whole command, start and checkpoints and calibration included."""
    given = {"recipe": "paper", "stream__window_cells": 20_000, "train__epochs": sizes.cost_epochs}
    run = train(simulated(work, sizes), work / "cost", **given)
    return {"cells": sizes.cells, "epochs": len(run.epochs), "seconds": run.seconds, "peak": run.peak}


def summarized(parts: dict[str, Any]) -> tuple[list[tuple[str, str]], list[Bar]]:
    """The table's lines and the bars of the parts that were measured."""
    rows: list[tuple[str, str]] = []
    bars: list[Bar] = []
    for name, describe in DESCRIBED.items():
        if name in parts:
            lines, limits = describe(parts[name])
            rows += lines
            bars += limits
    return rows, bars


def described_speed(part: dict[str, Any]) -> tuple[list[tuple[str, str]], list[Bar]]:
    """A line a program."""
    found = part["programs"]
    rows = []
    for name, facts in found.items():
        each = f"{facts['cells_per_second']:8,.0f} cells/s {facts['seconds'] * 1e3:7,.0f} ms"
        rows.append((TITLES[name], f"{each} {facts['peak'] / GIB:6.2f} GiB"))
    speeds = {name: facts["cells_per_second"] for name, facts in found.items()}
    shares = {b: found[f"products {b}"]["seconds"] / found[f"loop {b}"]["product_seconds"] for b in (128, 512)}
    rows += [(f"rate of the loop's products in the step, batch {b}", f"{s:.2f}") for b, s in shares.items()]
    rows.append(("train over the loop, both at batch 512", f"{speeds['train 512'] / speeds['loop 512']:.2f}"))
    return rows, [
        ("times_paper_loop", speeds["train 512"] / speeds["loop 128"], ">=", SPEEDUP[found["limit 512"]["dtype"]]),
        ("loop_products_share_of_library", shares[128], ">=", 0.7),
        ("share_of_limit", speeds["train 512"] / speeds["limit 512"], ">=", 0.5),
        ("data_wait", found["train 512"]["data_wait"], "<=", 0.03),
    ]


TITLES = {
    "train 512": "train, batch 512",
    "limit 512": "limit: products of the last layer, batch 512",
    "loop 128": "paper's loop, batch 128",
    "products 128": "its products over genes alone, batch 128",
    "loop 512": "paper's loop, batch 512",
    "products 512": "its products over genes alone, batch 512",
}


def described_memory(part: dict[str, Any]) -> tuple[list[tuple[str, str]], list[Bar]]:
    """Peak and growth."""
    rows = [(f"peak of train over {part['cells']:,} cells", f"{part['peak'] / GIB:.2f} GiB")]
    return rows, [("peak_gib", part["peak"] / GIB, "<=", 2.5), ("memory_growth", part["growth"], "<=", 1.02)]


def described_ranks(part: dict[str, Any]) -> tuple[list[tuple[str, str]], list[Bar]]:
    """Speeds of one and two processes; the bar is on the larger batch."""
    rows, shares = [], {}
    for batch, speeds in part["cells_per_second"].items():
        one, two = speeds["1 processes"], speeds["2 processes"]
        shares[batch] = two / one
        title = f"batch {batch}: 2 processes x 1 thread / 1 x 2 threads"
        rows.append((title, f"{two:,.0f} / {one:,.0f} cells/s = {two / one:.2f}"))
    return rows, [("two_processes_2048", shares["2048"], ">=", 0.85)]


def described_error(part: dict[str, Any]) -> tuple[list[tuple[str, str]], list[Bar]]:
    """Seconds of both to the loop's best error."""
    goal = min(part["loop"]["errors"])
    theirs, mine = seconds_to(goal, part["loop"]), seconds_to(goal, part["train"])
    rows = [(f"seconds to a held-out error of {goal:.1f}: train / paper's loop", f"{mine:,.0f} / {theirs:,.0f}")]
    return rows, [("times_sooner_as_good", theirs / mine, ">=", 4.0)]


def described_cost(part: dict[str, Any]) -> tuple[list[tuple[str, str]], list[Bar]]:
    """Facts only: the paper does not say how many epochs it took."""
    title = f"paper's cost case: {part['cells']:,} cells, {part['epochs']} epochs"
    return [(title, f"{part['seconds'] / 60:.1f} min, {part['peak'] / GIB:.2f} GiB")], []


def met(value: float, sense: str, bound: float) -> bool:
    """Whether a bar is met."""
    return value >= bound if sense == ">=" else value <= bound


def machine() -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    versions = {name: version(name) for name in ("torch", "accelerate", "numpy", "zarr")}
    facts = {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {**facts, "python": sys.version.split()[0], "versions": versions, "gpu": "not measured"}


PARTS: dict[str, Callable[[Path, Sizes, Path], dict[str, Any]]] = {
    "speed": speed,
    "memory": memory,
    "ranks": ranks,
    "error": error,
    "cost": cost,
}
DESCRIBED: dict[str, Callable[[dict[str, Any]], tuple[list[tuple[str, str]], list[Bar]]]] = {
    "speed": described_speed,
    "memory": described_memory,
    "ranks": described_ranks,
    "error": described_error,
    "cost": described_cost,
}

if __name__ == "__main__":
    sys.exit(main())
