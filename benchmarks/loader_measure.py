"""How loaders are measured: epochs by the clock, mixing of labels, memory of a process and its children.

Runs under the peer's Python as well, so it needs NumPy only.
"""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Epoch:
    """One pass over the cells, or so much of it as takes some seconds."""

    cells: int
    seconds: float
    cpu_seconds: float
    """Of all threads: other work on the machine hardly changes it."""


def time_epochs(
    batches: Callable[[], Iterable[np.ndarray]], num_epochs: int, max_seconds: float = math.inf, fetch_cells: int = 1
) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    """Iterate so many times; `batches` yields each batch's rows or codes.  Returns the epochs and the last one's.

    Epochs of `max_seconds` end with a whole fetch: a loader reads `fetch_cells` at a time, and what it has read already
    comes for nothing.  One more goes before them that does not count.
    """
    epochs, seen = [], []
    for _ in range(num_epochs + math.isfinite(max_seconds)):
        seen, cells = [], 0
        start, cpu = time.perf_counter(), time.process_time()
        for batch in batches():
            seen.append(batch)
            cells += len(batch)
            if cells % fetch_cells == 0 and time.perf_counter() - start > max_seconds:
                break
        epochs.append(asdict(Epoch(cells, time.perf_counter() - start, time.process_time() - cpu)))
    return epochs[-num_epochs:], seen


def mixing(batches: list[np.ndarray], codes: np.ndarray) -> dict[str, float]:
    """How random a label's order is: entropy within a batch, and correlation between neighbouring batches.

    `codes` are those of all cells.  Each is also measured on the same batches filled in ideal random order.
    The correlation is of the deviations of two neighbouring batches from the label's shares in the whole.
    """
    ideal = np.random.default_rng(0).permutation(codes)[: sum(map(len, batches))]
    borders = np.cumsum([len(batch) for batch in batches])[:-1]
    found, best = (_shares(parts, codes) for parts in (batches, np.split(ideal, borders)))
    whole = np.bincount(codes, minlength=found.shape[1]) / len(codes)
    return {
        "entropy": _entropy(found),
        "ideal_entropy": _entropy(best),
        "neighbours": _neighbours(found - whole),
        "ideal_neighbours": _neighbours(best - whole),
    }


def _shares(batches: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
    num_labels = int(codes.max()) + 1
    return np.stack([np.bincount(batch, minlength=num_labels) / len(batch) for batch in batches])


def _entropy(shares: np.ndarray) -> float:
    logs = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    return float(-(shares * logs).sum(axis=1).mean())


def _neighbours(deviations: np.ndarray) -> float:
    if len(deviations) < 3:
        return float("nan")
    return float((deviations[1:] * deviations[:-1]).sum(axis=1).mean() / (deviations**2).sum(axis=1).mean())


@dataclass(frozen=True)
class Memory:
    """Bytes: the peak over a process tree, and the largest share of it that is page cache of the input."""

    peak: int
    page_cache: int


def watch(command: list[str], data: Path) -> tuple[str, Memory]:
    """Run a command; its stdout and the peak sum of PSS over its processes, pages of files under `data` apart."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = page_cache = 0
    while process.poll() is None:
        own, mapped = tree_memory(process.pid, data)
        peak, page_cache = max(peak, own), max(page_cache, mapped)
        time.sleep(SAMPLE_SECONDS)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return process.stdout.read(), Memory(peak, page_cache)


def tree_memory(pid: int, data: Path) -> tuple[int, int]:
    """Sum of PSS over a process and its descendants in bytes: all but the pages of files under `data`, and those."""
    sums = [_pss(member, str(data)) for member in _family(pid)]
    return sum(own for own, _ in sums), sum(mapped for _, mapped in sums)


def _family(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return []
    return [pid, *(member for child in children for member in _family(child))]


def _pss(pid: int, data: str) -> tuple[int, int]:
    """PSS of a process: all but the pages of files under `data`, and those."""
    sums = [0, 0]
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended meanwhile
        return 0, 0
    of_data = False
    for line in lines:
        if line.startswith("Pss:"):
            sums[of_data] += int(line.split()[1]) * 1024
        elif line[0] in "0123456789abcdef" and "-" in line.split(" ", 1)[0]:
            of_data = data in line
    return sums[0], sums[1]
