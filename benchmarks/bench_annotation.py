"""Annotation of a data set of another chemistry and gene list: pbmc8k + pbmc4k -> pbmc3k.

Runs the real commands' jobs (ingest, train, export-reference, map-query) for each seed and compares the held-out data
set's labels with the predictions: accuracy and macro-F1 over eight types with 95 % bootstrap intervals, the paired
difference to a logistic regression on the same cells in the same run, and how honest the confidences of both are: ECE
over 15 bins of equal mass, negative log-likelihood, and accuracy among the 90 % most confident cells.  Both see the
genes that the held-out data set has, and the probabilities of both are calibrated on a tenth of the reference's cells.

    python benchmarks/bench_annotation.py --data ../shared/data --seeds 3 --json benchmarks/results/annotation.json
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
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from unicoord_atlas.config import RunConfig
from unicoord_atlas.encode import softmax
from unicoord_atlas.evaluation import (
    calibration_bins,
    calibration_error,
    negative_log_likelihood,
    selective_accuracy,
)
from unicoord_atlas.jobs import export_reference, ingest, map_query, train
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training.calibration import fit_temperature
from unicoord_atlas.training.finish import macro_f1

LABEL = "cell_type"
BARS = {"accuracy": 0.955, "macro_f1": 0.93, "most_confident_90": 0.98}
ECE_BAR = 0.02
CALIBRATION_SHARE = 0.1
QUICK = ["data.genes=highly_variable", "data.num_highly_variable=2000", "train.epochs=6"]


def main() -> int:
    """Run, print, and exit 1 if a bar is missed."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        atlas = _ingest(args.data, folder)
        query = args.data / args.query / f"{args.query}.h5ad"
        truth = _truth(args.data, args.query)
        runs, last = [], None
        for seed in range(args.seeds):
            started = time.perf_counter()
            last, probabilities = _annotate(folder, atlas, query, seed, args.set)
            predicted = probabilities.idxmax(axis=1).to_numpy(str)
            scores = _scores(truth, predicted) | _honesty(truth, probabilities)
            scores |= {"seed": seed, "seconds": round(time.perf_counter() - started, 1)}
            runs.append(scores | {"predicted": predicted})
            print(f"seed {seed}: {_line(scores)}", flush=True)
        base_probabilities = _logistic_regression(atlas, last, query)
    baseline = base_probabilities.idxmax(axis=1).to_numpy(str)
    base_scores = _scores(truth, baseline) | _honesty(truth, base_probabilities)
    print(f"logistic regression: {_line(base_scores)}")
    differences = [_paired(truth, run.pop("predicted"), baseline) for run in runs]
    for seed, (low, middle, high) in enumerate(differences):
        print(f"seed {seed}: accuracy minus logistic regression's: {middle:+.4f} [{low:+.4f}, {high:+.4f}]")
    means = {key: float(np.mean([run[key] for run in runs])) for key in (*BARS, "ece", "nll")}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {platform.processor() or 'unknown'}",
        "runs": runs,
        "mean": means,
        "logistic_regression": base_scores,
        "paired_difference": differences,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    for key, limit in BARS.items():
        print(f"bar {key} {means[key]:.4f} >= {limit} {'ok' if means[key] >= limit else 'SHORT'}")
    upper = {"ece": ECE_BAR, "nll": round(float(base_scores["nll"]), 4)}
    for key, limit in upper.items():
        print(f"bar {key} {means[key]:.4f} <= {limit} {'ok' if means[key] <= limit else 'SHORT'}")
    missed = [key for key, limit in BARS.items() if means[key] < limit]
    return int(bool(missed) or any(means[key] > limit for key, limit in upper.items()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--query", default="pbmc3k_raw_labelled", help="data set to annotate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="any setting of train: section.key=value")
    parser.add_argument("--quick", action="store_true", help="2,000 highly variable genes, 6 epochs, one seed")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.set = 1, [*QUICK, *args.set]
    return args


def _ingest(data: Path, folder: Path) -> Path:
    sources = [str(data / name / f"{name}.h5ad") for name in ("pbmc8k_raw_labelled", "pbmc4k_soupx")]
    atlas = folder / "atlas.zarr"
    options = ingest.IngestOptions(sources, atlas, labels=[LABEL, "dataset"], label_map=data / "pbmc_labels.csv")
    with contextlib.redirect_stderr(io.StringIO()):
        ingest.run(options)
    return atlas


def _truth(data: Path, name: str) -> np.ndarray:
    """Mapped labels of the query's cells; empty where unlabelled."""
    table = pd.read_csv(data / "pbmc_labels.csv").query("source == @name")
    obs = anndata.read_h5ad(data / name / f"{name}.h5ad", backed="r").obs
    column = obs[table["column"].iloc[0]].astype(str)
    return column.map(dict(zip(table["label"], table[LABEL], strict=True))).fillna("").to_numpy(str)


def _annotate(folder: Path, atlas: Path, query: Path, seed: int, settings: list[str]) -> tuple[Path, pd.DataFrame]:
    config = RunConfig.load(None, [f'latent.discrete=["{LABEL}", "dataset"]', f"train.seed={seed}", *settings])
    run, reference, mapped = (folder / f"{kind}{seed}" for kind in ("run", "reference", "mapped.h5ad"))
    mapped = mapped.with_name(f"mapped{seed}.h5ad")
    with contextlib.redirect_stderr(io.StringIO()):
        train.run(train.TrainOptions(atlas, run, config))
        export_reference.run(export_reference.ExportReferenceOptions(run, reference))
        map_query.run(map_query.MapQueryOptions(query, reference, mapped, probabilities=True))
    found = anndata.read_h5ad(mapped)
    return reference, pd.DataFrame(
        found.obsm[f"X_unicoord_{LABEL}"], columns=list(found.uns["unicoord"]["categories"][LABEL])
    )


def _logistic_regression(atlas: Path, reference: Path, query: Path) -> pd.DataFrame:
    """Probabilities by scikit-learn's, with its default penalty, on the log-normalized values that the model sees.

    Of the genes that the query has.  Nine tenths of the reference's cells are learned from; on the others its logits
    are given a temperature, as ours are.
    """
    from unicoord_atlas.loaders.sources import open_source

    store, model = open_store(atlas), ReferenceModel.load(reference)
    labels = store.obs([LABEL])[LABEL]
    counts = store.read_ranges(np.array([[0, store.n_obs]]))
    shape = (store.n_obs, store.n_vars)
    x = csr_matrix((counts.data.astype(np.float64), counts.indices.astype(np.int32), counts.indptr), shape)
    x.data = np.log1p(1e4 * x.data / np.repeat(store.size_factors, np.diff(x.indptr)))
    own = model.own_positions
    with open_source(query) as source:
        batches = QueryBatches(source, model.schema, model.normalization)
        keep = batches.measured_g[own]
        dense = (model.model.normalized(batch).to_dense().numpy()[:, keep] for batch in batches)
        of_query = vstack([csr_matrix(part) for part in dense], format="csr")
    x = x[:, own[keep]]
    calibrating = np.random.default_rng(0).random(store.n_obs) < CALIBRATION_SHARE
    learned, held_out = (np.flatnonzero(labels.notna() & part) for part in (~calibrating, calibrating))
    classifier = LogisticRegression(max_iter=300).fit(x[learned], labels.iloc[learned].to_numpy(str))
    codes = pd.Categorical(labels.iloc[held_out].to_numpy(str), classifier.classes_).codes
    temperature = fit_temperature(classifier.decision_function(x[held_out]), codes)
    probabilities = softmax(classifier.decision_function(of_query) / temperature)
    return pd.DataFrame(probabilities, columns=classifier.classes_)


def _honesty(truth: np.ndarray, probabilities: pd.DataFrame) -> dict[str, float]:
    """How honest the confidences of the labelled cells are."""
    known = truth != ""
    values, classes = probabilities.to_numpy()[known], list(probabilities.columns)
    right = np.array(classes)[values.argmax(axis=1)] == truth[known]
    confidence = values.max(axis=1)
    return {
        "ece": calibration_error(calibration_bins(right, confidence)),
        "nll": negative_log_likelihood(values, pd.Categorical(truth[known], classes).codes),
        "most_confident_90": selective_accuracy(right, confidence, 0.9),
    }


def _scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, object]:
    """Accuracy and macro-F1 of the labelled cells with bootstrap intervals."""
    known = truth != ""
    codes = pd.Categorical(np.concatenate([truth[known], predicted[known]])).codes
    true, guess = codes[: known.sum()], codes[known.sum() :]
    draws = np.random.default_rng(0).integers(0, len(true), (1000, len(true)))
    boot = np.array([[(true[d] == guess[d]).mean(), macro_f1(true[d], guess[d])] for d in draws])
    low, high = np.quantile(boot, [0.025, 0.975], axis=0)
    return {
        "accuracy": float((true == guess).mean()),
        "macro_f1": macro_f1(true, guess),
        "accuracy_95": [float(low[0]), float(high[0])],
        "macro_f1_95": [float(low[1]), float(high[1])],
    }


def _paired(truth: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Bootstrap interval of the difference in accuracy on the same cells."""
    known = truth != ""
    difference = (ours[known] == truth[known]).astype(float) - (theirs[known] == truth[known])
    draws = np.random.default_rng(0).integers(0, len(difference), (2000, len(difference)))
    low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(difference.mean()), float(high)


def _line(scores: dict[str, object]) -> str:
    accuracy, f1 = scores["accuracy_95"], scores["macro_f1_95"]
    return (
        f"accuracy {scores['accuracy']:.4f} [{accuracy[0]:.4f}, {accuracy[1]:.4f}], "
        f"macro-F1 {scores['macro_f1']:.4f} [{f1[0]:.4f}, {f1[1]:.4f}], ECE {scores['ece']:.4f}, "
        f"NLL {scores['nll']:.4f}, most confident 90 % {scores['most_confident_90']:.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
