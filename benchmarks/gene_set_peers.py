"""One scorer in a process of its own: cells/s of AUCell by us, decoupler or pySCENIC on the same cells and sets.

Runs in pySCENIC's environment too, so it imports only what the scorer that is asked for needs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

THREADS = 2


def main() -> None:
    """Read INPUT/counts.npz and sets.json, print cells, seconds and the first scores."""
    who, folder, num_cells = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    sets = json.loads((folder / "sets.json").read_text())
    seconds, scores = {"ours": _ours, "decoupler": _decoupler, "pyscenic": _pyscenic}[who](folder, sets, num_cells)
    print(json.dumps({"cells": num_cells, "seconds": seconds, "mean": float(np.mean(scores))}))


def _counts(folder: Path, num_cells: int) -> object:
    import scipy.sparse as sp

    return sp.load_npz(folder / "counts.npz")[:num_cells].tocsr()


def _ours(folder: Path, sets: dict[str, list[int]], num_cells: int) -> tuple[float, object]:
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


def _decoupler(folder: Path, sets: dict[str, list[int]], num_cells: int) -> tuple[float, object]:
    """Its loop over cells, compiled before the clock starts; the sets as it holds them."""
    import anndata
    import decoupler
    import pandas as pd

    present = np.flatnonzero(np.load(folder / "present.npy"))
    cells = anndata.AnnData(_counts(folder, num_cells)[:, present].astype(np.float32))
    cells.var_names = [f"g{i}" for i in present]
    rows = [(name, f"g{gene}", 1.0) for name, members in sets.items() for gene in members]
    net = pd.DataFrame(rows, columns=["source", "target", "weight"])
    decoupler.mt.aucell(cells[:2].copy(), net, tmin=1)
    start = time.perf_counter()
    decoupler.mt.aucell(cells, net, tmin=1)
    return time.perf_counter() - start, cells.obsm["score_aucell"]


def _pyscenic(folder: Path, sets: dict[str, list[int]], num_cells: int) -> tuple[float, object]:
    import pandas as pd
    from ctxcore.genesig import GeneSignature
    from pyscenic.aucell import aucell

    present = np.flatnonzero(np.load(folder / "present.npy"))
    dense = _counts(folder, num_cells)[:, present].toarray()
    table = pd.DataFrame(dense, columns=[f"g{i}" for i in present])
    signatures = [GeneSignature(name, {f"g{i}": 1.0 for i in members}) for name, members in sets.items()]
    start = time.perf_counter()
    scores = aucell(table, signatures, auc_threshold=0.05, num_workers=THREADS, seed=0)
    return time.perf_counter() - start, scores.to_numpy()


if __name__ == "__main__":
    main()
