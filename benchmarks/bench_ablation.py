"""What each line marked * buys: the default recipe against the same with one line set back to the paper's.

Tasks, none of which looks at pbmc3k:
    pbmc        train on 80 % of pbmc8k, as two sources of which one did not measure a fifth of the genes; scored on
                pbmc4k, on the other 20 % at 0.4 of their depth ("shallow"), and on the same cells as another chemistry
                might see them ("chemistry": log-normal gene effects, 15 % of the genes missing), and on the control
                cells of kang_muscat_subset ("kang": another laboratory, 1,267 genes)
    transfer    between laboratories and back on the genes they share: pbmc8k + pbmc4k to each condition of
                kang_muscat_subset (control, interferon), and the whole of kang_muscat_subset to both; five types
    rnamix      proportions of three cell lines: R2 over 5 folds, and trained on one platform
    worm        embryo time (R2) and cell type (accuracy) of held-out cells
    cell_lines  trained on CEL-seq2, scored on Drop-seq

    python benchmarks/bench_ablation.py --data ../shared/data --jobs 2 --json benchmarks/results/ablation.json

Accuracy and R2 are better when higher, nll (nats a cell, calibrated probabilities) and error (squared error a held-out
cell, summed over genes) when lower.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.metrics import r2_score

if TYPE_CHECKING:
    from unicoord_atlas.reference import ReferenceModel

PAPER_LINES = {
    "default": [],
    "data.mask_unmeasured": ["data.mask_unmeasured=false"],
    "latent.standardize": ["latent.standardize=false"],
    "latent.calibrate": ["latent.calibrate=false"],
    "latent.conditional": ["latent.conditional=false"],  # of tied labels, which no task here has: bench_hierarchy.py
    "loss.beta": ["loss.beta=1.0"],
    "loss.beta_warmup_steps": ["loss.beta_warmup_steps=0"],
    "loss.independence": ["loss.independence=0.0"],
    "augment.thinning": ["augment.thinning=0.0"],
    "augment.gene_dropout": ["augment.gene_dropout=0.0"],
    "augment.gene_panels": ["augment.gene_panels=0.0"],
    "model.encoder_min_cells": ["model.encoder_min_cells=0"],
    "model.center_input": ["model.center_input=false"],
    "model.output_bias": ["model.output_bias=default"],
    "model.relu_gradient": ["model.relu_gradient=y"],
    "loss.classification": ["loss.classification=100"],
    "train.warmup_steps": ["train.warmup_steps=0"],
    "train.average": ["train.average=false"],
    "all of them": ["recipe=paper"],
}
TASKS = ("pbmc", "transfer", "rnamix", "worm", "cell_lines")
SHALLOW = 0.4
GENE_EFFECT_SD = 0.7
KANG_TYPES = {
    "B cells": "B",
    "CD4 T cells": "CD4 T",
    "CD8 T cells": "CD8 T",
    "CD14+ Monocytes": "CD14 Mono",
    "FCGR3A+ Monocytes": "FCGR3A Mono",
}


def main() -> int:
    """Run every line on every task and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--lines", nargs="*", default=list(PAPER_LINES), help="lines to set back; all if not given")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--quick", action="store_true", help="the default and all lines together, on rnamix")
    parser.add_argument("--set", action="append", default=[], help="a setting for all runs: section.key=value")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    if args.quick:
        args.lines, args.tasks = ["default", "all of them"], ["rnamix"]
    os.environ["OMP_NUM_THREADS"] = "1"
    runs = [(t, name, seed) for t in args.tasks for name in args.lines for seed in range(args.seeds)]
    table: dict[str, dict[str, list[float]]] = {name: {} for name in args.lines}
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        waiting = {
            pool.submit(score, task, args.data, [*PAPER_LINES[name], f"train.seed={seed}", *args.set]): (task, name)
            for task, name, seed in runs
        }
        for done in as_completed(waiting):
            task, name = waiting[done]
            for metric, value in done.result().items():
                table[name].setdefault(f"{task} {metric}", []).append(value)
            print(f"{task:<11}{name:<26}{_row(done.result())}", flush=True)
    means = {name: {metric: float(np.mean(v)) for metric, v in row.items()} for name, row in table.items()}
    print(pd.DataFrame(means).T.round(4).to_string())
    if args.json:
        result = {"command": " ".join(["python", *sys.argv]), "seeds": args.seeds, "means": means}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def score(task: str, data: Path, settings: list[str]) -> dict[str, float]:
    """One run of one task; what a spawned process does."""
    with contextlib.redirect_stderr(io.StringIO()):
        return globals()[f"score_{task}"](data, settings)


def score_pbmc(data: Path, settings: list[str]) -> dict[str, float]:
    """Cell types across depth, chemistry and gene lists, and the error of the reconstruction."""
    cells, other = _pbmc(data, "pbmc8k_raw_labelled"), _pbmc(data, "pbmc4k_soupx")
    draw = np.random.default_rng(7)
    part = draw.random(cells.n_obs)
    missing = draw.random(cells.n_vars) < 0.2
    sources = [cells[part < 0.4], cells[(part >= 0.4) & (part < 0.8), ~missing]]
    reference = _reference(sources, settings)
    held_out = cells[part >= 0.8].copy()
    shallow = held_out.copy()
    shallow.X = _thinned(held_out.X, np.full(cells.n_vars, SHALLOW), draw)
    chemistry = as_another_chemistry(held_out, draw)
    scores = {}
    for title, query in (("4k", other), ("shallow", shallow), ("chemistry", chemistry), ("kang", _kang(data, "ctrl"))):
        accuracy, nll = _label_scores(reference, query, "cell_type")
        scores |= {f"{title} accuracy": accuracy, f"{title} nll": nll}
    return scores | {"error": _error(reference, held_out)}


def score_transfer(data: Path, settings: list[str]) -> dict[str, float]:
    """Cell types of another laboratory's cells, both ways, and the mean over the four queries."""
    kang = {name: _kang(data, name) for name in ("ctrl", "stim")}
    pbmc = {name: _pbmc(data, name) for name in ("pbmc8k_raw_labelled", "pbmc4k_soupx")}
    shared = kang["ctrl"].var_names
    for name, cells in pbmc.items():
        cut = cells[:, cells.var_names.isin(shared)]
        pbmc[name] = cut[np.asarray(cut.X.sum(axis=1)).ravel() > 0].copy()
    scores = {}
    for sources, queries in ((pbmc, kang), (kang, pbmc)):
        reference = _reference(list(sources.values()), settings)
        for name, query in queries.items():
            known = query[query.obs["cell_type"].isin(KANG_TYPES.values()).to_numpy()].copy()
            accuracy, nll = _label_scores(reference, known, "cell_type")
            scores |= {f"{name} accuracy": accuracy, f"{name} nll": nll}
    for metric in ("accuracy", "nll"):
        scores[metric] = float(np.mean([value for name, value in scores.items() if name.endswith(f" {metric}")]))
    return scores


def _reference(sources: list[anndata.AnnData], settings: list[str]) -> ReferenceModel:
    """A model of cell type and source, by the real jobs."""
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.jobs import ingest, train
    from unicoord_atlas.jobs.export_reference import model_of_run
    from unicoord_atlas.reference import ReferenceModel

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"source{number}.h5ad" for number in range(len(sources))]
        for cells, file in zip(sources, files, strict=True):
            cells.copy().write_h5ad(file)
        options = ingest.IngestOptions([str(file) for file in files], folder / "atlas.zarr", labels=["cell_type"])
        ingest.run(options)
        config = RunConfig.load(None, ['latent.discrete=["cell_type", "source"]', *settings])
        train.run(train.TrainOptions(folder / "atlas.zarr", folder / "run", config))
        return ReferenceModel.load(model_of_run(folder / "run"))


def score_rnamix(data: Path, settings: list[str]) -> dict[str, float]:
    """Three proportions over 5 folds and over platforms."""
    from unicoord_atlas.jobs.fit import fit

    cells = anndata.read_h5ad(data / "sc_mixology_RNAmix_continuous" / "sc_mixology_RNAmix_continuous.h5ad")
    names = ["H2228_prop", "H1975_prop", "HCC827_prop"]
    scores = {}
    for title, groups in (
        ("5-fold", np.random.default_rng(0).integers(0, 5, cells.n_obs)),
        ("platform", cells.obs["platform"].to_numpy(str)),
    ):
        truth, found = [], []
        for group in np.unique(groups):
            reference = fit(cells[groups != group].copy(), continuous=names, settings=settings)
            truth.append(cells.obs.loc[groups == group, names].to_numpy(float))
            found.append(reference.map(cells[groups == group].copy()).obsm["X_unicoord"][:, : len(names)])
        scores[f"{title} R2"] = r2_score(np.concatenate(truth), np.concatenate(found))
    return scores


def score_worm(data: Path, settings: list[str]) -> dict[str, float]:
    """Embryo time and cell type of held-out cells."""
    from unicoord_atlas.jobs.fit import fit

    cells = anndata.read_h5ad(data / "worm_embryo_packer" / "worm_embryo_packer.h5ad")
    cells.obs.columns = [name.replace(".", "_") for name in cells.obs]
    held_out = np.random.default_rng(0).random(cells.n_obs) < 0.2
    reference = fit(cells[~held_out].copy(), discrete=["cell_type"], continuous=["embryo_time"], settings=settings)
    query = cells[held_out].copy()
    accuracy, nll = _label_scores(reference, query, "cell_type")
    time = reference.map(query).obsm["X_unicoord"][:, 0]
    return {"time R2": r2_score(query.obs["embryo_time"], time), "accuracy": accuracy, "nll": nll}


def score_cell_lines(data: Path, settings: list[str]) -> dict[str, float]:
    """Five cell lines on another platform."""
    from unicoord_atlas.jobs.fit import fit

    cells = anndata.read_h5ad(data / "sc_mixology_cell_lines" / "sc_mixology_cell_lines.h5ad")
    cells = cells[cells.obs["demuxlet_cls"] == "SNG"].copy()
    old = (cells.obs["platform"] == "CEL-seq2").to_numpy()
    reference = fit(cells[old].copy(), discrete=["cell_type"], settings=settings)
    accuracy, nll = _label_scores(reference, cells[~old].copy(), "cell_type")
    return {"accuracy": accuracy, "nll": nll}


def _pbmc(data: Path, name: str) -> anndata.AnnData:
    table = pd.read_csv(data / "pbmc_labels.csv").query("source == @name")
    cells = anndata.read_h5ad(data / name / f"{name}.h5ad")
    labels = cells.obs[table["column"].iloc[0]].astype(str)
    labels = labels.map(dict(zip(table["label"], table["cell_type"], strict=True)))
    obs = pd.DataFrame({"cell_type": labels.to_numpy()}, index=cells.obs_names)
    return anndata.AnnData(sp.csr_matrix(cells.X, dtype=np.float32), obs=obs, var=cells.var)


def _kang(data: Path, condition: str) -> anndata.AnnData:
    """Cells of another laboratory under a condition, their types named as in pbmc8k."""
    cells = anndata.read_h5ad(data / "kang_muscat_subset" / "kang_muscat_subset.h5ad")
    cells = cells[cells.obs["group_id"] == condition].copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).map(KANG_TYPES).to_numpy()
    return cells


def as_another_chemistry(cells: anndata.AnnData, draw: np.random.Generator) -> anndata.AnnData:
    """The same cells, shallower, each gene seen with an efficiency of its own and 15 % of them not at all."""
    effects = np.exp(draw.normal(0, GENE_EFFECT_SD, cells.n_vars))
    other = cells.copy()
    other.X = _thinned(cells.X, 0.6 * np.minimum(effects / np.quantile(effects, 0.95), 1), draw)
    return other[:, draw.random(cells.n_vars) >= 0.15].copy()


def _thinned(counts: sp.csr_matrix, keep_g: np.ndarray, draw: np.random.Generator) -> sp.csr_matrix:
    """Counts of which a share is kept, gene by gene: a copy, for indices that are shared would be damaged."""
    thinned = sp.csr_matrix(counts, copy=True)
    thinned.data = draw.binomial(thinned.data.astype(np.int64), keep_g[thinned.indices]).astype(np.float32)
    thinned.eliminate_zeros()
    return thinned


def _label_scores(reference, query: anndata.AnnData, label: str) -> tuple[float, float]:
    """Accuracy and cross-entropy of the labelled cells."""
    mapped = reference.map(query, probabilities=True, min_coverage=0)  # kang's file has 1,267 genes
    known = query.obs[label].notna().to_numpy()
    truth = query.obs[label].to_numpy()[known].astype(str)
    names = np.array(next(each for each in reference.config.labels if each.name == label).categories)
    probabilities = np.asarray(mapped.obsm[f"X_unicoord_{label}"])[known]
    right = probabilities[truth[:, None] == names[None]]
    return float((names[probabilities.argmax(axis=1)] == truth).mean()), float(-np.log(right.clip(1e-6)).mean())


def _error(reference, query: anndata.AnnData) -> float:
    """Squared error a cell of the deterministic reconstruction, summed over genes."""
    import torch

    from unicoord_atlas.memory import AnnDataCells
    from unicoord_atlas.query import QueryBatches

    with torch.no_grad():
        batches = QueryBatches(AnnDataCells(query), reference.schema, reference.normalization)
        return float(np.concatenate([reference.model(batch).errors_n.numpy() for batch in batches]).mean())


def _row(scores: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


if __name__ == "__main__":
    sys.exit(main())
