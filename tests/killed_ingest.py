"""Program: ingest in children that are killed at random moments, each time from where the last one was.

Forks before any thread runs, so that what takes seconds to import is imported once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from unicoord_atlas.jobs import ingest, ingest_write
from unicoord_atlas.loaders.zarr_layout import MatrixLayout

SMALL_SHARDS = partial(MatrixLayout, inner_chunk=128, chunks_per_shard=2)


def shards_of(folder: Path, name: str) -> int:
    """Files of X that are whole, in the unfinished store and in the one in order that a shuffled one is made from."""
    return len(list(folder.glob(f".{name}*/X/*/c/*[0-9]"))) + len(list(folder.glob(f"..{name}*/X/*/c/*[0-9]")))


def run_child(folder: Path, name: str, shuffle: bool, kill_at: tuple[int, float] | None) -> int:
    """Exit status of an ingest that is killed so many seconds after so many files were whole, or never."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        options = ingest.IngestOptions(
            [str(folder / "*.h5ad")], folder / name, shuffle=shuffle, rows_per_block=17, threads=2
        )
        ingest.run(options)
        os._exit(0)
    if kill_at is not None:
        files, seconds = kill_at
        while (
            shards_of(folder, name) < files and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def has_ended(child: int) -> bool:
    """Whether a child has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main(folder: Path, kills: int) -> None:
    """Print, for each kind of ingest, how each child ended and how many files of X were whole then."""
    ingest_write.MatrixLayout = SMALL_SHARDS
    told = []
    for shuffle in (False, True):
        rng = np.random.default_rng([7, shuffle])
        assert run_child(folder, f"whole{shuffle}.zarr", shuffle, None) == 0
        num_files = len(list(folder.glob(f"whole{shuffle}.zarr/X/*/c/*"))) * (1 + shuffle)
        left = []
        for files in np.sort(rng.integers(0, num_files, kills)).tolist():
            status = run_child(folder, f"killed{shuffle}.zarr", shuffle, (files, rng.uniform(0, 0.02)))
            left.append((status, shards_of(folder, f"killed{shuffle}.zarr")))
        assert run_child(folder, f"killed{shuffle}.zarr", shuffle, None) == 0
        told.append(left)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
