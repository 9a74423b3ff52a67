"""One program of bench_train in a process of its own; it prints one JSON object in its last line.

loop      the paper's loop on dense cells in memory, and how fast its products over genes are
products  those products alone, at the library's own speed
limit     the three products of the last layer alone, in the precision that training takes
error     the paper's loop on real cells until its epochs are over: held-out error after each
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from paper_loop import HIDDEN, PaperNetwork, make_adam, paper_step
from torch.profiler import ProfilerActivity, profile
from train_inputs import LABELS

from unicoord_atlas.allocator import keep_freed_memory
from unicoord_atlas.config import RunConfig
from unicoord_atlas.jobs.train import prepare_store
from unicoord_atlas.loaders import CellStream, open_store
from unicoord_atlas.log_normalize import log_normalize
from unicoord_atlas.training.precision import choose_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from unicoord_atlas.batch import MiniBatch

BATCHES_IN_MEMORY = 3


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("store", type=Path)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--labels", nargs="+", default=LABELS)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long steps are timed")
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    keep_freed_memory()  # as `train` does
    print(json.dumps(PROGRAMS[args.program](args)))


def loop(args: argparse.Namespace) -> dict[str, float]:
    """Seconds a step of the paper's loop, and of its products within the step."""
    _, stream, categories, num_genes = cells_of(args)
    batches = [dense(batch) for batch, _ in zip(stream, range(BATCHES_IN_MEMORY), strict=False)]
    network = PaperNetwork(num_genes, categories)
    optimizer, done = make_adam(network), [0]

    def step() -> None:
        paper_step(network, optimizer, *batches[done[0] % len(batches)])
        done[0] += 1

    facts = timed(step, args.seconds)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    events = profiler.key_averages(group_by_input_shape=True)
    products = [
        each for each in events if each.key in ("aten::mm", "aten::addmm") and over_genes(each.input_shapes, num_genes)
    ]
    return {**facts, "product_seconds": sum(each.self_cpu_time_total for each in products) / 1e6}


def over_genes(shapes: list[list[int]], num_genes: int) -> bool:
    """Whether a matrix of these shapes has all genes on a side."""
    return any(num_genes in shape for shape in shapes if len(shape) == 2)


def products(args: argparse.Namespace) -> dict[str, float]:
    """The five products over genes of a step of the paper's loop, into memory that is there."""
    num_genes, cells, width = open_store(args.store).n_vars, args.batch_size, HIDDEN[0]
    hidden, weight, x = (torch.randn(*shape) for shape in ((cells, width), (num_genes, width), (cells, num_genes)))
    of_hidden, of_weight, of_x = torch.empty_like(hidden), torch.empty_like(weight), torch.empty_like(x)

    def step() -> None:
        torch.mm(x, weight, out=of_hidden)  # encoder, forward
        torch.mm(x.t(), hidden, out=of_weight)  # its weights' gradient
        torch.mm(hidden, weight.t(), out=of_x)  # decoder, forward
        torch.mm(x.t(), hidden, out=of_weight)
        torch.mm(x, weight, out=of_hidden)

    return timed(step, args.seconds)


def limit(args: argparse.Namespace) -> dict[str, Any]:
    """The last layer's product and both of its gradients' alone: in one piece or in tiles, whichever is faster."""
    dtype = choose_precision(RunConfig().train, torch.device("cpu"))
    num_genes = open_store(args.store).n_vars
    tried = [timed(limit_step(num_genes, args.batch_size, tile, dtype), args.seconds) for tile in (2048, num_genes)]
    return {**min(tried, key=lambda facts: facts["seconds"]), "dtype": str(dtype).removeprefix("torch.")}


def limit_step(num_genes: int, cells: int, tile: int, dtype: torch.dtype) -> Callable[[], None]:
    """All tiles of a step."""
    hidden = torch.randn(cells, HIDDEN[0]).to(dtype)
    weight, residual = torch.randn(tile, HIDDEN[0]).to(dtype), torch.randn(cells, tile).to(dtype)
    of_hidden, of_weight, of_residual = (torch.empty_like(t) for t in (hidden, weight, residual))

    def step() -> None:
        for _ in range(round(num_genes / tile)):
            torch.mm(hidden, weight.t(), out=of_residual)
            torch.mm(residual.t(), hidden, out=of_weight)
            torch.mm(residual, weight, out=of_hidden)

    return step


def error(args: argparse.Namespace) -> dict[str, list[float]]:
    """Held-out squared error a cell, and seconds of training, after each epoch of the paper's loop.

    Training cells lie in memory as sparse rows; making a batch dense does not count.
    """
    prepared, stream, categories, num_genes = cells_of(args)
    store = open_store(args.store)
    held_out = list(CellStream(store, prepared.columns, batch_size=512, order="stored", rows=prepared.validation_rows))
    torch.manual_seed(0)
    network = PaperNetwork(num_genes, categories)
    optimizer, seconds, errors, spent = make_adam(network), [], [], 0.0
    for _ in range(args.epochs):
        network.train()
        for batch in stream:
            x_ng, codes_nl = dense(batch)
            start = time.perf_counter()
            paper_step(network, optimizer, x_ng, codes_nl)
            spent += time.perf_counter() - start
        errors.append(held_out_error(network.eval(), held_out))
        seconds.append(spent)
    return {"seconds": seconds, "errors": errors}


@torch.no_grad()
def held_out_error(network: PaperNetwork, batches: list[MiniBatch]) -> float:
    """Mean over cells of the squared error summed over genes."""
    sums = cells = 0.0
    for batch in batches:
        x_ng, _ = dense(batch)
        sums += float(((network(x_ng)[0] - x_ng).square().sum(dim=1) * batch.weights_n).sum())
        cells += float(batch.weights_n.sum())
    return sums / cells


def cells_of(args: argparse.Namespace) -> tuple[Any, CellStream, list[int], int]:
    """Split and labels as `train` makes them, training cells in random order, classes a label, number of genes."""
    store = open_store(args.store)
    config = RunConfig.of({"latent": {"discrete": list(args.labels)}})
    prepared = prepare_store(store, config)
    rows = prepared.training_rows
    stream = CellStream(store, prepared.columns, batch_size=args.batch_size, rows=rows, drop_last=True)
    return prepared, stream, [len(label.categories) for label in prepared.labels], store.n_vars


def dense(batch: MiniBatch) -> tuple[Tensor, Tensor]:
    """Log-normalized cells as a dense matrix, and their labels' codes."""
    return log_normalize(batch.counts, batch.size_factors_n).to_dense(), batch.codes_nl.to(torch.int64)


def timed(step: Callable[[], None], min_seconds: float) -> dict[str, float]:
    """Median seconds of a call by the clock and of all threads, after two that do not count."""
    step()
    step()
    walls: list[float] = []
    start = time.process_time()
    while sum(walls) < min_seconds or len(walls) < 3:
        began = time.perf_counter()
        step()
        walls.append(time.perf_counter() - began)
    cpu = (time.process_time() - start) / len(walls)
    return {"seconds": statistics.median(walls), "cpu_seconds": cpu, "steps": float(np.size(walls))}


PROGRAMS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loop": loop,
    "products": products,
    "limit": limit,
    "error": error,
}

if __name__ == "__main__":
    main()
