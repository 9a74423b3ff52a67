"""Random minibatches from SOMA beside tiledbsoma-ml, a plain read of the experiment in its order, and Zarr.

The cells of an atlas (--atlas; else 50,000 random ones with 1,000 counts each among 43,878 genes) are converted to SOMA
as `unicoord-atlas convert` does it.  Each reader is a process of its own, in turns; rates are medians of epochs by the
clock, memory is the peak of the process.

    in-order       every table of `SparseNDArray.read().tables()` in TileDB's default settings; nothing is done with it
    soma           CellStream on the experiment: minibatches of 512 in windows of 20,000 cells
    cached         the same through --cache, which holds its copy already
    zarr           the same on the atlas
    tiledbsoma-ml  ExperimentDataset, minibatches of 512 as CSR, by --peer-python, the fastest of a few settings

    python -m venv peer && peer/bin/pip install tiledbsoma-ml
    python benchmarks/bench_soma.py --atlas atlas.zarr --peer-python peer/bin/python --json benchmarks/results/soma.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from process_tree import own_peak

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unicoord_atlas.loaders.store import CellStore

READERS = ("in-order", "soma", "cached", "zarr")
PEER_SETTINGS = tuple(
    {"io_batch_size": rows, "shuffle_chunk_size": block} for rows in (16_384, 65_536) for block in (64, 1_024)
)
"""Its defaults are 65,536 and 64."""
BATCH = 512


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,000 cells, one run each")
    parser.add_argument("--atlas", type=Path, help="atlas store to measure on, instead of a random one")
    parser.add_argument(
        "--written-by",
        choices=("convert", "tiledbsoma"),
        default="convert",
        help="the experiment is written by `unicoord-atlas convert`, or as tiledbsoma.io.from_anndata does by default",
    )
    parser.add_argument("--peer-python", type=Path, help="a Python with tiledbsoma-ml")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each reader")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--child", nargs=3, metavar=("READER", "PATH", "SETTINGS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        reader, path, settings = args.child
        print(json.dumps(measure(reader, path, json.loads(settings))))
        return 0
    with tempfile.TemporaryDirectory() as name:
        found = run_all(args, Path(name))
    for reader, facts in found["readers"].items():
        print(f"{reader:>13}  {facts['cells_per_s']:9,.0f} cells/s  {facts['peak_mib']:6,.0f} MiB peak")
    bars = judge(found["readers"])
    for line, good in bars.items():
        print(f"bar {line} {'ok' if good else 'SHORT'}")
    if args.json:
        args.json.write_text(json.dumps({**found, "bars": bars}, indent=1) + "\n")
    return int(not all(bars.values()))


def judge(readers: dict[str, dict[str, float]]) -> dict[str, bool]:
    """The bars, and whether each is met."""
    soma, zarr = (readers[name]["cells_per_s"] for name in ("soma", "zarr"))
    bars = [
        ("soma of in-order", soma / readers["in-order"]["cells_per_s"], 0.6, True),
        ("cached of zarr", readers["cached"]["cells_per_s"] / zarr, 0.9, True),
    ]
    if "tiledbsoma-ml" in readers:
        peer = readers["tiledbsoma-ml"]
        bars.append(("soma of tiledbsoma-ml", soma / peer["cells_per_s"], 5.0, True))
        bars.append(("memory of tiledbsoma-ml", readers["soma"]["peak_mib"] / peer["peak_mib"], 0.25, False))
    return {
        f"{name} {value:.2f} {'>=' if least else '<='} {limit}": value >= limit if least else value <= limit
        for name, value, limit, least in bars
    }


def run_all(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Median rate and largest memory of each reader, and what was read."""
    from unicoord_atlas.jobs import convert
    from unicoord_atlas.loaders.store import open_store

    atlas = args.atlas or random_atlas(folder, 5_000 if args.quick else 50_000)
    repeats, soma = 1 if args.quick else args.repeats, folder / "cells.soma"
    if args.written_by == "convert":
        convert.run(convert.ConvertOptions(atlas, soma))
    else:
        write_plainly(atlas, soma)
    runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    for _ in range(repeats):
        for reader in READERS:
            path = atlas if reader == "zarr" else soma
            runs[reader].append(child(Path(sys.executable), reader, path, {"cache": str(folder / "cache")}))
    readers = {reader: middle(those) for reader, those in runs.items()}
    store = open_store(atlas)
    facts: dict[str, Any] = {
        "written_by": args.written_by,
        "cells": store.n_obs,
        "genes": store.n_vars,
        "counts_per_cell": int(store.indptr[-1]) / store.n_obs,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
    }
    if args.peer_python:
        tried = [{**settings, **child(args.peer_python, "tiledbsoma-ml", soma, settings)} for settings in PEER_SETTINGS]
        best = max(tried, key=lambda run: run["cells_per_s"])
        settings = {key: best[key] for key in PEER_SETTINGS[0]}
        again = [child(args.peer_python, "tiledbsoma-ml", soma, settings) for _ in range(repeats - 1)]
        readers["tiledbsoma-ml"] = {**settings, **middle([best, *again])}
        facts["peer_settings_tried"] = tried
    return {**facts, "readers": readers}


def write_plainly(atlas: Path, soma: Path) -> None:
    """The cells as another program would write them: tiles and compression are the library's own."""
    import tiledbsoma.io

    cells = anndata.read_zarr(atlas)
    X = cells.X
    matrix = sp.csr_matrix((X.data.astype(np.float32), X.indices.astype(np.int32), X.indptr), X.shape)
    plain = anndata.AnnData(matrix, cells.obs[[]].copy(), cells.var[[]].copy())
    tiledbsoma.io.from_anndata(str(soma), plain, "RNA", X_layer_name="data")


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of several runs of a reader."""
    return {
        "cells_per_s": statistics.median(run["cells_per_s"] for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
    }


def child(python: Path, reader: str, path: Path, settings: dict[str, Any]) -> dict[str, float]:
    """A reader in a process of its own."""
    command = [str(python), __file__, "--child", reader, str(path), json.dumps(settings)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(reader: str, path: str, settings: dict[str, Any]) -> dict[str, float]:
    """One epoch of a reader in this process, after what it does once."""
    if reader == "in-order":
        cells = in_order(path)
    elif reader == "tiledbsoma-ml":
        cells = of_peer(path, settings)
    else:
        cells = minibatches(opened(path, settings["cache"] if reader == "cached" else None))
    num_cells = next(cells)  # opened
    start = time.perf_counter()
    for _ in cells:
        pass
    seconds = time.perf_counter() - start
    return {"cells_per_s": num_cells / seconds, "peak_mib": own_peak() / 2**20}


def opened(path: str, cache: str | None) -> CellStore:
    """The store, perhaps through a cache."""
    from unicoord_atlas.jobs.cached_store import open_cached
    from unicoord_atlas.loaders.byte_cache import ByteCache

    return open_cached(Path(path), None if cache is None else ByteCache(Path(cache), 1 << 40))


def of_peer(path: str, settings: dict[str, int]) -> Iterator[int]:
    """Number of cells, then that of each minibatch of tiledbsoma-ml."""
    import tiledbsoma
    from tiledbsoma_ml import ExperimentDataset

    with tiledbsoma.Experiment.open(path) as experiment, experiment.axis_query("RNA") as query:
        dataset = ExperimentDataset(
            query, layer_name="data", batch_size=BATCH, return_sparse_X=True, seed=0, **settings
        )
        yield experiment.obs.count
        yield from (counts.shape[0] for counts, _ in dataset)


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
    stream = CellStream(store, columns, batch_size=BATCH)
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
