"""Program: what a mapped query of an invented atlas is worth, beside logistic and ridge regression in the same run.

Both are learned on the atlas's 50 principal components (build-graph's) of at most --most-cells of its cells, and told
of the query's components: log-normalized by the atlas's normalization, times its loadings.  Truth: `true_cell_type`,
and the gradients that the cells were drawn from.  Prints JSON.

    python benchmarks/heca_accuracy.py --store near.zarr --query query.h5ad --mapped mapped.zarr
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import zarr
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from unicoord_atlas.loaders.query_cells import StoreCells, open_query
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.log_normalize import log_normalize
from unicoord_atlas.query import QueryBatches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unicoord_atlas.loaders.store import CellStore

TYPE, TRUE_TYPE, GRADIENTS = "cell_type", "true_cell_type", ("gradient_1", "gradient_2")
SHIFT_CELLS = 256


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("store", "query", "mapped"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--most-cells", type=int, default=200_000, help="cells that the regressions learn from")
    args = parser.parse_args()
    store, mapped = open_store(args.store), anndata.read_zarr(args.mapped)
    obs, points_nd = store.obs([TYPE, *GRADIENTS]), store.obsm("X_pca")
    chosen = np.sort(np.random.default_rng(0).permutation(store.n_obs)[: args.most_cells])
    scaler = StandardScaler().fit(points_nd[chosen])
    known_nd = scaler.transform(points_nd[chosen])
    query_nd = scaler.transform(components(store, args.query, points_nd))
    found = {"query_cells": mapped.n_obs, "regression_cells": len(chosen)}
    found["macro_f1"] = annotation(mapped, known_nd, obs[TYPE].iloc[chosen].astype("string"), query_nd)
    dims = list(mapped.uns["unicoord"]["dims"])
    for name in GRADIENTS:
        ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(known_nd, obs[name].to_numpy()[chosen])
        truth = mapped.obs[name].to_numpy()
        ours = np.asarray(mapped.obsm["X_unicoord"])[:, dims.index(name)]
        found[f"rho_{name}"] = {"ours": rho(ours, truth), "ridge": rho(ridge.predict(query_nd), truth)}
    print(json.dumps(found))


def annotation(mapped: anndata.AnnData, known_nd: NDArray[Any], types_n: Any, query_nd: NDArray[Any]) -> dict[str, Any]:
    """Macro-F1 and accuracy over the types that the query has, of map-query and of logistic regression."""
    labelled = types_n.notna().to_numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")  # 200 steps are enough
        logistic = LogisticRegression(max_iter=200).fit(known_nd[labelled], types_n[labelled].astype(str))
    truth = mapped.obs[TRUE_TYPE].astype(str).to_numpy()
    predicted = {"ours": mapped.obs[f"{TYPE}_predicted"].astype(str), "logistic": logistic.predict(query_nd)}
    scores = {name: macro_f1(truth, np.asarray(values)) for name, values in predicted.items()}
    accuracies = {f"{name}_accuracy": float(accuracy_score(truth, each)) for name, each in predicted.items()}
    return {**scores, **accuracies, "types": len(np.unique(truth))}


def macro_f1(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Mean F1 over the types that there are."""
    return float(f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0))


def rho(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Spearman's."""
    return float(spearmanr(found, truth).statistic)


def components(store: CellStore, query: Path, points_nd: NDArray[Any]) -> NDArray[np.float64]:
    """The query's scores on the atlas's components; their origin is found with the atlas's first cells."""
    loadings_gd = zarr.open_group(store.uri, mode="r")["varm/PCs"][:]
    some = StoreCells(store)
    some.n_obs = min(SHIFT_CELLS, store.n_obs)
    shift_d = (projected(store, some, loadings_gd) - points_nd[: some.n_obs]).mean(axis=0)
    with open_query(query) as cells:
        return projected(store, cells, loadings_gd) - shift_d


def projected(store: CellStore, cells: Any, loadings_gd: NDArray[Any]) -> NDArray[np.float64]:
    """Log-normalized counts times loadings."""
    parts = []
    for batch in QueryBatches(cells, store.schema, store.normalization):
        rows = log_normalize(batch.counts, batch.size_factors_n, store.normalization.target_sum)
        arrays = (rows.data.numpy(), rows.indices.numpy(), rows.indptr.numpy())
        parts.append(sparse.csr_matrix(arrays, (len(batch.rows_n), store.n_vars)) @ loadings_gd)
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
