"""Training on one GPU beside the paper's loop on the same GPU, in the same run.

    python benchmarks/bench_gpu.py --work DIR --json benchmarks/results/gpu.json

Input: simulated cells (43,878 genes, about 2,000 non-zeros a cell), repeated to 400,000.  Each program runs in a
process of its own.  Memory is what PyTorch's allocator held at its peak.

loop      the paper's loop on dense cells that lie on the GPU: float32, float32 with TF32 products, bfloat16 autocast
step      a step of `train` on cells that lie on the GPU: what is left if reading costs nothing
limit     the three products of the last layer alone in bfloat16
products  a large product in bfloat16: the rate that shares of the peak refer to
feed      the stream to the GPU without any training: what reading can deliver
train     the command `train` at batch 4,096: reading, augmentation, all losses, log and checkpoints included
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from loader_inputs import last_json
from train_inputs import Sizes, repeated
from train_runs import train

BATCH, PAPER_BATCH = 4096, 128
CELLS = 400_000
QUICK = Sizes(cells=4_000, many_cells=20_000)
EPOCHS = 4
GIB = 2**30
MOST_GIB = 2.0
PROGRAMS = (
    ("loop", PAPER_BATCH, "fp32"),
    ("loop", PAPER_BATCH, "tf32"),
    ("loop", BATCH, "fp32"),
    ("loop", BATCH, "tf32"),
    ("loop", BATCH, "bf16"),
    ("products", BATCH, "bf16"),
    ("limit", BATCH, "bf16"),
    ("step", BATCH, "bf16"),
    ("feed", BATCH, "bf16"),
)


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep the inputs here (4 GB), and use those that are there")
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--quick", action="store_true", help="20,000 cells, 4,000 of them different")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        start = time.perf_counter()
        sizes = QUICK if args.quick else Sizes(many_cells=args.cells)
        store = repeated(work, sizes)
        print(f"inputs in {time.perf_counter() - start:.0f} s", flush=True)
        found = {}
        for program, batch, precision in PROGRAMS:
            found[f"{program} {batch} {precision}"] = child(program, store, batch, precision)
        found["train"] = trained(store, work / "run")
    return report(found, sizes.many_cells, args.json)


def child(program: str, store: Path, batch: int, precision: str) -> dict[str, Any]:
    """What a program of gpu_child.py measured."""
    path = str(Path(__file__).parent / "gpu_child.py")
    command = [sys.executable, path, program, str(store), "--batch-size", str(batch), "--precision", precision]
    facts: dict[str, Any] = last_json(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
    print(program, batch, precision, shown, flush=True)
    return facts


def trained(store: Path, out: Path) -> dict[str, float]:
    """Medians over the epochs after the first, and the GPU's memory."""
    run = train(store, out, train__batch_size=BATCH, train__epochs=EPOCHS, train__precision="bf16")
    later = run.epochs[1:]
    facts = {name: statistics.median(line[name] for line in later) for name in ("cells_per_second", "data_wait")}
    return {**facts, "peak": max(line["device_bytes"] for line in run.epochs), "host_peak": run.peak}


def report(found: dict[str, Any], cells: int, json_file: Path | None) -> int:
    """Print the table and the bar, and write them."""
    rate = found[f"products {BATCH} bf16"]["flops"]
    speeds = {}
    for name, facts in found.items():
        if "cells_per_second" not in facts and "seconds" in facts:
            facts["cells_per_second"] = int(name.split()[1]) / facts["seconds"]
        if "flops_a_step" in facts:
            facts["share_of_products_rate"] = facts["flops_a_step"] / facts["seconds"] / rate
        if "cells_per_second" in facts:
            speeds[name] = facts["cells_per_second"]
            share = f"{facts['share_of_products_rate']:.1%}" if "share_of_products_rate" in facts else ""
            print(f"{name:24} {speeds[name]:12,.0f} cells/s {facts.get('peak', 0) / GIB:7.2f} GiB {share}")
    step, run = found[f"step {BATCH} bf16"], found["train"]
    run["share_of_products_rate"] = step["flops_a_step"] * run["cells_per_second"] / BATCH / rate
    print(f"data wait of train {run['data_wait']:.1%}; share of the products' rate {run['share_of_products_rate']:.1%}")
    ratios = {
        "train over the loop, float32, batch 128": run["cells_per_second"] / speeds[f"loop {PAPER_BATCH} fp32"],
        "train over the loop, float32, batch 4,096": run["cells_per_second"] / speeds[f"loop {BATCH} fp32"],
        "train over the loop, bfloat16, batch 4,096": run["cells_per_second"] / speeds[f"loop {BATCH} bf16"],
        "step over the loop, bfloat16, batch 4,096": speeds[f"step {BATCH} bf16"] / speeds[f"loop {BATCH} bf16"],
        "feed over step": speeds[f"feed {BATCH} bf16"] / speeds[f"step {BATCH} bf16"],
    }
    for name, value in ratios.items():
        print(f"{name:48} {value:.2f}")
    peak = run["peak"] / GIB
    print(f"bar gpu_peak_gib {peak:.3f} <= {MOST_GIB} {'ok' if peak <= MOST_GIB else 'SHORT'}")
    if json_file:
        command = "python benchmarks/bench_gpu.py --work DIR --json benchmarks/results/gpu.json"
        facts = {"command": command, "machine": machine(), "date": time.strftime("%Y-%m-%d"), "cells": cells}
        json_file.write_text(json.dumps({**facts, "programs": found, "ratios": ratios}, indent=1) + "\n")
    return int(peak > MOST_GIB)


def machine() -> dict[str, Any]:
    """What it ran on."""
    versions = {name: version(name) for name in ("torch", "accelerate", "numpy", "zarr")}
    return {"gpu": torch.cuda.get_device_name(), "cores": os.cpu_count(), "versions": versions}


if __name__ == "__main__":
    sys.exit(main())
