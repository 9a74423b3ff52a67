"""Random minibatches from an atlas on a local S3 server, beside bare ranged GETs of the same bytes from it.

An atlas (--atlas; else 50,000 random cells with 1,000 counts each among 43,878 genes) is copied into a SeaweedFS on
loopback.  Each reader is a process of its own, in turns; rates are medians by the clock.

    gets    the very ranges that an epoch of `s3` asks for, by obstore in as many threads; nothing is done with them
    s3      CellStream on s3://: minibatches of 512 in windows of 20,000 cells
    cached  a second epoch through --cache, which the first one filled
    zarr    the same epoch on the atlas on disk

    python benchmarks/bench_s3.py --atlas atlas.zarr --json benchmarks/results/s3.json
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_soma import minibatches, random_atlas

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from servers import KEYS, seaweedfs, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

READERS = ("gets", "s3", "cached", "zarr")
LEAST_OF_GETS, LEAST_OF_ZARR = 0.5, 0.9
ADDRESS = "s3://cells/atlas.zarr"
THREADS = 16
WINDOW_CELLS = 20_000


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,000 cells, one run each")
    parser.add_argument("--atlas", type=Path, help="atlas store to measure on, instead of a random one")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each reader")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--child", nargs=3, metavar=("READER", "ATLAS", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        reader, atlas, folder = args.child
        print(json.dumps(measure(reader, Path(atlas), Path(folder))))
        return 0
    with tempfile.TemporaryDirectory() as name:
        found = run_all(args, Path(name))
    for reader, facts in found.items():
        print(f"{reader:>7}  {facts['cells_per_s']:9,.0f} cells/s  {facts['mb_per_s']:7,.0f} MB/s")
    print(f"{found['s3']['requests_per_window']:.0f} requests a window of {WINDOW_CELLS:,} cells")
    bars = {
        "s3_of_gets": (found["s3"]["cells_per_s"] / found["gets"]["cells_per_s"], LEAST_OF_GETS),
        "cached_of_zarr": (found["cached"]["cells_per_s"] / found["zarr"]["cells_per_s"], LEAST_OF_ZARR),
    }
    for bar, (ratio, least) in bars.items():
        print(f"bar {bar} {ratio:.2f} >= {least} {'ok' if ratio >= least else 'SHORT'}")
    if args.json:
        facts = {"command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d")}
        facts |= {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
        args.json.write_text(json.dumps({**facts, **found}, indent=1) + "\n")
    return int(any(ratio < least for ratio, least in bars.values()))


def run_all(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Median rates of each reader."""
    atlas = args.atlas or random_atlas(folder, 5_000 if args.quick else 50_000)
    (folder / "server").mkdir()
    runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    with seaweedfs(folder / "server", megabytes=_megabytes(atlas)) as endpoint:
        os.environ.update({**KEYS, "AWS_ENDPOINT_URL": endpoint})
        upload(endpoint, atlas, "cells", "atlas.zarr")
        for reader in ("record", "cached"):  # the ranges for `gets`; the cache
            _child(reader, atlas, folder)
        for _ in range(1 if args.quick else args.repeats):
            for reader in READERS:
                runs[reader].append(_child(reader, atlas, folder))
    return {
        reader: {key: statistics.median(run[key] for run in those) for key in those[0]}
        for reader, those in runs.items()
    }


def _megabytes(atlas: Path) -> int:
    return sum(path.stat().st_size for path in atlas.rglob("*") if path.is_file()) >> 20


def _child(reader: str, atlas: Path, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", reader, str(atlas), str(folder)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def measure(reader: str, atlas: Path, folder: Path) -> dict[str, float]:
    """One epoch of a reader in this process, after what it does once."""
    from unicoord_atlas.loaders.byte_cache import ByteCache
    from unicoord_atlas.loaders.object_files import ObjectFiles
    from unicoord_atlas.loaders.store import open_store

    ranges = folder / "ranges.json"
    asked: list[tuple[str, int, int]] = []
    if reader == "gets":
        asked = json.loads(ranges.read_text())
        cells: Iterator[int] = replayed(open_store(atlas).n_obs, asked)
    else:
        plain = ObjectFiles.read_range

        def recorded(self: ObjectFiles, name: str, start: int, stop: int) -> Any:
            asked.append((name, start, stop))
            return plain(self, name, start, stop)

        ObjectFiles.read_range = recorded  # type: ignore[method-assign]
        address = atlas if reader == "zarr" else ADDRESS
        store = open_store(address, ByteCache(folder / "cache", 1 << 50) if reader == "cached" else None)
        cells = minibatches(store)
    num_cells = next(cells)  # opened
    asked_before = 0 if reader == "gets" else len(asked)
    start = time.perf_counter()
    for _ in cells:
        pass
    seconds = time.perf_counter() - start
    asked = asked[asked_before:]
    if reader == "record":
        ranges.write_text(json.dumps(asked))
    return {
        "cells_per_s": num_cells / seconds,
        "mb_per_s": sum(stop - start for _, start, stop in asked) / seconds / 1e6,
        "requests_per_window": len(asked) / -(-num_cells // WINDOW_CELLS),
    }


def replayed(num_cells: int, asked: list[tuple[str, int, int]]) -> Iterator[int]:
    """Number of cells, then that of bytes of each range."""
    import obstore

    from unicoord_atlas.loaders.object_open import READING, open_objects

    objects = open_objects(ADDRESS, READING).store
    yield num_cells
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(lambda part: len(obstore.get_range(objects, part[0], start=part[1], end=part[2])), asked)


if __name__ == "__main__":
    sys.exit(main())
