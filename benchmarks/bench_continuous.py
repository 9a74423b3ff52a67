"""Continuous labels with exact truth: RNA of three cell lines mixed in known proportions, two platforms.

R2 of the three proportions on held-out cells, mean over the three, against ridge regression on 30 principal
components in the same run: 5-fold, each mixture left out in turn, each platform trained on alone.

    python benchmarks/bench_continuous.py --data ../shared/data --json benchmarks/results/continuous.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import scanpy
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score

from unicoord_atlas.jobs.fit import fit

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "sc_mixology_RNAmix_continuous"
LABELS = ["H2228_prop", "H1975_prop", "HCC827_prop"]
ALLOWANCE = 0.01


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--quick", action="store_true", help="one split of each kind")
    parser.add_argument("--set", action="append", default=[], help="any setting of train: section.key=value")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    cells = anndata.read_h5ad(args.data / NAME / f"{NAME}.h5ad")
    table: dict[str, dict[str, float]] = {}
    for kind, held_out in _splits(cells):
        truth, ours, theirs = [], [], []
        for number, rows in enumerate(held_out):
            if args.quick and number:
                break
            train, test = cells[~rows].copy(), cells[rows].copy()
            truth.append(test.obs[LABELS].to_numpy(float))
            ours.append(_ours(train, test, args.set))
            theirs.append(_ridge(train, test))
        whole = [np.concatenate(parts) for parts in (truth, ours, theirs)]
        table[kind] = {"unicoord": r2_score(whole[0], whole[1]), "ridge": r2_score(whole[0], whole[2])}
        print(f"{kind:<24} ours {table[kind]['unicoord']:.4f}   ridge on 30 PCs {table[kind]['ridge']:.4f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"command": " ".join(["python", *sys.argv]), "r2": table}, indent=1) + "\n")
    missed = 0
    for kind, scores in table.items():
        limit = scores["ridge"] - ALLOWANCE
        missed += scores["unicoord"] < limit
        print(f"bar {kind} {scores['unicoord']:.4f} >= {limit:.4f} {'ok' if scores['unicoord'] >= limit else 'SHORT'}")
    return int(missed > 0)


def _splits(cells: anndata.AnnData) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Name of each kind of split, and the held-out cells of each of its parts."""
    fold = np.random.default_rng(0).integers(0, 5, cells.n_obs)
    yield "5-fold", [fold == number for number in range(5)]
    for kind, column in (("leave-one-mixture-out", "mix"), ("train-on-one-platform", "platform")):
        values = cells.obs[column].to_numpy()
        yield kind, [values == value for value in np.unique(values)]


def _ours(train: anndata.AnnData, test: anndata.AnnData, settings: list[str]) -> np.ndarray:
    with contextlib.redirect_stderr(io.StringIO()):
        reference = fit(train, continuous=LABELS, settings=settings)
        return reference.map(test).obsm["X_unicoord"][:, : len(LABELS)]


def _ridge(train: anndata.AnnData, test: anndata.AnnData) -> np.ndarray:
    matrices = []
    for cells in (train, test):
        copy = anndata.AnnData(cells.X.copy().astype(np.float64))
        scanpy.pp.normalize_total(copy, target_sum=1e4)
        scanpy.pp.log1p(copy)
        matrices.append(copy.X.toarray() if hasattr(copy.X, "toarray") else copy.X)
    pca = PCA(30, random_state=0).fit(matrices[0])
    ridge = RidgeCV(np.logspace(-3, 4, 15)).fit(pca.transform(matrices[0]), train.obs[LABELS])
    return ridge.predict(pca.transform(matrices[1]))


if __name__ == "__main__":
    sys.exit(main())
