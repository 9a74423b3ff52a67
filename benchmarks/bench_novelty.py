"""Novelty by leaving types out: B cells, monocytes and NK cells in turn.

For each, a reference is trained without the type, another data set is mapped, and the scores of its cells of that type
are compared with those of the other labelled cells (AUROC), beside two others of the same run: the mean distance to
the 15 nearest training cells in 50 components (a truncated SVD of the genes that the data set has, not centred), and
1 - the largest probability.  False alarms are known cells with novelty_p < 0.05, with nothing left out.

    python benchmarks/bench_novelty.py --data ../shared/data --seeds 3 --json benchmarks/results/novelty.json

What novelty is was chosen with `--reference pbmc8k_raw_labelled --query pbmc4k_soupx`, as it is and with
`--another-chemistry`, which shows the query's cells as another chemistry might see them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from bench_ablation import as_another_chemistry
from sklearn.decomposition import TruncatedSVD

from unicoord_atlas.config import RunConfig
from unicoord_atlas.evaluation import separation
from unicoord_atlas.jobs import ingest, map_query, train
from unicoord_atlas.loaders.sources import open_source
from unicoord_atlas.loaders.store import CellStore, open_store
from unicoord_atlas.novelty import nearest_distances
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel

LABEL = "cell_type"
LEFT_OUT = {"nothing": (), "B": ("B",), "monocytes": ("CD14 Mono", "FCGR3A Mono"), "NK": ("NK",)}
MEAN_BAR, ALARM_BAR, ALARM_LEVEL = 0.90, 0.10, 0.05
WAYS = ("novelty", "pca_distance", "max_probability")


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    args = _arguments()
    table = pd.read_csv(args.data / "pbmc_labels.csv")
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        query = args.data / args.query / f"{args.query}.h5ad"
        truth = _truth(table, args.query, query)
        if args.another_chemistry:
            shifted = as_another_chemistry(anndata.read_h5ad(query), np.random.default_rng(100))
            query = folder / "query.h5ad"
            shifted.write_h5ad(query)
        for title, types in LEFT_OUT.items():
            atlas = _atlas(args, folder, table, title, types)
            for seed in range(args.seeds):
                started = time.perf_counter()
                scores = _scores(
                    folder, atlas, query, truth, types, f"{title}{seed}", [f"train.seed={seed}", *args.set]
                )
                runs.append({"left_out": title, "seed": seed, "seconds": time.perf_counter() - started, **scores})
                print(", ".join(f"{key} {_text(value)}" for key, value in runs[-1].items()), flush=True)
    return _report(args, runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--reference", nargs="+", default=["pbmc8k_raw_labelled", "pbmc4k_soupx"])
    parser.add_argument("--query", default="pbmc3k_raw_labelled")
    parser.add_argument("--another-chemistry", action="store_true", help="genes of the query seen with efficiencies")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="any setting of train: section.key=value")
    parser.add_argument("--quick", action="store_true", help="2,000 highly variable genes and 6 epochs")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    if args.quick:
        args.set += ["data.genes=highly_variable", "data.num_highly_variable=2000", "train.epochs=6"]
    return args


def _truth(table: pd.DataFrame, source: str, path: Path) -> np.ndarray:
    """Mapped labels of a data set's cells; empty where unlabelled."""
    rows = table.query("source == @source")
    column = anndata.read_h5ad(path, backed="r").obs[rows["column"].iloc[0]].astype(str)
    return column.map(dict(zip(rows["label"], rows[LABEL], strict=True))).fillna("").to_numpy(str)


def _atlas(args: argparse.Namespace, folder: Path, table: pd.DataFrame, title: str, types: tuple[str, ...]) -> Path:
    """The reference data sets without the cells of some types."""
    kept = folder / f"cells_{title}"
    kept.mkdir()
    for name in args.reference:
        path = args.data / name / f"{name}.h5ad"
        labels = _truth(table, name, path)
        part = anndata.read_h5ad(path)
        part.obs[LABEL] = pd.Categorical(labels).remove_categories([""]) if (labels == "").any() else labels
        part[~np.isin(labels, types)].write_h5ad(kept / f"{name}.h5ad")
    out = folder / f"atlas_{title}.zarr"
    with contextlib.redirect_stderr(io.StringIO()):
        ingest.run(ingest.IngestOptions([str(kept)], out, labels=[LABEL, "dataset"]))
    return out


def _scores(
    folder: Path, atlas: Path, query: Path, truth: np.ndarray, types: tuple[str, ...], name: str, settings: list[str]
) -> dict[str, float]:
    """AUROC of each way, or false alarms where nothing is left out."""
    run, mapped = folder / f"run_{name}", folder / f"mapped_{name}.h5ad"
    config = RunConfig.load(None, [f'latent.discrete=["{LABEL}","dataset"]', *settings])
    with contextlib.redirect_stderr(io.StringIO()):
        train.run(train.TrainOptions(atlas, run, config))
        map_query.run(map_query.MapQueryOptions(query, run / "model", mapped))
    obs = anndata.read_h5ad(mapped).obs
    known, strange = (truth != "") & ~np.isin(truth, types), np.isin(truth, types)
    alarms = {"false_alarms": float((obs["novelty_p"].to_numpy()[known] < ALARM_LEVEL).mean())}
    if not types:
        return alarms
    labelled = known | strange
    ways = {
        "novelty": obs["novelty"].to_numpy(),
        "pca_distance": _pca_distance(open_store(atlas), ReferenceModel.load(run / "model"), query),
        "max_probability": 1 - obs[f"{LABEL}_confidence"].to_numpy(),
    }
    return {way: separation(strange[labelled], scores[labelled]) for way, scores in ways.items()} | alarms


def _pca_distance(store: CellStore, reference: ReferenceModel, query: Path) -> np.ndarray:
    """Mean distance to the 15 nearest training cells in 50 components of the log-normalized values, not centred.

    Of the genes that the query has.
    """
    counts = store.read_ranges(np.array([[0, store.n_obs]]))
    shape = (store.n_obs, store.n_vars)
    cells = sp.csr_matrix((counts.data.astype(np.float32), counts.indices.astype(np.int32), counts.indptr), shape)
    cells.data = np.log1p(1e4 * cells.data / np.repeat(store.size_factors, np.diff(cells.indptr))).astype(np.float32)
    with open_source(query) as source:
        batches = QueryBatches(source, reference.schema, reference.normalization)
        cells = cells[:, batches.measured_g]
        components = TruncatedSVD(50, random_state=0).fit(cells)
        parts = []
        for batch in batches:
            scaled = batch.counts.to_scipy()
            sizes = np.repeat(batch.size_factors_n.numpy(), np.diff(scaled.indptr))
            scaled.data = np.log1p(1e4 * scaled.data / sizes).astype(np.float32)
            parts.append(components.transform(scaled[:, batches.measured_g]))
    labelled = store.obs([LABEL])[LABEL].notna().to_numpy()
    points = components.transform(cells)[labelled].astype(np.float32)
    return nearest_distances(points, np.concatenate(parts).astype(np.float32))


def _report(args: argparse.Namespace, runs: list[dict[str, object]]) -> int:
    table = pd.DataFrame(runs)
    left_out = table[table["left_out"] != "nothing"].groupby("left_out", sort=False)[list(WAYS)].mean()
    alarms = float(table.loc[table["left_out"] == "nothing", "false_alarms"].mean())
    print(left_out.round(4).to_string())
    if args.json:
        result = {
            "command": " ".join(["python", *sys.argv]),
            "machine": platform.machine(),
            "runs": runs,
            "means": left_out.to_dict(orient="index"),
            "false_alarms": alarms,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    mean = float(left_out["novelty"].mean())
    bars = [("mean_auroc", mean, ">=", MEAN_BAR, mean >= MEAN_BAR)]
    for title, row in left_out.iterrows():
        above = row["novelty"] > row["pca_distance"]
        bars.append((f"{title}_over_pca", row["novelty"], ">", round(row["pca_distance"], 4), above))
    bars.append(("false_alarms", alarms, "<=", ALARM_BAR, alarms <= ALARM_BAR))
    for name, value, sign, limit, met in bars:
        print(f"bar {name} {value:.4f} {sign} {limit} {'ok' if met else 'SHORT'}")
    return int(not all(met for *_, met in bars))


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
