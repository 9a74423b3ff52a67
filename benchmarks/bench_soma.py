"""Random minibatches from SOMA beside a plain read of the same experiment in its order, and beside Zarr.

The cells of an atlas (--atlas; else 50,000 random ones with 1,000 counts each among 43,878 genes) are converted to SOMA
as `unicoord-atlas convert` does it.  Each reader is a process of its own, in turns; rates are medians of epochs by the
clock, memory is the peak of the process.

    in-order  every table of `SparseNDArray.read().tables()` in TileDB's default settings; nothing is done with it
    soma      CellStream on the experiment: minibatches of 512 in windows of 20,000 cells
    zarr      the same on the atlas

    python benchmarks/bench_soma.py --atlas atlas.zarr --json benchmarks/results/soma.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unicoord_atlas.loaders.store import CellStore

READERS = ("in-order", "soma", "zarr")
LEAST_OF_ORDER = 0.6


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,000 cells, one run each")
    parser.add_argument("--atlas", type=Path, help="atlas store to measure on, instead of a random one")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each reader")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--child", nargs=2, metavar=("READER", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child[0], args.child[1])))
        return 0
    with tempfile.TemporaryDirectory() as name:
        found = run_all(args, Path(name))
    for reader, facts in found.items():
        print(f"{reader:>9}  {facts['cells_per_s']:9,.0f} cells/s  {facts['peak_mib']:6,.0f} MiB peak")
    ratio = found["soma"]["cells_per_s"] / found["in-order"]["cells_per_s"]
    print(f"bar soma_of_in_order {ratio:.2f} >= {LEAST_OF_ORDER} {'ok' if ratio >= LEAST_OF_ORDER else 'SHORT'}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(ratio < LEAST_OF_ORDER)


def run_all(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Median rate and largest memory of each reader."""
    from unicoord_atlas.jobs import convert

    atlas = args.atlas or random_atlas(folder, 5_000 if args.quick else 50_000)
    convert.run(convert.ConvertOptions(atlas, folder / "cells.soma"))
    paths = {"in-order": folder / "cells.soma", "soma": folder / "cells.soma", "zarr": atlas}
    runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    for _ in range(1 if args.quick else args.repeats):
        for reader in READERS:
            command = [sys.executable, __file__, "--child", reader, str(paths[reader])]
            runs[reader].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    return {
        reader: {
            "cells_per_s": statistics.median(run["cells_per_s"] for run in those),
            "peak_mib": max(run["peak_mib"] for run in those),
        }
        for reader, those in runs.items()
    }


def measure(reader: str, path: str) -> dict[str, float]:
    """One epoch of a reader in this process, after what it does once."""
    from unicoord_atlas.loaders.store import open_store

    cells = in_order(path) if reader == "in-order" else minibatches(open_store(path))
    num_cells = next(cells)  # opened
    start = time.perf_counter()
    for _ in cells:
        pass
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cells_per_s": num_cells / seconds, "peak_mib": peak}


def in_order(path: str) -> Iterator[int]:
    """Number of cells, then that of entries of each table."""
    import tiledbsoma

    with tiledbsoma.Experiment.open(path) as experiment:
        yield experiment.obs.count
        yield from (len(table) for table in experiment.ms["RNA"].X["data"].read().tables())


def minibatches(store: CellStore) -> Iterator[int]:
    """Number of cells, then that of each minibatch."""
    from unicoord_atlas.batch import CellColumns
    from unicoord_atlas.loaders.stream import CellStream

    n = store.n_obs
    empty = (np.zeros(n, np.int32), np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32))
    columns = CellColumns(store.size_factors.astype(np.float32), *empty)
    stream = CellStream(store, columns, batch_size=512)
    yield n
    yield from (len(batch) for batch in stream)


def random_atlas(folder: Path, num_cells: int, num_genes: int = 43_878, num_counts: int = 1_000) -> Path:
    """An atlas store of random counts."""
    from unicoord_atlas.jobs import ingest

    rng, step = np.random.default_rng(0), num_genes // num_counts
    genes = rng.integers(0, step, (num_cells, num_counts)) + np.arange(num_counts) * step
    counts = rng.geometric(0.5, genes.size).astype(np.float32)
    indptr = np.arange(num_cells + 1) * num_counts
    obs, var = (
        pd.DataFrame(index=[f"{kind}{i}" for i in range(n)]) for kind, n in (("c", num_cells), ("G", num_genes))
    )
    matrix = sp.csr_matrix((counts, genes.ravel(), indptr), (num_cells, num_genes))
    anndata.AnnData(matrix, obs, var).write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr"))
    return folder / "atlas.zarr"


if __name__ == "__main__":
    sys.exit(main())
