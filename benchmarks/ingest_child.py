"""One ingest in a process of its own; prints one JSON object: seconds without imports, peak memory.

    python benchmarks/ingest_child.py NAME INPUT OUT

Under the peer's Python only `annbatch` and `annbatch-shuffled` run.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from process_tree import own_peak

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20


def ours(source: Path, out: Path, shuffle: bool = False) -> Callable[[], object]:
    """`unicoord-atlas ingest`, normalization, checks and checksums included."""
    from rich.console import Console

    from unicoord_atlas.jobs.ingest import IngestOptions, run

    options = IngestOptions([str(source)], out, labels=("cell_type",), shuffle=shuffle)
    return lambda: run(options, Console(quiet=True))


def annbatch(source: Path, out: Path, shuffle: bool = False) -> Callable[[], object]:
    """`DatasetCollection.add_adatas` with the codecs that its documentation advises."""
    import zarr
    import zarrs  # noqa: F401  registers the pipeline
    from annbatch import DatasetCollection

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    return lambda: DatasetCollection(out).add_adatas([source], shuffle=shuffle)


RUNS = {"ours": (ours, False), "ours-shuffled": (ours, True), "annbatch": (annbatch, False)}
RUNS["annbatch-shuffled"] = (annbatch, True)


def main() -> None:
    """Run one and print what was measured."""
    name, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    prepare, shuffle = RUNS[name]
    job = prepare(source, out, shuffle)
    peak, stop = [0], threading.Event()
    sampler = threading.Thread(target=sample_anonymous, args=(peak, stop))
    sampler.start()
    start = time.perf_counter()
    job()
    seconds = time.perf_counter() - start
    stop.set()
    sampler.join()
    print(json.dumps({"seconds": seconds, "peak_mib": own_peak() / MIB, "peak_own_mib": peak[0] / MIB}))


def sample_anonymous(peak: list[int], stop: threading.Event) -> None:
    """Keep the most memory that is not mapped files, which the system takes back when it wants to."""
    while not stop.wait(0.05):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                peak[0] = max(peak[0], int(line.split()[1]) * 1024)


if __name__ == "__main__":
    main()
