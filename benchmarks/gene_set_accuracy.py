"""What a model reads of gene sets' activities off new cells, beside ridge regression: a part of bench_gene_sets.

Held-out cells are taken out before anything else: selection, training and components see the others only.  Ridge
regression is fitted on the genes that the new cells have, for each file of them.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from held_out_files import split_file
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score

from unicoord_atlas.config import RunConfig
from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.gene_sets.aucell import RankWeights
from unicoord_atlas.gene_sets.gmt import present_sets, read_gmt
from unicoord_atlas.gene_sets.score import present_sums
from unicoord_atlas.jobs import export_reference, ingest, map_query, train
from unicoord_atlas.jobs.select_gene_sets import SelectGeneSetsOptions
from unicoord_atlas.jobs.select_gene_sets import run as select
from unicoord_atlas.loaders.score_pass import CellScorer, scores_of_rows
from unicoord_atlas.loaders.sources import open_source
from unicoord_atlas.loaders.store import CellStore, open_store
from unicoord_atlas.loaders.zarr_layout import GENE_SETS
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COMPONENTS = 50


def accuracy(
    data: Path,
    folder: Path,
    sources: Sequence[str],
    query: str | None,
    gmt: Path,
    settings: list[str],
    selection: dict[str, int],
) -> dict[str, Any]:
    """Mean over the sets of R2 on held-out cells and, unless there is no query, of Spearman's r on the query."""
    work = folder / "supervised"
    work.mkdir()
    files = [split_file(data, name, work, number) for number, name in enumerate(sources)]
    atlas = _ingest([train_file for train_file, _ in files], work / "atlas.zarr", data)
    with contextlib.redirect_stderr(io.StringIO()):
        select(SelectGeneSetsOptions(atlas, gmt, "cell_type", **selection))
        fixed = ['latent.discrete=["cell_type", "dataset"]', f'latent.continuous=["obsm:{GENE_SETS}"]']
        train.run(train.TrainOptions(atlas, work / "run", RunConfig.load(None, [*fixed, *settings])))
        export_reference.run(export_reference.ExportReferenceOptions(work / "run", work / "reference"))
    reference = ReferenceModel.load(work / "reference")
    store = open_store(atlas)
    chosen = work / "atlas.gene-sets" / "chosen.gmt"
    ridge = _Ridge(_log_normalized(reference, atlas)[0], store.obsm(GENE_SETS))
    parts = [_truth_and_guesses(path, work, reference, ridge, chosen, store) for _, path in files]
    truth, ours, theirs = (np.concatenate([part[i] for part in parts]) for i in range(3))
    found: dict[str, Any] = {
        "sets": list(reference.config.tables[GENE_SETS]),
        "r2": float(r2_score(truth, ours)),
        "r2_ridge": float(r2_score(truth, theirs)),
        "r2_each": r2_score(truth, ours, multioutput="raw_values").tolist(),
    }
    if query:
        truth, ours, theirs = _truth_and_guesses(data / query / f"{query}.h5ad", work, reference, ridge, chosen, None)
        for name, guess in (("spearman", ours), ("spearman_ridge", theirs)):
            found[name] = float(np.mean([spearmanr(a, b).statistic for a, b in zip(truth.T, guess.T, strict=True)]))
    return found


@dataclass(frozen=True)
class _Ridge:
    """Ridge regression of all sets on 50 principal components of the training cells."""

    known_ng: sp.csr_matrix
    scores: pd.DataFrame

    def __call__(self, new_mg: sp.csr_matrix, measured_g: np.ndarray) -> np.ndarray:
        """Scores of new cells, by the genes that they have."""
        known, new = self.known_ng[:, measured_g], new_mg[:, measured_g]
        components = PCA(COMPONENTS, svd_solver="arpack", random_state=0).fit(known)
        ridge = RidgeCV(np.logspace(-3, 4, 15)).fit(components.transform(known), self.scores)
        guess: np.ndarray = ridge.predict(components.transform(new))
        return guess


def _ingest(files: Sequence[Path], out: Path, data: Path | None) -> Path:
    options = ingest.IngestOptions(
        [str(file) for file in files],
        out,
        labels=["cell_type", "dataset"] if data else [],
        label_map=data / "pbmc_labels.csv" if data else None,
    )
    with contextlib.redirect_stderr(io.StringIO()):
        ingest.run(options)
    return out


def _truth_and_guesses(
    file: Path, work: Path, reference: ReferenceModel, ridge: _Ridge, chosen: Path, atlas: CellStore | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUCell of new cells by their own counts, what mapping makes of them, and what ridge does."""
    titles = list(reference.config.tables[GENE_SETS])
    truth = _own_scores(file, work, chosen) if atlas is None else _scores_as_in(atlas, file, reference, chosen)
    mapped = work / f"{file.parent.name}-{file.stem}-mapped.h5ad"
    with contextlib.redirect_stderr(io.StringIO()):
        map_query.run(map_query.MapQueryOptions(file, work / "reference", mapped))
    ours = anndata.read_h5ad(mapped).obsm[GENE_SETS]
    return truth[titles].to_numpy(), ours[titles].to_numpy(), ridge(*_log_normalized(reference, file))


def _scores_as_in(atlas: CellStore, file: Path, reference: ReferenceModel, chosen: Path) -> pd.DataFrame:
    """Scores of cells that come from a source of the atlas: among the genes that it ranks."""
    ranked = np.asarray(atlas.schema.measured_sg().all(axis=0))
    method = RankWeights(ranked)
    sets = present_sets(read_gmt(chosen), atlas.schema, ranked, 1, atlas.n_vars)
    parts = []
    with open_source(file) as source:
        for batch in QueryBatches(source, reference.schema, reference.normalization):
            counts = batch.counts.to_scipy()
            block = CsrBlock(counts.indptr.astype(np.int64), counts.indices, counts.data)
            parts.append(present_sums(sets, method).scores(method.values(block, None, None)))
    return pd.DataFrame(np.concatenate(parts), columns=[s.title for s in sets])


def _own_scores(file: Path, work: Path, chosen: Path) -> pd.DataFrame:
    """Scores of cells of another study: among all the genes that it has."""
    own = open_store(_ingest([file], work / f"{file.stem}.zarr", None))
    method = RankWeights(np.ones(own.n_vars, np.bool_))
    sets = present_sets(read_gmt(chosen), own.schema, method.ranked_g, 1, own.n_vars)
    scores = scores_of_rows(CellScorer(own, method), present_sums(sets, method), np.arange(own.n_obs), map)
    return pd.DataFrame(scores, columns=[s.title for s in sets])


def _log_normalized(reference: ReferenceModel, path: Path) -> tuple[sp.csr_matrix, np.ndarray]:
    """(n, g) what the model sees of the cells, and (g,) which of its genes their file has."""
    with open_source(path) as source:
        batches = QueryBatches(source, reference.schema, reference.normalization)
        rows = sp.vstack([reference.model.normalized(batch).to_scipy() for batch in batches], format="csr")
        return rows, batches.measured_g[reference.own_positions]
