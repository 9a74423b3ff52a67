"""One program of bench_gpu in a process of its own; it prints one JSON object in its last line."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from paper_loop import HIDDEN, PaperNetwork, make_adam, paper_step
from torch.profiler import ProfilerActivity, profile
from train_inputs import LABELS

from unicoord_atlas.allocator import keep_freed_memory
from unicoord_atlas.config import RunConfig
from unicoord_atlas.jobs.train import prepare_store
from unicoord_atlas.loaders import CellStream, open_store
from unicoord_atlas.loaders.device_feed import DeviceFeed
from unicoord_atlas.log_normalize import log_normalize
from unicoord_atlas.model.noise import Noise
from unicoord_atlas.training.assembly import build_model, build_objective, profile_of
from unicoord_atlas.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from unicoord_atlas.training.preparation import Preparation

RESIDENT = 3
DEVICE = torch.device("cuda")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("store", type=Path)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16")
    args = parser.parse_args()
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = args.precision == "tf32"
    print(json.dumps(PROGRAMS[args.program](args)))


def loop(args: argparse.Namespace) -> dict[str, float]:
    """The paper's loop; its batches lie dense on the GPU, and do not count as its memory."""
    prepared, stream = cells_of(args)
    num_genes = open_store(args.store).n_vars
    sparse = [batch.to(DEVICE) for batch, _ in zip(stream, range(RESIDENT), strict=False)]
    batches = [
        (log_normalize(batch.counts, batch.size_factors_n).to_dense(), batch.codes_nl.to(torch.int64))
        for batch in sparse
    ]
    network = PaperNetwork(num_genes, [len(label.categories) for label in prepared.labels]).to(DEVICE)
    optimizer, done = make_adam(network), [0]
    resident = torch.cuda.memory_allocated()

    def step() -> None:
        done[0] += 1
        with torch.autocast("cuda", torch.bfloat16) if args.precision == "bf16" else nullcontext():
            paper_step(network, optimizer, *batches[done[0] % RESIDENT])

    facts = timed(step)
    weights = 4 * sum(p.numel() for p in network.parameters())
    return {**facts, "peak": torch.cuda.max_memory_allocated() - resident + weights}


def step(args: argparse.Namespace) -> dict[str, Any]:
    """Our step on resident batches; where its time goes, and where it waits for the GPU."""
    prepared, stream = cells_of(args)
    store = open_store(args.store)
    config = RunConfig.of({"latent": {"discrete": list(LABELS)}})
    host = [batch for batch, _ in zip(stream, range(RESIDENT), strict=False)]
    batches = [batch.to(DEVICE) for batch in host]
    profile_g = profile_of(host, store.schema.measured_sg(), store.normalization)
    model = build_model(config, store.schema, store.normalization, prepared, None, profile_g).to(DEVICE)
    model.compute_dtype = torch.float32 if args.precision == "fp32" else torch.bfloat16
    objective = build_objective(config, model, prepared, DEVICE)
    optimizer, done = make_optimizer(model, config.train), [0]

    def one() -> None:
        done[0] += 1
        batch = batches[done[0] % RESIDENT]
        loss = objective(model(batch, Noise(0, done[0], batch.rows_n)), batch, done[0])
        loss.total.backward()
        if config.train.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    facts = timed(one)
    peak = torch.cuda.max_memory_allocated()
    print_profile(one)
    entries = statistics.mean(len(batch.counts.indices) for batch in batches)
    dense = sum(p.numel() for name, p in model.named_parameters() if "input_layer" not in name)
    flops = 6 * args.batch_size * dense + 4 * entries * HIDDEN[0]
    return {**facts, "peak": peak, "flops_a_step": flops, "waits": waits(one)}


def waits(one: Callable[[], None]) -> int:
    """Times that the host waits for the device in a step; each place is printed."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one()
    torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchron" in str(warning.message)]
    for warning in found:
        print("waits:", Path(warning.filename).name, warning.lineno, file=sys.stderr)
    return len(found)


def print_profile(one: Callable[[], None], steps: int = 5) -> None:
    """Kernels by their time on the device."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            one()
        torch.cuda.synchronize()
    table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=70)
    for line in table.splitlines():  # name, host time, device time, calls
        print(line[:72], line[-110:], file=sys.stderr)


def limit(args: argparse.Namespace) -> dict[str, float]:
    """The last layer's product and both of its gradients' alone."""
    num_genes, cells, width = open_store(args.store).n_vars, args.batch_size, HIDDEN[0]
    shapes = ((cells, width), (num_genes, width), (cells, num_genes))
    hidden, weight, residual = (torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) for shape in shapes)
    of_hidden, of_weight, of_residual = (torch.empty_like(t) for t in (hidden, weight, residual))

    def one() -> None:
        torch.mm(hidden, weight.t(), out=of_residual)
        torch.mm(residual.t(), hidden, out=of_weight)
        torch.mm(residual, weight, out=of_hidden)

    return timed(one)


def products(args: argparse.Namespace) -> dict[str, float]:
    """A large product in bfloat16."""
    size = 8192
    left, right = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in "lr")
    out = torch.empty_like(left)
    seconds = timed(lambda: torch.mm(left, right, out=out))["seconds"]
    return {"flops": 2 * size**3 / seconds}


def feed(args: argparse.Namespace) -> dict[str, float]:
    """An epoch of the stream to the GPU, after a first one."""
    _, stream = cells_of(args)
    ahead = DeviceFeed(stream, DEVICE)
    laps = []
    for _ in range(2):
        start, cells = time.perf_counter(), 0
        for batch in ahead:
            cells += len(batch)
        torch.cuda.synchronize()
        laps.append((time.perf_counter() - start) / cells)
    return {"seconds": laps[-1] * args.batch_size, "first_epoch": laps[0] * args.batch_size}


def cells_of(args: argparse.Namespace) -> tuple[Preparation, CellStream]:
    """Split and labels as `train` makes them, training cells in random order."""
    store = open_store(args.store)
    prepared = prepare_store(store, RunConfig.of({"latent": {"discrete": list(LABELS)}}))
    rows = prepared.training_rows
    return prepared, CellStream(
        store, prepared.columns, batch_size=args.batch_size, rows=rows, drop_last=True, pinned=True
    )


def timed(one: Callable[[], object], seconds: float = 2.0) -> dict[str, float]:
    """Seconds of a call by the clock, waiting for the device after each ten: median of the tens, after three calls."""
    for _ in range(3):
        one()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    laps: list[float] = []
    while sum(laps) * 10 < seconds or len(laps) < 3:
        start = time.perf_counter()
        for _ in range(10):
            one()
        torch.cuda.synchronize()
        laps.append((time.perf_counter() - start) / 10)
    return {"seconds": statistics.median(laps)}


PROGRAMS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loop": loop,
    "step": step,
    "limit": limit,
    "products": products,
    "feed": feed,
}

if __name__ == "__main__":
    main()
