"""Reconstruction of held-out cells against the principal components of the same training cells.

Share of what PCA with 50 components explains: (mean profile - ours) / (mean profile - PCA), all squared errors summed
over genes, mean over held-out cells, log-normalized values.

    python benchmarks/bench_reconstruction.py --data ../shared/data --json benchmarks/results/reconstruction.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

import anndata
import numpy as np
import torch
from sklearn.decomposition import PCA

from unicoord_atlas.jobs.fit import fit
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.query import QueryBatches

BAR = 0.8
QUICK = ["data.genes=highly_variable", "data.num_highly_variable=2000", "train.epochs=6"]


def main() -> int:
    """Run, print, and exit 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--name", default="pbmc8k_raw_labelled", help="data set")
    parser.add_argument("--label", default="cell_type_scvi", help="supervised label")
    parser.add_argument("--set", action="append", default=[], help="any setting of train: section.key=value")
    parser.add_argument("--quick", action="store_true", help="2,000 highly variable genes and 6 epochs")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    settings = [*(QUICK if args.quick else []), *args.set]
    cells = anndata.read_h5ad(args.data / args.name / f"{args.name}.h5ad")
    held_out = np.random.default_rng(0).random(cells.n_obs) < 0.2
    with contextlib.redirect_stderr(io.StringIO()):
        reference = fit(cells[~held_out].copy(), discrete=[args.label], settings=settings)
    expressed, errors = [], []
    for part in (cells[~held_out], cells[held_out]):
        dense = []
        for batch in QueryBatches(AnnDataCells(part), reference.schema, reference.normalization):
            with torch.no_grad():
                errors.append(reference.model(batch).errors_n.numpy())
            dense.append(reference.model.normalized(batch).to_dense().numpy())
        expressed.append(np.concatenate(dense))
    train, test = expressed
    ours = float(np.concatenate(errors)[len(train) :].mean())
    mean = float(((test - train.mean(axis=0)) ** 2).sum(axis=1).mean())
    pca = PCA(50, svd_solver="randomized", random_state=0).fit(train)
    principal = float(((test - pca.inverse_transform(pca.transform(test))) ** 2).sum(axis=1).mean())
    share = (mean - ours) / (mean - principal)
    print(f"squared error a held-out cell: mean profile {mean:.1f}, ours {ours:.1f}, PCA-50 {principal:.1f}")
    if args.json:
        result = {"mean_profile": mean, "unicoord": ours, "pca_50": principal, "share": share}
        args.json.write_text(json.dumps({"command": " ".join(["python", *sys.argv]), **result}, indent=1) + "\n")
    print(f"bar reconstruction {share:.3f} >= {BAR} {'ok' if share >= BAR else 'SHORT'}")
    return int(share < BAR)


if __name__ == "__main__":
    sys.exit(main())
