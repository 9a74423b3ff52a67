"""The report of a large simulated atlas: seconds and peak memory of `unicoord-atlas report`, and the size of the page.

Cells are simulated with few genes, ingested, and a small model is trained on some of them: what the report costs
depends on the number of cells, labels and coordinates.  What is made lies in --work and is used again.

    python benchmarks/bench_report.py --work DIR --cells 1000000 --json benchmarks/results/report.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

PROGRAM = [sys.executable, "-m", "unicoord_atlas.jobs.cli"]
BARS = {"seconds": 180.0, "peak_gib": 3.0, "page_mb": 10.0}
PACKAGES = ("unicoord-atlas", "matplotlib", "umap-learn", "faiss-cpu", "numpy")


def main() -> int:
    """Make, measure, print, and exit 1 if a bar is missed."""
    args = _arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    run, latents = _make(args)
    rounds = [_report(run, latents, args.work / f"report{number}.html") for number in range(args.rounds)]
    found = {name: sorted(each[name] for each in rounds)[len(rounds) // 2] for name in BARS}
    for name, value in found.items():
        print(f"bar {name} {value:.2f} <= {BARS[name]:g} {'ok' if value <= BARS[name] else 'SHORT'}")
    if args.json:
        result = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "cells": args.cells,
            "rounds": rounds,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(value > BARS[name] for name, value in found.items()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=1, help="reports; the median counts")
    parser.add_argument("--quick", action="store_true", help="20,000 cells")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    if args.quick:
        args.cells = 20_000
    return args


def _make(args: argparse.Namespace) -> tuple[Path, Path]:
    """A run and the latents of all cells."""
    folder = args.work / f"cells{args.cells}"
    cells, atlas, run, latents = (folder / name for name in ("cells", "atlas.zarr", "run", "latents.zarr"))
    labels = ["cell_type", "cell_class", "organ", "dataset", "seq_tech"]
    settings = ["data.max_cells=20000", "train.epochs=2", "latent.unsupervised_continuous=50"]
    _call("simulate", "--cells", args.cells, "--genes", args.genes, "--out", cells)
    _call("ingest", cells, "--label", ",".join(labels), "--out", atlas)
    words = [word for setting in settings for word in ("--set", setting)]
    _call(
        "train",
        atlas,
        "--discrete",
        "cell_type,seq_tech",
        "--continuous",
        "gradient_1",
        "--out",
        run,
        "--no-report",
        *words,
    )
    _call("export-latents", atlas, "--run", run, "--out", latents)
    return run, latents


def _call(*words: object) -> None:
    start = time.perf_counter()
    subprocess.run([*PROGRAM, *map(str, words)], check=True, stderr=subprocess.DEVNULL)
    print(f"{words[0]:<16} {time.perf_counter() - start:7.1f} s", flush=True)


def _report(run: Path, latents: Path, out: Path) -> dict[str, float]:
    """Seconds, peak resident memory and size of one report."""
    out.unlink(missing_ok=True)
    start = time.perf_counter()
    words = ["report", str(run), "--latents", str(latents), "--out", str(out)]
    process = subprocess.Popen([*PROGRAM, *words])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"report ended with {process.returncode}")
    found = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss / 2**20,
        "page_mb": out.stat().st_size / 1e6,
    }
    print("report           " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
