"""Runs of the `train` command as bench_train measures them: as users start it, in processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loader_inputs import last_json
from loader_measure import tree_memory
from train_inputs import LABELS, ours, settings

from unicoord_atlas.training.metrics import read_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

TERMINATED = 143
SAMPLE_SECONDS = 1.0
"""Between looks at memory: each takes some hundredths of a second from a core."""


@dataclass(frozen=True)
class Run:
    """A run of the command that has ended."""

    seconds: float
    """From start to end, imports and checkpoints included."""
    peak: int
    """Bytes: the largest sum of PSS over its processes, pages of the store apart."""
    samples: list[tuple[int, int]]
    """(step, bytes) while it ran; the step is of the last line of its log."""
    epochs: list[dict[str, Any]]
    """Lines of metrics.jsonl."""


def train(
    store: Path,
    out: Path,
    *,
    processes: int = 1,
    threads: int = 0,
    until_step: int = 0,
    labels: Sequence[str] = LABELS,
    **given: Any,
) -> Run:
    """Train from the beginning and watch.

    Parameters
    ----------
    processes, threads
        Several processes are started by `launch`; threads of each, by default all cores.
    until_step
        Terminate the run once its log has reached this step; 0 = let it end.
    given
        Settings, section__key=value.
    """
    shutil.rmtree(out, ignore_errors=True)
    words = ["train", store, "--out", out, "--no-report", "--discrete", ",".join(labels), *settings(**given)]
    command = ours(*(["launch", "--processes", processes] if processes > 1 else []), *words)
    start = time.perf_counter()
    log = out.with_suffix(".log")
    with log.open("w") as lines:
        process = subprocess.Popen(command, env=with_threads(threads), stdout=lines, stderr=lines)
        samples = watch_steps(process, store, out / "steps.jsonl", until_step)
    if process.returncode != (TERMINATED if until_step else 0):
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}; see {log}")
    seconds = time.perf_counter() - start
    return Run(seconds, max(size for _, size in samples), samples, read_metrics(out / "metrics.jsonl"))


def with_threads(threads: int = 0) -> dict[str, str]:
    """The environment of a process with so many threads; 0 = one a core."""
    return {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads or len(os.sched_getaffinity(0)))),
    }


def watch_steps(process: subprocess.Popen[bytes], store: Path, steps: Path, until_step: int) -> list[tuple[int, int]]:
    """Memory at each moment of a run, with the step that its log had reached."""
    samples, step = [(0, 0)], 0
    while process.poll() is None:
        if steps.exists() and (lines := read_metrics(steps)):
            step = int(lines[-1]["step"])
        samples.append((step, tree_memory(process.pid, store)[0]))
        if until_step and step >= until_step:
            process.send_signal(signal.SIGTERM)
            until_step = 0
        time.sleep(SAMPLE_SECONDS)
    return samples


def growth(samples: list[tuple[int, int]], steps: int) -> float:
    """Largest memory in the last three eighths of the steps over that in the three eighths before."""
    middle = [size for step, size in samples if steps / 4 <= step < steps * 5 / 8]
    last = [size for step, size in samples if step >= steps * 5 / 8]
    return max(last) / max(middle)


def child(program: str, store: Path, *options: object) -> dict[str, Any]:
    """What a program of train_child.py measured, with its peak memory."""
    path = str(Path(__file__).parent / "train_child.py")
    command = [sys.executable, path, program, str(store), *map(str, options)]
    process = subprocess.Popen(command, env=with_threads(), stdout=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid, store)[0])
        time.sleep(SAMPLE_SECONDS)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"train_child.py {program} ended with status {process.returncode}")
    return {**last_json(process.stdout.read().decode()), "peak": peak}
