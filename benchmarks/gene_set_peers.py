"""One scorer in a process of its own: cells/s of AUCell by us, decoupler or pySCENIC on the same cells and sets.

Of the peers it is the time that as many cells more take: what they take however few there are (tables of sets,
processes that start) is not counted against them.  Of ours all counts.
Runs in pySCENIC's environment too, so it imports only what the scorer that is asked for needs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 2


def main() -> None:
    """Read INPUT/counts.npz and sets.json, print cells, seconds and the mean score."""
    who, folder, num_cells = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    sets = json.loads((folder / "sets.json").read_text())
    if who == "ours":
        seconds, scores = _ours(folder, sets, num_cells)
    else:
        score = {"decoupler": _decoupler, "pyscenic": _pyscenic}[who](folder, sets)
        seconds, scores = _of_more_cells(score, num_cells)
    print(json.dumps({"cells": num_cells, "seconds": seconds, "mean": float(np.mean(scores))}))


def _of_more_cells(score: Callable[[int], np.ndarray], num_cells: int) -> tuple[float, np.ndarray]:
    """Seconds that twice as many cells take beyond what so many take, and the scores of the latter."""
    taken, scores = [], []
    for cells in (num_cells, 2 * num_cells):
        start = time.perf_counter()
        scores.append(score(cells))
        taken.append(time.perf_counter() - start)
    if taken[1] <= taken[0]:
        raise SystemExit(f"{2 * num_cells} cells took no longer than {num_cells}: ask for more --peer-cells")
    return taken[1] - taken[0], scores[0]


def _ours(folder: Path, sets: dict[str, list[int]], num_cells: int) -> tuple[float, np.ndarray]:
    """From the store on disk, decoding included."""
    from functools import partial

    from unicoord_atlas.gene_sets.aucell import RankWeights
    from unicoord_atlas.gene_sets.score import SetSums
    from unicoord_atlas.loaders.in_order import in_order
    from unicoord_atlas.loaders.score_pass import CellScorer, scores_of_rows
    from unicoord_atlas.loaders.store import open_store

    store = open_store(folder / "atlas.zarr")
    start = time.perf_counter()
    method = RankWeights(np.load(folder / "present.npy"))
    sums = SetSums.of([np.array(members) for members in sets.values()], method)
    scores = scores_of_rows(CellScorer(store, method), sums, np.arange(num_cells), partial(in_order, threads=THREADS))
    return time.perf_counter() - start, scores


def _decoupler(folder: Path, sets: dict[str, list[int]]) -> Callable[[int], np.ndarray]:
    """Its loop over cells, compiled before the clock starts; the sets as it holds them."""
    import anndata
    import decoupler
    import pandas as pd
    import scipy.sparse as sp

    present = np.flatnonzero(np.load(folder / "present.npy"))
    cells = anndata.AnnData(sp.load_npz(folder / "counts.npz")[:, present].astype(np.float32))
    cells.var_names = [f"g{i}" for i in present]
    rows = [(name, f"g{gene}", 1.0) for name, members in sets.items() for gene in members]
    net = pd.DataFrame(rows, columns=["source", "target", "weight"])

    def score(num_cells: int) -> np.ndarray:
        some = cells[:num_cells].copy()
        decoupler.mt.aucell(some, net, tmin=1)
        return np.asarray(some.obsm["score_aucell"])

    score(2)
    return score


def _pyscenic(folder: Path, sets: dict[str, list[int]]) -> Callable[[int], np.ndarray]:
    import pandas as pd
    import scipy.sparse as sp
    from ctxcore.genesig import GeneSignature
    from pyscenic.aucell import aucell

    present = np.flatnonzero(np.load(folder / "present.npy"))
    dense = sp.load_npz(folder / "counts.npz")[:, present].toarray()
    table = pd.DataFrame(dense, columns=[f"g{i}" for i in present])
    signatures = [GeneSignature(name, {f"g{i}": 1.0 for i in members}) for name, members in sets.items()]
    return lambda num_cells: aucell(
        table.iloc[:num_cells], signatures, auc_threshold=0.05, num_workers=THREADS, seed=0
    ).to_numpy()


if __name__ == "__main__":
    main()
