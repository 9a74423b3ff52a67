"""Speed of ingest beside annbatch's, and memory of ingest at two sizes.

Speed: one .h5ad of 50,000 cells with 2,000 counts each among 43,878 genes, written as anndata does by default; the
median of several runs of `unicoord-atlas ingest` and of annbatch's `DatasetCollection.add_adatas`, in turns, each in a
process of its own, imports not counted; both in the order of the file and shuffled.  annbatch needs Python 3.12 or
later with annbatch and zarrs installed: name it by --peer-python, else those bars are SHORT.
Memory: 20,000 and 200,000 cells with 600 counts each among 20,000 genes; peak resident memory of the process.

    python benchmarks/bench_ingest.py --peer-python PATH --json benchmarks/results/ingest.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

PAIRS = {"in order": ("ours", "annbatch"), "shuffled": ("ours-shuffled", "annbatch-shuffled")}
LEAST_RATIO, MOST_MEMORY = 1.5, 1.15
BLOCK = 5_000
CHILD = Path(__file__).with_name("ingest_child.py")


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cells, one run each")
    parser.add_argument("--peer-python", type=Path, help="one with annbatch and zarrs; without it those bars are SHORT")
    parser.add_argument("--input", type=Path, help=".h5ad to measure speed on, instead of a random one")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        memory = measure_memory(Path(name), 10 if args.quick else 1)
        speed = measure_speed(args, Path(name)) if args.peer_python else {}
    versions = {package: metadata.version(package) for package in ("anndata", "zarr", "numpy", "h5py")}
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), **versions}
    bars = {}
    for order in PAIRS:
        name, times = f"speed_{order.replace(' ', '_')}", speed[order]["ratio"] if speed else float("nan")
        bars[name] = times >= LEAST_RATIO
        print(f"bar {name} {times:.2f} >= {LEAST_RATIO} {'ok' if bars[name] else 'SHORT'}")
    ratio = memory[1]["peak_mib"] / memory[0]["peak_mib"]
    bars["memory_ratio"] = ratio <= MOST_MEMORY
    print(f"bar memory_ratio {ratio:.3f} <= {MOST_MEMORY} {'ok' if bars['memory_ratio'] else 'SHORT'}")
    if args.json:
        peers = peer_versions(args.peer_python) if args.peer_python else {}
        command = "python benchmarks/bench_ingest.py --peer-python PATH --json benchmarks/results/ingest.json"
        when = {"command": command, "date": time.strftime("%Y-%m-%d"), "load_average": round(os.getloadavg()[0], 1)}
        result = {"machine": machine, "peers": peers, **when, "speed": speed, "memory": memory}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(not all(bars.values()))


def peer_versions(python: Path) -> dict[str, str]:
    """What the peer's interpreter has."""
    names = ("annbatch", "zarrs", "zarr", "anndata")
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", code], text=True))
    return found


def measure_memory(folder: Path, divisor: int) -> list[dict[str, Any]]:
    """Peak memory of ingest at two sizes."""
    rows = []
    for cells in (20_000 // divisor, 200_000 // divisor):
        source = folder / f"cells{cells}.h5ad"
        write_random(source, cells, 20_000, 600)
        found = run_child(sys.executable, "ours", source, folder / "out")
        rows.append({"cells": cells, **{name: round(value, 2) for name, value in found.items()}})
        print(
            f"{cells:>9,} cells  {found['seconds']:6.1f} s  {cells / found['seconds']:9,.0f} cells/s  "
            f"{found['peak_mib']:6.0f} MiB peak",
            flush=True,
        )
        source.unlink()
    return rows


def measure_speed(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Medians of ours and the peer's, in turns."""
    source = args.input
    if source is None:
        source = folder / "speed.h5ad"
        write_random(source, 20_000 if args.quick else 50_000, 43_878, 2_000)
    with h5py.File(source) as file:
        cells = len(file["X/indptr"]) - 1
        entries = len(file["X/data"])
    print(f"{cells:,} cells, {entries / cells:,.0f} non-zeros each; medians")
    found: dict[str, list[dict[str, float]]] = {name: [] for pair in PAIRS.values() for name in pair}
    for _ in range(1 if args.quick else args.repeats):
        for name in found:
            python = args.peer_python if name.startswith("annbatch") else sys.executable
            found[name].append(run_child(python, name, source, folder / "out"))
    speed: dict[str, dict[str, Any]] = {}
    for order, pair in PAIRS.items():
        speed[order] = {"cells": cells, "entries": entries}
        for name in pair:
            medians = {key: statistics.median(run[key] for run in found[name]) for key in found[name][0]}
            speed[order][name] = {key: round(value, 3) for key, value in medians.items()}
            speed[order][name]["all_seconds"] = [round(run["seconds"], 2) for run in found[name]]
            print(
                f"{name:<18} {medians['seconds']:6.2f} s  {cells / medians['seconds']:9,.0f} cells/s  "
                f"{medians['peak_mib']:6.0f} MiB peak, {medians['peak_own_mib']:6.0f} without mapped files",
                flush=True,
            )
        ours, peer = (speed[order][name]["seconds"] for name in pair)
        speed[order]["ratio"] = round(peer / ours, 3)
    return speed


def write_random(path: Path, cells: int, genes: int, entries: int) -> None:
    """An .h5ad of this many cells with so many counts each at random genes, written block by block."""
    rng = np.random.default_rng(0)
    labels = pd.Categorical(np.array(["a", "b", "c"])[rng.integers(0, 3, cells)])
    obs = pd.DataFrame({"cell_type": labels}, index=[f"cell{i}" for i in range(cells)])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(genes)])
    anndata.AnnData(sp.csr_matrix((cells, genes), dtype=np.float32), obs=obs, var=var).write_h5ad(path)
    counts = rng.geometric(0.5, 1 << 20).astype(np.float32)
    with h5py.File(path, "r+") as file:
        group = file["X"]
        del group["data"], group["indices"], group["indptr"]
        group["indptr"] = np.arange(0, (cells + 1) * entries, entries, dtype=np.int64)
        data = group.create_dataset("data", (cells * entries,), np.float32, chunks=(1 << 18,))
        indices = group.create_dataset("indices", (cells * entries,), np.int32, chunks=(1 << 18,))
        for start in range(0, cells, BLOCK):
            n = min(BLOCK, cells - start)
            part = slice(start * entries, (start + n) * entries)
            gaps = rng.integers(1, genes // entries, (n, entries), dtype=np.int32)
            indices[part] = np.cumsum(gaps, axis=1, dtype=np.int32).ravel()
            data[part] = counts[rng.integers(0, len(counts), n * entries, dtype=np.int32)]


def run_child(python: Path | str, name: str, source: Path, out: Path) -> dict[str, float]:
    """What `ingest_child.py` measured; its output is removed."""
    done = subprocess.run([python, CHILD, name, source, out], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} of {source} failed:\n{done.stderr}")
    shutil.rmtree(out)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    sys.exit(main())
