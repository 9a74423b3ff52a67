"""Where the time of a training step goes, by the profiler of PyTorch over steps of the command `train`.

    python benchmarks/profile_train.py STORE --page docs/profile.md

Each part's time is that of the thread that runs the step; the parts do not overlap, and what they leave is the last
line.  The profiler itself costs a few per cent.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from train_inputs import LABELS

from unicoord_atlas.config import RunConfig
from unicoord_atlas.jobs.train import TrainOptions, run
from unicoord_atlas.model import gene_order, joint_vae, sparse_input
from unicoord_atlas.model.fused_decode import _FusedDecode
from unicoord_atlas.training import loop
from unicoord_atlas.training.averaging import AveragedWeights
from unicoord_atlas.training.run import EpochClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.autograd.profiler_util import FunctionEvent

SKIPPED = 5
"""The first steps allocate what later ones use again."""
WAITING = "waiting for cells"
PARTS = {
    "counts to log-normalized values (target)": (joint_vae.JointVAE, "normalized"),
    "augmentation: gene dropout, thinning, log-normalized": (joint_vae.JointVAE, "augmented"),
    "entries in the order of genes (input and target)": (gene_order.GeneOrder, "of"),
    "first layer, forward": (sparse_input._SparseLinear, "forward"),
    "first layer, gradient": (sparse_input._SparseLinear, "backward"),
    "last layer and squared error, forward and gradient": (_FusedDecode, "forward"),
    "Adam": (torch.optim.Adam, "step"),
    "average of the weights": (AveragedWeights, "update"),
}


def main() -> int:
    """Profile, print the table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="an atlas, as bench_train makes it in its --work")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--page", type=Path, help="where to write the table with what it was measured on")
    args = parser.parse_args()
    events, seconds = profiled(args.store, args.steps, args.batch_size)
    table = "\n".join(lines(events, seconds, args.steps))
    print(table)
    if args.page:
        args.page.write_text(PAGE.format(table=table, batch=args.batch_size, **facts(args)), encoding="utf-8")
    return 0


def profiled(store: Path, steps: int, batch_size: int) -> tuple[list[FunctionEvent], float]:
    """Events summed by name, and seconds, of some steps of a run."""
    for title, (owner, name) in PARTS.items():
        setattr(owner, name, named(title, owner.__dict__[name]))
    real_waiting = EpochClock.waiting

    @contextmanager
    def waiting(clock: EpochClock) -> Iterator[None]:
        with record_function(WAITING), real_waiting(clock):
            yield

    EpochClock.waiting = waiting
    profiler, taken = profile(activities=[ProfilerActivity.CPU]), list[float]()
    real_step = loop._step

    def step(*given: Any) -> Any:
        if len(taken) == SKIPPED:
            profiler.start()
        if len(taken) == SKIPPED + steps:
            profiler.stop()
        taken.append(time.perf_counter())
        return real_step(*given)

    loop._step = step
    settings = {
        "latent": {"discrete": list(LABELS)},
        "train": {"batch_size": batch_size, "epochs": 1, "trackers": []},
        "data": {"validation_fraction": 0.0, "max_cells": (SKIPPED + steps + 2) * batch_size},
    }
    with tempfile.TemporaryDirectory() as scratch:
        run(TrainOptions(store, Path(scratch) / "run", RunConfig.of(settings)))
    return list(profiler.key_averages()), taken[SKIPPED + steps] - taken[SKIPPED]


def named(title: str, function: Any) -> Any:
    """The function with its time under this title; methods of a class stay what they are."""
    inner: Callable[..., Any] = getattr(function, "__func__", function)

    def outer(*given: Any, **by_name: Any) -> Any:
        with record_function(title):
            return inner(*given, **by_name)

    return type(function)(outer) if isinstance(function, staticmethod | classmethod) else outer


def lines(events: list[FunctionEvent], seconds: float, steps: int) -> list[str]:
    """A Markdown table: milliseconds a step and share of each part, the rest, and the products of all parts."""
    spent = {event.key: event.cpu_time_total / 1e6 for event in events}
    rows = [(title, spent.get(title, 0.0)) for title in (WAITING, *PARTS)]
    rows.append(("all else: small layers, losses, log", seconds - sum(part for _, part in rows)))
    table = ["| part of a step | ms | share |", "|---|---:|---:|"]
    table += [f"| {title} | {part / steps * 1e3:.1f} | {part / seconds:.1%} |" for title, part in rows]
    products = sum(spent.get(name, 0.0) for name in ("aten::mm", "aten::addmm"))
    table.append(f"| **whole step** | {seconds / steps * 1e3:.1f} | 100 % |")
    table.append(f"| of which matrix products | {products / steps * 1e3:.1f} | {products / seconds:.1%} |")
    return table


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the page says of the measurement."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": args.steps,
        "load": round(os.getloadavg()[0], 1),
        "command": f"python benchmarks/profile_train.py STORE --steps {args.steps} --page docs/profile.md",
    }


PAGE = """# Where the time of a training step goes

{steps} steps of `train` at batch {batch} over simulated cells (43,878 genes, about 2,000 non-zeros a cell, default
recipe), {threads} thread(s), load average {load}, torch {torch}, {date}. Made by `{command}`.

{table}

- The three matrix products of the last layer are the largest part of a step and the limit of it; they run tile by tile
  over genes, so that residuals stay in cache and no cells x genes tensor is held.
- The first layer touches only the non-zeros that the encoder sees; its cost follows their number.
- Adam passes once over 45 million weights, gradients and moments: it costs the same at any batch size, so larger
  batches have less of it a cell.
- Cells are read and decoded in other threads while a step runs; the wait is what is not hidden.
- The average of the weights is taken every tenth step.

On a machine that does other work, too, milliseconds mean little and shares are roughly right.
"""

if __name__ == "__main__":
    sys.exit(main())
