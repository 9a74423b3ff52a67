"""Speed, memory and difficulty of `simulate` in the benchmarks' setting: the default, with 43,878 genes.

Speed and memory: the command in a process of its own, start and checksums included, at two sizes a factor of five
apart.  Difficulty: accuracy on held-out cells of logistic regression and of nearest centroids, both on 50 principal
components of log-normalized counts of the 3,000 most variable genes, `true_cell_type` being the truth; each row is
another size and seed.  Wall times mean something on an idle machine only, so processor time is given too.

    python benchmarks/bench_simulate.py --json benchmarks/results/simulate.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

GENES = 43_878
SPEED, MEMORY_RATIO = 20_000, 1.15
LOWEST, HIGHEST, GAP = 0.80, 0.92, 0.05
VARIABLE_GENES, COMPONENTS, MOST_CELLS = 3000, 50, 20_000


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the cells, fewer seeds")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    sizes = (4_000, 20_000) if args.quick else (40_000, 200_000)
    tried = [(3000, 0)] if args.quick else [(cells, seed) for cells in (3000, 10_000, 30_000) for seed in range(3)]
    with tempfile.TemporaryDirectory() as name:
        run_simulate(Path(name) / "compiled", 1000, 0)  # the first run of all compiles
        runs = [shown(run_simulate(Path(name) / f"cells{cells}", cells, 0)) for cells in sizes]
        rows = [shown(measure(Path(name) / f"cells{cells}-{seed}", cells, seed)) for cells, seed in tried]
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    bars = judge(runs, rows)
    if args.json:
        facts = {"command": " ".join(["python", *sys.argv]), "machine": platform.platform(), "cores": os.cpu_count()}
        facts |= {"load_average": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d")}
        args.json.write_text(json.dumps({**facts, "runs": runs, "difficulty": rows, "bars": bars}, indent=1) + "\n")
    return int(not all(bars.values()))


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row of results as soon as it is there."""
    print("  ".join(f"{key} {value:,}" for key, value in row.items()), flush=True)
    return row


def judge(runs: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Print each bar; which are met."""
    scores, gaps = [row["logistic"] for row in rows], [row["logistic"] - row["centroid"] for row in rows]
    speed, ratio = runs[-1]["cells_per_s"], runs[-1]["peak_mib"] / runs[0]["peak_mib"]
    lines = {
        f"cells_per_s {speed} >= {SPEED}": speed >= SPEED,
        f"memory_ratio {ratio:.3f} <= {MEMORY_RATIO}": ratio <= MEMORY_RATIO,
        f"lowest_macro_f1 {min(scores):.3f} >= {LOWEST}": min(scores) >= LOWEST,
        f"highest_macro_f1 {max(scores):.3f} <= {HIGHEST}": max(scores) <= HIGHEST,
        f"smallest_gap {min(gaps):.3f} >= {GAP}": min(gaps) >= GAP,
    }
    for line, met in lines.items():
        print(f"bar {line} {'ok' if met else 'SHORT'}")
    return lines


def run_simulate(out: Path, cells: int, seed: int) -> dict[str, Any]:
    """Wall and processor time and peak resident memory of the command."""
    words = ["simulate", "--cells", str(cells), "--genes", str(GENES), "--seed", str(seed), "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "unicoord_atlas.jobs.cli", *words], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"simulate failed with status {status}")
    return {
        "cells": cells,
        "cells_per_s": round(cells / seconds),
        "wall_s": round(seconds, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "mib_on_disk": round(sum(path.stat().st_size for path in out.iterdir()) / 2**20),
    }


def measure(out: Path, cells: int, seed: int) -> dict[str, Any]:
    """Genes detected, and what both classifiers reach on a fifth of the cells."""
    run_simulate(out, cells, seed)
    atlas = anndata.concat([anndata.read_h5ad(path) for path in sorted(out.glob("*.h5ad"))])
    detected = np.diff(atlas.X.indptr)
    chosen = np.random.default_rng(seed).permutation(cells)[:MOST_CELLS]
    types = atlas.obs["true_cell_type"].astype(str).to_numpy()[chosen]
    logistic, centroid = difficulty(components(atlas.X[chosen]), types)
    facts = {"cells": cells, "seed": seed, "types": len(np.unique(types))}
    facts |= {"median_genes": int(np.median(detected)), "mean_genes": int(detected.mean())}
    return {**facts, "logistic": round(logistic, 3), "centroid": round(centroid, 3)}


def components(counts: sp.csr_matrix) -> np.ndarray:
    """The first principal components of the most variable genes, log-normalized."""
    rows = sp.csr_matrix(sp.diags(1e4 / np.asarray(counts.sum(axis=1)).ravel()) @ counts)
    rows.data = np.log1p(rows.data)
    mean = np.asarray(rows.mean(axis=0)).ravel()
    variance = np.asarray(rows.multiply(rows).mean(axis=0)).ravel() - mean**2
    x = rows[:, np.sort(np.argsort(-variance)[:VARIABLE_GENES])].toarray()
    x -= x.mean(axis=0)
    return x @ np.linalg.eigh(x.T @ x)[1][:, : -COMPONENTS - 1 : -1]


def difficulty(x: np.ndarray, types: np.ndarray) -> tuple[float, float]:
    """Macro-F1 of logistic regression and of nearest centroids on every fifth cell, learned from the others."""
    held_out = np.arange(len(types)) % 5 == 0
    scaled = StandardScaler().fit(x[~held_out]).transform(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")  # 200 steps are enough
        logistic = LogisticRegression(max_iter=200).fit(scaled[~held_out], types[~held_out]).predict(scaled[held_out])
    centroid = NearestCentroid().fit(x[~held_out], types[~held_out]).predict(x[held_out])
    truth = types[held_out]
    labels = np.unique(truth)
    return tuple(f1_score(truth, found, labels=labels, average="macro") for found in (logistic, centroid))


if __name__ == "__main__":
    sys.exit(main())
