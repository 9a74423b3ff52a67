"""What the diffusion loss buys: diffusion dimensions against the true time of worm embryos and simulated gradients.

The same model is trained with the loss and with weight 0, without any label, several seeds.  Of its diffusion
dimensions the one that follows the truth best on TRAINING cells is scored by |Spearman's rho| on held-out cells; so are
PC1 and, for what a method of its own reaches, the diffusion map of scanpy on all cells together (nothing held out).
Trustworthiness and continuity (k = 15) compare neighbours in the dimensions with those in 30 principal components.

    python benchmarks/bench_diffusion.py --data ../shared/data --json benchmarks/results/diffusion.json \
        --figure benchmarks/results/diffusion.png
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scanpy
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

K, NUM_PCS, NUM_MAPS = 15, 30, 3
WEIGHTS = {"with": 1.0, "without": 0.0}
QUICK = ["train.epochs=10"]


@dataclass(frozen=True)
class Task:
    """Cells, which of them are held out, and the obs columns that say the truth."""

    name: str
    cells: anndata.AnnData
    held_out: np.ndarray
    truths: list[str]


def main() -> int:
    """Run, print, and exit 1 if the loss does not do what the issue of this benchmark asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data sets")
    parser.add_argument("--tasks", nargs="*", choices=("worm", "simulated"), default=["worm", "simulated"])
    parser.add_argument("--dims", type=int, nargs="*", default=[1, 2, 3], help="numbers of diffusion dimensions")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--set", action="append", default=[], help="any setting of train: section.key=value")
    parser.add_argument("--quick", action="store_true", help="worm only, one dimension, 2 seeds, 10 epochs")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--figure", type=Path, help="where to write the figure")
    args = parser.parse_args()
    if args.quick:
        args.tasks, args.dims, args.seeds, args.set = ["worm"], [1], 2, [*QUICK, *args.set]
    os.environ["OMP_NUM_THREADS"] = "1"
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv])}
    figures, missed = [], 0
    for name in args.tasks:
        task = _worm(args.data) if name == "worm" else _simulated()
        rows, shown = _runs(task, args.dims, args.seeds, args.set, args.jobs)
        baselines = _baselines(task)
        result[name] = {"runs": rows, "baselines": baselines}
        table = pd.DataFrame(rows).drop(columns="seed").groupby(["dims", "loss"]).agg(["mean", "std"])
        print(f"{name}\n{table.round(3).to_string()}\n{pd.DataFrame(baselines).T.round(3).to_string()}", flush=True)
        figures.append((task, shown))
        if name == "worm":
            missed = _judge(pd.DataFrame(rows), task.truths[0], baselines)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.figure:
        _draw(figures, args.figure)
    return missed


def _worm(data: Path) -> Task:
    cells = anndata.read_h5ad(data / "worm_embryo_packer" / "worm_embryo_packer.h5ad")
    cells.obs = pd.DataFrame({"time": cells.obs["embryo.time"].to_numpy(float)}, index=cells.obs_names)
    return Task("worm", cells, np.random.default_rng(0).random(cells.n_obs) < 0.2, ["time"])


def _simulated() -> Task:
    """One organ of a simulated atlas: its cells lie along two gradients, whatever their type."""
    from unicoord_atlas.jobs import simulate

    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        simulate.run(simulate.SimulateOptions(cells=2500, genes="4000", out=Path(name) / "atlas", seed=5, organs=1))
        cells = anndata.read_h5ad(next((Path(name) / "atlas").glob("*.h5ad")))
    cells.obs = cells.obs[["gradient_1", "gradient_2"]].astype(float)
    return Task("simulated", cells, np.random.default_rng(0).random(cells.n_obs) < 0.2, list(cells.obs))


def _runs(
    task: Task, dims: list[int], seeds: int, settings: list[str], jobs: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """One row of scores a run, and the best dimension of all cells of the first runs, for the figure."""
    asked = [(number, loss, seed) for number in dims for loss in WEIGHTS for seed in range(seeds)]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting = [
            pool.submit(latents, task, number, [f"loss.diffusion={WEIGHTS[loss]}", f"train.seed={seed}", *settings])
            for number, loss, seed in asked
        ]
        rows, shown = [], {}
        for (number, loss, seed), done in zip(asked, waiting, strict=True):
            latent_nd = done.result()
            shown.setdefault(loss, latent_nd[:, _best(task, latent_nd, task.truths[0])])
            rows.append({"dims": number, "loss": loss, "seed": seed} | _scores(task, latent_nd))
            print(f"{task.name} {rows[-1]}", flush=True)
    return rows, shown


def latents(task: Task, dims: int, settings: list[str]) -> np.ndarray:
    """(n, dims) diffusion means of all cells, of a model trained on those not held out."""
    from unicoord_atlas.jobs.fit import fit

    with contextlib.redirect_stderr(io.StringIO()):
        reference = fit(task.cells[~task.held_out].copy(), settings=[f"latent.diffusion={dims}", *settings])
        return np.asarray(reference.map(task.cells.copy()).obsm["X_unicoord"])[:, :dims]


def _scores(task: Task, latent_nd: np.ndarray) -> dict[str, float]:
    scores = {name: _held_out_rho(task, latent_nd, name) for name in task.truths}
    pcs = _pcs(task)[task.held_out]
    held_out = latent_nd[task.held_out]
    return scores | {
        "trustworthiness": float(trustworthiness(pcs, held_out, n_neighbors=K)),
        "continuity": float(trustworthiness(held_out, pcs, n_neighbors=K)),
    }


def _best(task: Task, latent_nd: np.ndarray, truth: str) -> int:
    train = ~task.held_out
    return int(np.argmax([abs(spearmanr(column[train], task.cells.obs[truth][train])[0]) for column in latent_nd.T]))


def _held_out_rho(task: Task, latent_nd: np.ndarray, truth: str) -> float:
    column = latent_nd[:, _best(task, latent_nd, truth)]
    return float(abs(spearmanr(column[task.held_out], task.cells.obs[truth][task.held_out])[0]))


def _pcs(task: Task) -> np.ndarray:
    """(n, 30) components fitted on training cells, of 2,000 highly variable genes chosen there, too."""
    cells = anndata.AnnData(task.cells.X.copy(), obs=task.cells.obs[[]], var=task.cells.var[[]])
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    train = cells[~task.held_out].copy()
    scanpy.pp.highly_variable_genes(train, n_top_genes=2000)
    chosen = cells[:, train.var["highly_variable"].to_numpy()].X.toarray()
    return PCA(NUM_PCS, random_state=0).fit(chosen[~task.held_out]).transform(chosen)


def _baselines(task: Task) -> dict[str, dict[str, float]]:
    pcs = _pcs(task)
    whole = anndata.AnnData(pcs)
    scanpy.pp.neighbors(whole, n_neighbors=K, use_rep="X")
    scanpy.tl.diffmap(whole)
    maps = whole.obsm["X_diffmap"][:, 1 : 1 + NUM_MAPS]
    return {"PC1": _scores(task, pcs[:, :1]), "diffusion map (3, all cells)": _scores(task, maps)}


def _judge(rows: pd.DataFrame, truth: str, baselines: dict[str, dict[str, float]]) -> int:
    """With the loss, at least PC1, and above weight 0 by more than two standard errors."""
    missed = 0
    for dims, part in rows.groupby("dims"):
        on, off = (part.loc[part["loss"] == loss, truth] for loss in ("with", "without"))
        error = float(np.sqrt(on.var(ddof=1) / len(on) + off.var(ddof=1) / len(off)))
        gain, first = float(on.mean() - off.mean()), baselines["PC1"][truth]
        ok = on.mean() >= first and gain > 2 * error
        missed += not ok
        print(
            f"bar dims {dims}: |rho| {on.mean():.3f} >= PC1 {first:.3f}, gain over weight 0 {gain:+.3f} > "
            f"2 x {error:.3f} {'ok' if ok else 'SHORT'}"
        )
    return int(missed > 0)


def _draw(figures: list[tuple[Task, dict[str, np.ndarray]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(figures), len(WEIGHTS), figsize=(8, 3.4 * len(figures)), squeeze=False)
    for row, (task, shown) in zip(axes, figures, strict=True):
        for axis, (loss, values) in zip(row, shown.items(), strict=True):
            axis.scatter(task.cells.obs[task.truths[0]], values, s=3, c=np.where(task.held_out, "tab:red", "0.7"))
            axis.set_title(f"{task.name}, {loss} the diffusion loss", fontsize=9)
            axis.set_xlabel(task.truths[0])
            axis.set_ylabel("diffusion dimension")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
