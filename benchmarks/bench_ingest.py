"""Memory and speed of ingest: a file with ten times the cells takes hardly more memory.

Writes two .h5ad of random counts (20,000 and 200,000 cells; a tenth of that with --quick), ingests each in a process of
its own and compares the peak resident memory.

    python benchmarks/bench_ingest.py --json benchmarks/results/ingest.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

GENES, ENTRIES = 20_000, 600
LIMIT = 1.2
BLOCK = 10_000


def main() -> int:
    """Run, print, and exit 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the cells")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for cells in (2_000, 20_000) if args.quick else (20_000, 200_000):
            source = Path(name) / f"cells{cells}.h5ad"
            write_random(source, cells)
            seconds, peak = run_ingest(source, Path(name) / f"{cells}.zarr")
            rows.append({"cells": cells, "seconds": round(seconds, 2), "peak_mib": round(peak / 2**20)})
            print(f"{cells:>9,} cells  {seconds:6.1f} s  {cells / seconds:9,.0f} cells/s  {peak / 2**20:6.0f} MiB peak")
            source.unlink()
    ratio = rows[1]["peak_mib"] / rows[0]["peak_mib"]
    if args.json:
        args.json.write_text(json.dumps({"command": " ".join(["python", *sys.argv]), "rows": rows}, indent=1) + "\n")
    print(f"bar memory_ratio {ratio:.3f} <= {LIMIT} {'ok' if ratio <= LIMIT else 'SHORT'}")
    return int(ratio > LIMIT)


def write_random(path: Path, cells: int) -> None:
    """An .h5ad of this many cells with 600 counts each at random genes, written block by block."""
    rng = np.random.default_rng(0)
    labels = pd.Categorical(np.array(["a", "b", "c"])[rng.integers(0, 3, cells)])
    obs = pd.DataFrame({"cell_type": labels}, index=[f"cell{i}" for i in range(cells)])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(GENES)])
    anndata.AnnData(sp.csr_matrix((cells, GENES), dtype=np.float32), obs=obs, var=var).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        group = file["X"]
        del group["data"], group["indices"], group["indptr"]
        group["indptr"] = np.arange(0, (cells + 1) * ENTRIES, ENTRIES, dtype=np.int64)
        data = group.create_dataset("data", (cells * ENTRIES,), np.float32, chunks=(1 << 18,))
        indices = group.create_dataset("indices", (cells * ENTRIES,), np.int32, chunks=(1 << 18,))
        for start in range(0, cells, BLOCK):
            n = min(BLOCK, cells - start)
            genes = np.cumsum(rng.integers(1, GENES // ENTRIES, (n, ENTRIES)), axis=1)
            part = slice(start * ENTRIES, (start + n) * ENTRIES)
            indices[part], data[part] = genes.ravel(), rng.geometric(0.5, n * ENTRIES)


def run_ingest(source: Path, out: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of the command in a process of its own."""
    command = ["-m", "unicoord_atlas.jobs.cli", "ingest", str(source), "--out", str(out), "--label", "cell_type"]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"ingest of {source} failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
