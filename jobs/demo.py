"""demo: the main job on real cells that need no download.

scanpy ships `pbmc68k_reduced`: 700 human blood cells x 765 genes, ten types (Zheng et al. 2017).  Its raw matrix holds
log1p of counts that were scaled per cell; the counts are recovered from it, and the recovery is checked.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from rich.table import Table

from unicoord_atlas.columns import label_codes, label_column
from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.hdf5_file import write_h5ad
from unicoord_atlas.training.finish import macro_f1

from . import export_latents, export_reference, ingest, map_query, train
from .console_text import plain_console

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LABEL = "cell_type"
HELD_OUT = 0.2
TOLERANCE = 0.05


def run(out: Path) -> dict[str, Any]:
    """Files, atlas, training, coordinates, reference, held-out cells annotated and scored, two figures."""
    if out.exists() and any(out.iterdir()) and not (out / "reference_cells.h5ad").exists():
        raise UsageError(f"--out {out} exists and is no earlier demo; choose another folder")
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    _write_cells(out)
    _step("ingest reference_cells.h5ad --label cell_type --out atlas.zarr")
    _done_or(
        lambda: ingest.run(
            ingest.IngestOptions([str(out / "reference_cells.h5ad")], out / "atlas.zarr", labels=[LABEL])
        )
    )
    _step("train atlas.zarr --discrete cell_type --out run")
    config = RunConfig.load(None, [f'latent.discrete=["{LABEL}"]'])
    train.run(train.TrainOptions(out / "atlas.zarr", out / "run", config, report=True))
    _step("export-latents atlas.zarr --run run --out latents.zarr")
    _done_or(
        lambda: export_latents.run(
            export_latents.ExportLatentsOptions(out / "atlas.zarr", out / "run", out / "latents.zarr")
        )
    )
    _step("export-reference --run run --out reference")
    _done_or(lambda: export_reference.run(export_reference.ExportReferenceOptions(out / "run", out / "reference")))
    _step("map-query held_out_cells.h5ad --reference reference --out mapped.h5ad")
    (out / "mapped.h5ad").unlink(missing_ok=True)
    map_query.run(map_query.MapQueryOptions(out / "held_out_cells.h5ad", out / "reference", out / "mapped.h5ad"))
    scores = _score(anndata.read_h5ad(out / "mapped.h5ad"))
    from .figures import draw_demo

    figures = draw_demo(out)
    _say(
        f"Done in {time.perf_counter() - started:.0f} s.  "
        f"Look at {', '.join(str(path) for path in figures)}; all files are in {out}/"
    )
    return {"out": str(out), **scores}


def recover_counts(log_values: sp.csr_matrix) -> tuple[sp.csr_matrix, float]:
    """Integer counts of cells whose values are log1p(count x unit of the cell).

    Returns
    -------
    The counts, and the largest distance of expm1(value) / unit from an integer over all entries.

    Notes
    -----
    A cell's unit is its smallest value over a count of 1, 2, ...: the first that leaves no fractions, refined by least
    squares over all entries, since a large count magnifies the rounding of the smallest value.
    """
    scaled = log_values.copy()
    scaled.data = np.expm1(scaled.data.astype(np.float64))
    worst = 0.0
    for start, stop in zip(scaled.indptr[:-1], scaled.indptr[1:], strict=True):
        tried = []
        for smallest in range(1, 10):
            counts, distance = _over_unit(scaled.data[start:stop], smallest)
            tried.append((distance, counts))
            if distance < TOLERANCE:
                break
        distance, scaled.data[start:stop] = min(tried, key=lambda each: each[0])
        worst = max(worst, distance)
    return scaled, worst


def _over_unit(values: NDArray[np.float64], smallest: int) -> tuple[NDArray[np.float64], float]:
    """Integer counts if the smallest value stands for this count, and the largest distance from them."""
    unit = values.min() / smallest
    for _ in range(3):
        counts = np.maximum((values / unit).round(), 1)
        unit = (values @ counts) / (counts @ counts)
    return counts, float(np.abs(values / unit - counts).max())


def _write_cells(out: Path) -> None:
    """reference_cells.h5ad and held_out_cells.h5ad: 80 % and 20 % of the cells."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packaged file has an old encoding, which anndata points out
        cells = scanpy.datasets.pbmc68k_reduced()
    counts, worst = recover_counts(sp.csr_matrix(cells.raw.X))
    if worst >= TOLERANCE:
        raise DataError(
            f"demo: recovered counts are up to {worst:.3f} away from integers; is this scanpy's pbmc68k_reduced?"
        )
    _say(
        "700 human blood cells from scanpy (Zheng et al. 2017); "
        f"counts recovered within {worst:.3f} of integers in all cells"
    )
    obs = pd.DataFrame({LABEL: cells.obs["bulk_labels"].astype(str).astype("category")}, index=cells.obs_names)
    adata = anndata.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=cells.raw.var_names))
    held_out = np.zeros(adata.n_obs, np.bool_)
    held_out[np.random.default_rng(0).permutation(adata.n_obs)[: round(HELD_OUT * adata.n_obs)]] = True
    for name, chosen in (("reference_cells", ~held_out), ("held_out_cells", held_out)):
        path = out / f"{name}.h5ad"
        if not path.exists():
            write_h5ad(adata[chosen].copy(), path)


def _score(mapped: anndata.AnnData) -> dict[str, float]:
    """Print and return accuracy and macro-F1 of the held-out cells."""
    column = label_column(mapped.obs, LABEL)
    truth = label_codes(mapped.obs, column)
    predicted = label_codes(mapped.obs.assign(**{LABEL: mapped.obs[f"{LABEL}_predicted"]}), column)
    table = Table("class", "held-out cells", "found", title="Held-out cells, which the model has never seen")
    for code, name in enumerate(column.categories):
        inside = truth == code
        table.add_row(name, str(inside.sum()), f"{(predicted[inside] == code).mean():.0%}")
    scores = {"accuracy": float((truth == predicted).mean()), "macro_f1": macro_f1(truth, predicted)}
    table.add_row("all", str(len(truth)), f"{scores['accuracy']:.0%}", style="bold")
    plain_console().print(table)
    return scores


def _done_or(job: Any) -> None:
    """Run a job, or go on if an earlier demo has done it."""
    try:
        job()
    except AlreadyDone as done:
        _say(str(done))


def _step(command: str) -> None:
    _say(f"\n$ unicoord-atlas {command}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
