"""Speed and memory of encoding and mapping, beside a plain dense float32 encoder with the same weights.

An atlas of hECA's shape (43,878 genes) is simulated and ingested; a model of the default size with random weights
encodes it: what it says does not matter to how long it takes.  Measured, in turns and as medians:
- encode: the store's cells to coordinates, without writing (`encode_batches` on a stream in stored order);
- dense: the same stream, each minibatch as an (n, g) float32 tensor through an ordinary linear layer;
- the jobs export-latents and map-query, from file to file, and the memory that map-query takes.

    python benchmarks/bench_inference.py --json benchmarks/results/inference.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from unicoord_atlas.batch import CellColumns
from unicoord_atlas.config import ModelConfig
from unicoord_atlas.encode import encode_batches
from unicoord_atlas.jobs import export_latents, ingest, map_query, simulate
from unicoord_atlas.jobs.workdir import finished_directory
from unicoord_atlas.loaders.store import CellStore, open_store
from unicoord_atlas.loaders.stream import CellStream
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.reference import ReferenceConfig, ReferenceModel
from unicoord_atlas.schema import LabelColumn
from unicoord_atlas.training.calibration import Calibration
from unicoord_atlas.training.novelty_fit import novelty_of

if TYPE_CHECKING:
    from collections.abc import Callable

GENES = 43_878
CLASSES = 200
BARS = {"encode_cells_per_second": (8_000, ">="), "map_query_gib": (2.0, "<=")}


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    args = _arguments()
    if args.map_child:
        return _map_child(*args.map_child)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        store = open_store(_atlas(folder, args.cells))
        _write_run(folder / "run" / "model", store)
        rates = _rates(store, folder, args.rounds)
        smallest = min((folder / "cells").glob("*.h5ad"), key=lambda path: path.stat().st_size)
        memory = {
            "the smallest of its files": _memory(folder, smallest),
            "all of them, as a store": _memory(folder, Path(store.uri)),
        }
        facts = {"cells": store.n_obs, "genes": store.n_vars, "entries_per_cell": int(store.indptr[-1]) / store.n_obs}
    return _report(args, rates, memory, facts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="8,000 cells, 3 rounds: under 60 s")
    parser.add_argument("--scratch", help="folder for the simulated atlas")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--map-child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.cells, args.rounds = 8_000, 3
    return args


def _atlas(folder: Path, cells: int) -> Path:
    """A simulated atlas; its files stay."""
    with contextlib.redirect_stderr(io.StringIO()):
        simulate.run(simulate.SimulateOptions(cells, folder / "cells", str(GENES), organs=4))
        sources = [str(folder / "cells")]
        ingest.run(ingest.IngestOptions(sources, folder / "atlas.zarr", labels=["cell_type"]))
    return folder / "atlas.zarr"


def _write_run(out: Path, store: CellStore) -> None:
    """A finished run's model with random weights; its novelty is fitted so that mapping does all of its work."""
    latent = LatentSpec(
        discrete=(DiscreteLatent(name="cell_type", num_categories=CLASSES),),
        continuous=tuple(ContinuousLatent(name=f"unsupervised_{i}", supervised=False) for i in range(50)),
    )
    torch.manual_seed(0)
    model = JointVAE(NetworkSpec(num_genes=store.n_vars, latent=latent, model=ModelConfig())).eval()
    names = tuple(f"type {number}" for number in range(CLASSES))
    config = ReferenceConfig(
        network=model.spec,
        labels=(LabelColumn(name="cell_type", categories=names, counts=(1,) * CLASSES),),
        calibration=Calibration(latent_mean=(0.0,) * 50, latent_sd=(1.0,) * 50, temperatures={}),
    )
    reference = ReferenceModel(model, config, store.schema, store.normalization)
    rows = np.arange(store.n_obs)
    parts = [_stream(store, rows[offset :: max(store.n_obs // 4_000, 1)]) for offset in (0, 1)]
    reference.novelty = novelty_of(reference, parts[0], parts[0], parts[1], {}, ())
    with finished_directory(out, [Path(store.uri)], {}) as partial:
        reference.save(partial)


def _stream(store: CellStore, rows: np.ndarray | None = None) -> CellStream:
    n = store.n_obs
    none = np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32)
    columns = CellColumns(store.size_factors.astype(np.float32), np.zeros(n, np.int32), *none)
    return CellStream(store, columns, batch_size=export_latents.BATCH, order="stored", rows=rows)


def _rates(store: CellStore, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Cells a second of each way, one a round; the ways take turns."""
    model = ReferenceModel.load(folder / "run" / "model").model
    some, weight_hg = np.arange(min(store.n_obs, 6_000)), model.input_layer.weight.detach().T.contiguous()
    ways: dict[str, tuple[int, Callable[[], None]]] = {
        "encode": (store.n_obs, lambda: _exhaust(encode_batches(model, _stream(store), torch.device("cpu")))),
        "dense": (len(some), lambda: _dense(model, weight_hg, _stream(store, some))),
        "export_latents": (store.n_obs, lambda: _export(store, folder)),
        "map_query": (store.n_obs, lambda: _map(Path(store.uri), folder / "run" / "model", folder / "mapped.zarr")),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (cells, work) in ways.items():
            started = time.perf_counter()
            work()
            if number:  # the first round warms caches up
                rates[name].append(cells / (time.perf_counter() - started))
    return rates


def _exhaust(things: object) -> None:
    for _ in things:  # type: ignore[attr-defined]
        pass


@torch.no_grad()
def _dense(model: JointVAE, weight_hg: torch.Tensor, stream: CellStream) -> None:
    for batch in stream:
        dense = model.normalized(batch).to_dense()
        model.posterior_of(torch.nn.functional.linear(dense, weight_hg, model.input_layer.bias))


def _export(store: CellStore, folder: Path) -> None:
    out = folder / f"latents{time.monotonic_ns()}.zarr"
    with contextlib.redirect_stderr(io.StringIO()):
        export_latents.run(export_latents.ExportLatentsOptions(Path(store.uri), folder / "run", out))


def _map(query: Path, reference: Path, out: Path) -> None:
    out = out.with_name(f"mapped{time.monotonic_ns()}.zarr")
    with contextlib.redirect_stderr(io.StringIO()):
        map_query.run(map_query.MapQueryOptions(query, reference, out))


def _memory(folder: Path, query: Path) -> float:
    """Largest resident size, in GiB, of a process that maps a file or a store."""
    paths = [query, folder / "run" / "model", folder / f"memory_{query.stem}.zarr"]
    command = [sys.executable, __file__, "--map-child", *map(str, paths)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


def _map_child(query: str, reference: str, out: str) -> int:
    _map(Path(query), Path(reference), Path(out))
    # getrusage's maximum would be this benchmark's own: a process takes over its parent's.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 2**20)
    return 0


def _report(
    args: argparse.Namespace, rates: dict[str, list[float]], memory: dict[str, float], facts: dict[str, float]
) -> int:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{facts['cells']:,} cells x {facts['genes']:,} genes, {facts['entries_per_cell']:,.0f} entries a cell")
    for name, value in medians.items():
        print(f"{name:16} {value:10,.0f} cells/s   ({min(rates[name]):,.0f} to {max(rates[name]):,.0f})")
    for what, gib in memory.items():
        print(f"map-query of {what}: {gib:.2f} GiB")
    measured = {"encode_cells_per_second": medians["encode"], "map_query_gib": max(memory.values())}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {args.threads} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        **facts,
        "cells_per_second": rates,
        "encode_over_dense": medians["encode"] / medians["dense"],
        "map_query_gib": memory,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"encode is {result['encode_over_dense']:.1f} times as fast as dense float32")
    missed = False
    for name, (limit, sign) in BARS.items():
        met = measured[name] >= limit if sign == ">=" else measured[name] <= limit
        missed |= not met
        print(f"bar {name} {measured[name]:,.2f} {sign} {limit:,} {'ok' if met else 'SHORT'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
