"""select-gene-sets: some gene sets, chosen by the data, scored in all cells of an atlas and added to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import zarr
from tqdm import tqdm

from unicoord_atlas.columns import label_codes, label_column
from unicoord_atlas.errors import AlreadyDone, ConfigError, UsageError
from unicoord_atlas.gene_sets.aucell import RankWeights, Zeros, keys_of
from unicoord_atlas.gene_sets.gmt import PresentSet, gmt_text, present_sets, read_gmt
from unicoord_atlas.gene_sets.mean_z import StandardValues
from unicoord_atlas.gene_sets.score import CellValues, Method, present_sums
from unicoord_atlas.loaders.graph_store import fingerprint_of
from unicoord_atlas.loaders.row_file import RowFile
from unicoord_atlas.loaders.score_pass import CellScorer, write_scores
from unicoord_atlas.loaders.scores_store import write_named_scores
from unicoord_atlas.loaders.soma_address import store_path
from unicoord_atlas.loaders.store import CellStore, open_store
from unicoord_atlas.loaders.zarr_layout import MANIFEST

from .amend_store import ADDITIONS, amended_store, check_amendment, finish_amendment
from .console_text import plain_console
from .dask_client import pieces_runner
from .dask_job import is_worker, work_until_done
from .gene_set_tables import CHOSEN_GMT, Atlas, select_into
from .workdir import finished_directory

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from unicoord_atlas.loaders.graph_pass import RunPieces

PART = "gene_sets"
Genes = Literal["common", "all"]
_POSITIVE = (
    "min_genes", "max_genes", "bins", "cells", "null_draws", "null_sizes", "null_cells", "trees", "top", "groups",
)  # fmt: skip


@dataclass(frozen=True)
class SelectGeneSetsOptions:
    """What `unicoord-atlas select-gene-sets` takes; the numbers are the paper's."""

    store: Path
    gmt: Path
    label: str
    out: Path | None = None
    """Folder for tables and figures; None: beside the store."""
    score: Method = "aucell"
    zeros: Zeros = "unranked"
    genes: Genes = "common"
    """Genes that are ranked and count as present: those that all sources measured, or all."""
    min_genes: int = 50
    max_genes: int = 500
    top_share: float = 0.05
    bins: int = 100
    cells: int = 50_000
    null_draws: int = 10_000
    null_sizes: int = 12
    null_cells: int = 2_000
    p: float = 0.001
    trees: int = 500
    levels: int = 64
    """Quantiles of a set's scores that trees split between; 0: they split between all scores, as the paper's do."""
    top: int = 100
    groups: int = 30
    seed: int = 0
    replace: bool = False
    dask: str | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        for name, known in (("score", Method), ("zeros", Zeros), ("genes", Genes)):
            if getattr(self, name) not in get_args(known):
                raise ConfigError(
                    f"{name} {getattr(self, name)!r} is unknown; it can be {' or '.join(get_args(known))}"
                )
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.levels < 0 or self.levels == 1:
            raise ConfigError(f"levels must be 0, for all scores, or 2 or more, got {self.levels}")
        for name in ("top_share", "p"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be over 0 and at most 1, got {getattr(self, name)}")
        if self.min_genes > self.max_genes:
            raise ConfigError(f"min_genes = {self.min_genes} is more than max_genes = {self.max_genes}")

    def settings(self) -> dict[str, Any]:
        """What changes the result, for the manifest."""
        left_out = ("store", "gmt", "out", "replace", "dask", "threads")
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def folder(self) -> Path:
        """Where tables and figures go."""
        return self.out or store_path(self.store).with_suffix(".gene-sets")


def run(options: SelectGeneSetsOptions, console: Console | None = None) -> dict[str, Any]:
    """Select, then score all cells; returns what was chosen, as JSON types.

    Raises
    ------
    UnicoordError
        Naming the file, the value and the way out.
    """
    console = console or plain_console()
    _require_libraries()
    if not is_worker(options.dask):  # else the driver may be at it
        finish_amendment(options.store, PART)
    store = open_store(options.store)
    atlas = _atlas(store, options)
    try:
        if is_worker(options.dask):
            work_until_done(partial(_check, options, atlas))
        # Outside, so that workers see the scores in the store when the cluster ends.
        with pieces_runner(options.dask, options.threads) as run_pieces:
            return _run(options, atlas, run_pieces, console)
    except AlreadyDone:
        _say(console, f"{options.store} has these scores already")
        return {"store": str(options.store), "tables": str(options.folder), "already_done": True}


def _run(options: SelectGeneSetsOptions, atlas: Atlas, run_pieces: RunPieces, console: Console) -> dict[str, Any]:
    store = atlas.scorer.store
    try:
        with finished_directory(options.folder, [options.store, options.gmt], options.settings(), True) as folder:
            select_into(folder, atlas, read_gmt(options.gmt), options, run_pieces)
    except AlreadyDone:
        _say(console, f"{options.folder} holds this selection already")
    chosen = _chosen(options, atlas)
    with amended_store(options.store, PART, _addition(options, store, chosen), options.replace) as folder:
        _score_all(folder, store, atlas.scorer, chosen, options, run_pieces)
    _say(console, f"{options.store}: scores of {len(chosen)} sets in {store.n_obs:,} cells, tables in {options.folder}")
    return {"store": str(options.store), "tables": str(options.folder), "sets": [s.title for s in chosen]}


def _chosen(options: SelectGeneSetsOptions, atlas: Atlas) -> tuple[PresentSet, ...]:
    """What the finished tables say."""
    store = atlas.scorer.store
    sets = read_gmt(options.folder / CHOSEN_GMT)
    return present_sets(sets, store.schema, atlas.present_g, 1, store.n_vars, options.folder)


def _addition(options: SelectGeneSetsOptions, store: CellStore, chosen: tuple[PresentSet, ...]) -> dict[str, Any]:
    """What tells these scores from others in the store: a set may have got other genes under its name."""
    members = hashlib.blake2b(gmt_text(chosen, store.schema.genes).encode(), digest_size=16).hexdigest()
    names = [s.name for s in chosen]
    return {**options.settings(), "cells_of": fingerprint_of(store), "sets": names, "members": members}


def _check(options: SelectGeneSetsOptions, atlas: Atlas) -> None:
    """AlreadyDone if tables and scores are there."""
    if (options.folder / MANIFEST).exists():
        addition = _addition(options, atlas.scorer.store, _chosen(options, atlas))
        check_amendment(options.store, PART, addition)


def _atlas(store: CellStore, options: SelectGeneSetsOptions) -> Atlas:
    obs = store.obs([options.label], arrow_names=True)
    known = {column.name: column for column in store.schema.labels}
    column = known.get(options.label) or label_column(obs, options.label)
    present_g = np.ones(store.n_vars, np.bool_)
    if options.genes == "common" and store.schema.sources:
        present_g = np.asarray(store.schema.measured_sg().all(axis=0))
    if not present_g.any():
        raise UsageError(f"{store.uri}: no gene was measured by all sources; say --genes all")
    method = _method(store, present_g, options)
    keys_n = keys_of(obs.index) if method.needs_keys else None
    return Atlas(CellScorer(store, method, keys_n), present_g, column, label_codes(obs, column), obs.index.to_numpy())


def _method(
    store: CellStore, present_g: np.ndarray[Any, np.dtype[np.bool_]], options: SelectGeneSetsOptions
) -> CellValues:
    """The way of scoring that the options name."""
    if options.score == "mean_z":
        return StandardValues.of(store.normalization)
    keys_g = keys_of(store.schema.genes) if options.zeros == "random" else None
    return RankWeights(present_g, options.top_share, options.zeros, keys_g)


def _score_all(
    folder: Path,
    store: CellStore,
    scorer: CellScorer,
    chosen: tuple[PresentSet, ...],
    options: SelectGeneSetsOptions,
    run_pieces: RunPieces,
) -> None:
    scores = RowFile(folder / "scores.f32", store.n_obs, len(chosen), np.float32)
    with tqdm(total=store.n_obs, desc="scores", unit=" cells", unit_scale=True, disable=None) as bar:
        write_scores(scorer, present_sums(chosen, scorer.method), scores, run_pieces, bar.update)
    facts = {
        "names": np.array([s.name for s in chosen], object),
        "titles": np.array([s.title for s in chosen], object),
        "genes_present": np.array([len(s.members) for s in chosen]),
        "settings": json.dumps(options.settings()),
        "fingerprint": fingerprint_of(store),
    }
    group = zarr.open_group(folder / ADDITIONS, mode="w", zarr_format=3)
    write_named_scores(group, store, [s.title for s in chosen], scores, facts)


def _require_libraries() -> None:
    """ConfigError at once rather than after minutes."""
    for module, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise ConfigError(
                f"select-gene-sets needs {name}, which is not installed: pip install 'unicoord-atlas[gene-sets]'"
            )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
