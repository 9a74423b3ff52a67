"""Speed and memory of `generate` at the width of hECA: cells from an .h5ad, one label set, written to a Zarr store.

Measured beside it, in turns: the plain way, which decodes the same cells, makes each batch a scipy matrix, and hands
all of them to anndata.  The model has random weights around a mean profile; a generated cell has some 11,000 values.

    python benchmarks/bench_generate.py --json benchmarks/results/generate.json
    python benchmarks/bench_generate.py --quick
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from unicoord_atlas.config import ModelConfig
from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.decoded import decode_rows
from unicoord_atlas.generate import Generation
from unicoord_atlas.jobs import generate
from unicoord_atlas.loaders.sources import open_source
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.latent import ContinuousLatent, DiscreteLatent, LatentSpec
from unicoord_atlas.model.network_spec import NetworkSpec
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.points import encode_points
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceConfig, ReferenceModel
from unicoord_atlas.schema import AtlasSchema, LabelColumn
from unicoord_atlas.training.calibration import Calibration

NUM_GENES = 43_878
GENES_DETECTED = 1_500
SPEED_BAR = 1_000.0
MEMORY_BAR = 2.0
GROWTH_BAR = 1.15


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="4,000 cells, one round")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return _child(args.child[0], Path(args.child[1]), args.child[2], args.threads)
    cells, rounds = (4_000, 1) if args.quick else (args.cells, args.rounds)
    speeds: dict[str, list[float]] = {"generate": [], "plain": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder, cells)
        for number in range(rounds):
            for kind, found in speeds.items():
                result = _in_child(kind, folder, f"{kind}{number}.zarr", args.threads)
                found.append(cells / result["seconds"])
                print(f"{kind:<9} {found[-1]:8,.0f} cells/s  {result['gib']:.2f} GiB", flush=True)
                if kind == "generate":
                    large = result["gib"]
        _write_inputs(folder / "quarter", cells // 4)
        small = _in_child("generate", folder / "quarter", "generate.zarr", args.threads)["gib"]
    figures = {
        "cells_per_second": median(speeds["generate"]),
        "plain_cells_per_second": median(speeds["plain"]),
        "gib": large,
        "gib_of_a_quarter": small,
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps({"command": " ".join(["python", *sys.argv]), **figures}, indent=1) + "\n")
    bars = [
        ("generate_cells_per_second", figures["cells_per_second"], ">=", SPEED_BAR),
        ("generate_gib", large, "<=", MEMORY_BAR),
        ("generate_memory_of_four_times_the_cells", large / small, "<=", GROWTH_BAR),
    ]
    reached = [value >= limit if sign == ">=" else value <= limit for _, value, sign, limit in bars]
    for (bar, value, sign, limit), ok in zip(bars, reached, strict=True):
        print(f"bar {bar} {value:.2f} {sign} {limit} {'ok' if ok else 'SHORT'}")
    return int(not all(reached))


def _write_inputs(folder: Path, num_cells: int) -> None:
    """cells.h5ad and reference/."""
    rng = np.random.default_rng(0)
    profile = np.minimum(rng.exponential(1, NUM_GENES) ** 4 * 0.004, 4).astype(np.float32)
    genes = tuple(f"G{i}" for i in range(NUM_GENES))
    folder.mkdir(exist_ok=True)
    latent = LatentSpec(
        discrete=(DiscreteLatent(name="cell_type", num_categories=30),),
        continuous=tuple(ContinuousLatent(name=f"u{i}", supervised=False) for i in range(50)),
    )
    torch.manual_seed(0)
    model = JointVAE(NetworkSpec(num_genes=NUM_GENES, latent=latent, model=ModelConfig()))
    model.start_from(torch.from_numpy(profile))
    with torch.no_grad():
        model.output_layer.weight.mul_(torch.from_numpy(profile)[:, None])
    label = LabelColumn(name="cell_type", categories=tuple(f"type {i}" for i in range(30)), counts=(1,) * 30)
    zeros = np.zeros(NUM_GENES)
    calibration = Calibration(latent_mean=(0.0,) * 50, latent_sd=(1.0,) * 50, temperatures={})
    ReferenceModel(
        model.eval(),
        ReferenceConfig(network=model.spec, labels=(label,), calibration=calibration),
        AtlasSchema(gene_key="symbol", genes=genes, labels=(label,)),
        Normalization(zeros > 0, zeros + 1 / NUM_GENES, zeros, zeros),
    ).save(folder / "reference")
    indices = np.sort(rng.integers(0, NUM_GENES // GENES_DETECTED, (num_cells, GENES_DETECTED)), axis=1)
    indices = indices + np.arange(GENES_DETECTED) * (NUM_GENES // GENES_DETECTED)
    counts = rng.integers(1, 5, indices.size).astype(np.float32)
    indptr = np.arange(num_cells + 1) * GENES_DETECTED
    matrix = sp.csr_matrix((counts, indices.ravel(), indptr), shape=(num_cells, NUM_GENES))
    obs = pd.DataFrame(index=[f"c{i}" for i in range(num_cells)])
    anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=list(genes))).write_h5ad(folder / "cells.h5ad")


def _in_child(kind: str, folder: Path, out: str, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--child", kind, str(folder), out]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _child(kind: str, folder: Path, out: str, threads: int) -> int:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    if kind == "generate":
        how = Generation(Changes({"cell_type": "type 3"}))
        generate.run(generate.GenerateOptions(folder / "cells.h5ad", folder / "reference", folder / out, how))
    else:
        _plain(folder, folder / out)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it started this
    print(json.dumps({"seconds": seconds, "gib": int(status.split("VmHWM:")[1].split()[0]) / 2**20}))
    return 0


def _plain(folder: Path, out: Path) -> None:
    """What one would write first: everything in memory, then anndata."""
    reference, rows = ReferenceModel.load(folder / "reference"), []
    with open_source(folder / "cells.h5ad", None) as source:
        batches = QueryBatches(source, reference.schema, reference.normalization, batch_size=256)
        for points in encode_points(reference.model, batches, reference.device):
            points.discrete[0][:] = np.eye(30, dtype=np.float32)[3]
            decoded = decode_rows(reference.model, points.sampled(0).decoder_input(reference.model))
            rows.append(sp.csr_matrix(np.where(decoded >= 0.01, decoded, 0)))
        anndata.AnnData(sp.vstack(rows, format="csr"), obs=source.obs).write_zarr(out)


if __name__ == "__main__":
    sys.exit(main())
