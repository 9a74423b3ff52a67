"""The selection of gene sets, step by step, each step's table kept: a killed job goes on after the last whole one.

scores.parquet        scores of all sets in the subsample; cells.csv has its types
null.parquet          entropies of random sets, ascending, a column a size
importance.parquet    of the sets that are above chance, to the random forest
correlations.csv      Pearson's r of the top sets; tree.csv their average linkage, correlations.png both
sets.csv              a row a set with all of this; chosen.csv and chosen.gmt the ones that were chosen
activities.csv, .png  which of these are active in which types
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial as bound
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from unicoord_atlas.errors import DataError
from unicoord_atlas.gene_sets.activities import activity_table
from unicoord_atlas.gene_sets.entropy import NullEntropies, entropies, null_entropies, size_grid
from unicoord_atlas.gene_sets.gmt import GeneSet, PresentSet, gmt_text, present_sets
from unicoord_atlas.gene_sets.score import present_sums
from unicoord_atlas.gene_sets.selection import (
    correlated_groups,
    first_by,
    forest_importance,
    highest_of_groups,
    stratified_rows,
)
from unicoord_atlas.loaders.in_order import in_order
from unicoord_atlas.loaders.score_pass import CellScorer, scores_of_rows, values_of_rows

from .dask_client import threads_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.loaders.graph_pass import RunPieces
    from unicoord_atlas.schema import LabelColumn

    from .select_gene_sets import SelectGeneSetsOptions

CHOSEN_GMT = "chosen.gmt"


@dataclass(frozen=True)
class Atlas:
    """What the selection looks at."""

    scorer: CellScorer
    present_g: NDArray[np.bool_]
    column: LabelColumn
    codes_n: NDArray[np.int32]
    """Type of each cell of the store, -1 where unlabelled."""
    names_n: NDArray[np.object_]


def select_into(
    folder: Path, atlas: Atlas, gene_sets: Sequence[GeneSet], options: SelectGeneSetsOptions, run_pieces: RunPieces
) -> None:
    """Fill the folder; `chosen.gmt` comes last but for what is drawn of it."""
    store = atlas.scorer.store
    sets = present_sets(gene_sets, store.schema, atlas.present_g, options.min_genes, options.max_genes, options.gmt)
    rows = stratified_rows(atlas.codes_n, options.cells, options.seed)
    types = pd.Series([atlas.column.categories[code] for code in atlas.codes_n[rows]], name=options.label)
    pd.DataFrame({"cell": atlas.names_n[rows], options.label: types}).to_csv(folder / "cells.csv", index=False)
    scores = _kept(folder / "scores.parquet", bound(_scores, atlas, sets, rows, run_pieces))
    null = _kept(folder / "null.parquet", bound(_null, atlas, sets, rows, options))
    table = _tested(scores, sets, null, rows, atlas, options)
    codes_n = atlas.codes_n[rows]
    importance = _kept(folder / "importance.parquet", bound(_importance, scores, table, codes_n, options))
    chosen = _grouped(folder, scores, table.join(importance), options)
    table = chosen.sort_values(["chosen", "importance"], ascending=False, kind="stable")
    table.to_csv(folder / "sets.csv")
    table[table["chosen"]].to_csv(folder / "chosen.csv")
    kept = [s for s in sets if chosen.loc[s.name, "chosen"]]
    (folder / CHOSEN_GMT).write_text(gmt_text(kept, store.schema.genes), encoding="utf-8")
    _activities(folder, scores[[s.name for s in kept]].set_axis([s.title for s in kept], axis=1), types)


def _kept(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A step's table, made unless it is there."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        make().to_parquet(partial)
        partial.replace(path)
    return pd.read_parquet(path)


def _scores(atlas: Atlas, sets: Sequence[PresentSet], rows: NDArray[np.int64], run_pieces: RunPieces) -> pd.DataFrame:
    with tqdm(total=len(rows), desc=f"scores of {len(sets):,} sets", unit=" cells", disable=None) as bar:
        sums = present_sums(sets, atlas.scorer.method)
        scores_ns = scores_of_rows(atlas.scorer, sums, rows, run_pieces, bar.update)
    return pd.DataFrame(scores_ns, index=atlas.names_n[rows], columns=[s.name for s in sets])


def _null_rows(rows: NDArray[np.int64], options: SelectGeneSetsOptions) -> NDArray[np.int64]:
    """Positions in the subsample of the cells that the test looks at, ascending."""
    rng = np.random.default_rng([options.seed, 0x4E])
    return np.sort(rng.choice(len(rows), min(options.null_cells, len(rows)), replace=False))


def _null(
    atlas: Atlas, sets: Sequence[PresentSet], rows: NDArray[np.int64], options: SelectGeneSetsOptions
) -> pd.DataFrame:
    sizes = size_grid([len(s.members) for s in sets], options.null_sizes)
    values_ng = values_of_rows(atlas.scorer, rows[_null_rows(rows, options)])
    present = np.flatnonzero(atlas.present_g)
    with tqdm(desc="random sets", unit=" portions", disable=None) as bar:

        def run(function: Callable[[Any], Any], portions: Iterable[Any]) -> Iterator[Any]:
            for result in in_order(function, portions, threads_of(options.threads)):
                bar.update()
                yield result

        found = null_entropies(
            values_ng, present, atlas.scorer.method, sizes, options.null_draws, options.seed, run, options.bins
        )
    return pd.DataFrame(found.sorted_cr.T, columns=[str(size) for size in found.sizes])


def _tested(
    scores: pd.DataFrame,
    sets: Sequence[PresentSet],
    null: pd.DataFrame,
    rows: NDArray[np.int64],
    atlas: Atlas,
    options: SelectGeneSetsOptions,
) -> pd.DataFrame:
    """A row a set: its entropy, that over the cells of the test, and its p-value; DataError if none is above chance."""
    bounds, values_ns = atlas.scorer.method.range, scores.to_numpy()
    known = NullEntropies(null.columns.to_numpy(np.int64), null.to_numpy(np.float64).T)
    tested_s = entropies(values_ns[_null_rows(rows, options)], bounds, options.bins)
    sizes = [len(s.members) for s in sets]
    table = pd.DataFrame(
        {
            "title": [s.title for s in sets],
            "genes": [s.num_genes for s in sets],
            "genes_present": sizes,
            "entropy": entropies(values_ns, bounds, options.bins),
            "entropy_tested": tested_s,
            "entropy_random": [float(np.median(known.of_size(size))) for size in sizes],
            "p": [known.p_value(size, entropy) for size, entropy in zip(sizes, tested_s, strict=True)],
        },
        index=pd.Index([s.name for s in sets], name="set"),
    )
    table["above_chance"] = table["p"] < options.p
    if not table["above_chance"].any():
        raise DataError(
            f"{options.gmt}: no set's entropy is above that of random sets with p < {options.p} "
            f"(the least p is {table['p'].min():.2g}); raise --p, or look at more --null-cells"
        )
    return table


def _importance(
    scores: pd.DataFrame, table: pd.DataFrame, codes_n: NDArray[np.int32], options: SelectGeneSetsOptions
) -> pd.DataFrame:
    names = table.index[table["above_chance"]]
    values_s = forest_importance(
        scores[names].to_numpy(), codes_n, options.trees, options.seed, threads_of(options.threads), options.levels
    )
    return pd.DataFrame({"importance": values_s}, index=names)


def _grouped(folder: Path, scores: pd.DataFrame, table: pd.DataFrame, options: SelectGeneSetsOptions) -> pd.DataFrame:
    """The table with group and chosen; correlations and their tree are written."""
    from .gene_set_figures import draw_correlations

    names = table.index[first_by(table["importance"].fillna(-1.0).to_numpy(), options.top)]
    names = names[table.loc[names, "above_chance"].to_numpy()]
    groups = correlated_groups(scores[names].to_numpy(), options.groups)
    best = names[highest_of_groups(groups.group_t, table.loc[names, "entropy"].to_numpy())]
    table = table.assign(group=pd.Series(groups.group_t, index=names), chosen=table.index.isin(best))
    pd.DataFrame(groups.correlation_tt, names, names).to_csv(folder / "correlations.csv")
    pd.DataFrame(groups.linkage, columns=["left", "right", "distance", "sets"]).to_csv(folder / "tree.csv")
    draw_correlations(groups, table.loc[names, "title"].tolist(), folder / "correlations.png")
    return table


def _activities(folder: Path, scores: pd.DataFrame, types: pd.Series) -> None:
    from .gene_set_figures import draw_activities

    table = activity_table(scores.reset_index(drop=True), types)
    table.to_csv(folder / "activities.csv", index=False)
    draw_activities(table, folder / "activities.png")
