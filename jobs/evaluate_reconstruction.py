"""evaluate reconstruction: what a reference says of cells that it encodes and decodes, gene by gene, type by type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.table import Table
from tqdm import tqdm

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.genes import read_gene_table
from unicoord_atlas.loaders.query_cells import open_query
from unicoord_atlas.query import MIN_COVERAGE, QueryBatches, require_coverage
from unicoord_atlas.reconstruction import Reconstruction, reconstruction
from unicoord_atlas.reference import ReferenceModel

from .console_text import one_line, plain_console
from .evaluate import UNLABELLED
from .optional_figures import can_draw
from .workdir import check_output, describe_input, finished_directory, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.loaders.query_cells import QueryCells

_CELLS = 256
"""Of a minibatch, which is dense over the genes while it is compared: 90 MB at 43,878 genes."""


@dataclass(frozen=True)
class EvaluateReconstructionOptions:
    """What `unicoord-atlas evaluate reconstruction` is asked to do."""

    cells: Path
    reference: Path
    out: Path
    by: str | None = None
    """obs column: also group by group."""
    layer: str | None = None
    gene_table: Path | None = None
    min_coverage: float = MIN_COVERAGE
    """Cells whose genes carry less of the reference's mean profile are refused."""


def run(options: EvaluateReconstructionOptions) -> dict[str, Any]:
    """Write reconstruction.json, genes.csv, cells.csv, groups.csv and, if matplotlib is installed, a figure.

    Raises
    ------
    AlreadyDone
        If `out` is finished from the same cells, reference and settings.
    UnicoordError
        Naming the file or the option, and the way out.
    """
    table = describe_input(options.gene_table) if options.gene_table else None
    settings = {"by": options.by, "layer": options.layer, "gene_table": table}
    inputs = [options.cells, options.reference]
    check_output(options.out, inputs, settings)
    reference = ReferenceModel.load(options.reference)
    with open_query(options.cells, options.layer, reference.normalization.input) as source:
        if not source.n_obs:
            raise DataError(f"{options.cells}: holds no cells")
        groups = _groups(source, options)
        found, measured_g = _compare(options, reference, source)
        names = source.obs.index
    genes, by_group = _genes(reference, found, measured_g), _by_group(found, groups)
    facts = _facts(found, genes)
    with finished_directory(options.out, inputs, settings) as partial:
        write_json(partial / "reconstruction.json", facts)
        genes.to_csv(partial / "genes.csv", index_label="gene")
        errors = {"error": found.error_n, "mean_profile_error": found.mean_error_n}
        pd.DataFrame(errors, index=names).to_csv(partial / "cells.csv", index_label="cell")
        by_group.to_csv(partial / "groups.csv")
        if can_draw():
            from .reconstruction_figure import draw_reconstruction  # late: matplotlib is an extra

            draw_reconstruction(genes, by_group, facts["explained"], partial / "reconstruction.png")
    _say(by_group, facts)
    return {"evaluation": str(options.out), **facts}


def _groups(source: QueryCells, options: EvaluateReconstructionOptions) -> pd.Series:
    """Group of each cell; one group without a column."""
    obs = source.obs
    if options.by is None:
        return pd.Series("all cells", obs.index)
    if options.by not in obs:
        raise UsageError(f"--by {options.by}: obs has no such column; it has: {', '.join(map(str, obs.columns))}")
    return obs[options.by].astype("string").replace("", pd.NA).fillna(UNLABELLED)


def _compare(
    options: EvaluateReconstructionOptions, reference: ReferenceModel, source: QueryCells
) -> tuple[Reconstruction, NDArray[np.bool_]]:
    """Errors of all cells, and which of the model's genes they measured."""
    table = read_gene_table(options.gene_table) if options.gene_table else None
    batches = QueryBatches(source, reference.schema, reference.normalization, _CELLS, table)
    own = reference.own_positions
    measured_g = batches.measured_g[own]
    if not measured_g.any():
        raise DataError(f"{options.cells}: has none of the genes of {options.reference}; see --gene-table")
    require_coverage(batches.coverage, options.cells, options.min_coverage)

    def shown() -> Iterator[MiniBatch]:
        with tqdm(total=source.n_obs, desc="cells", unit=" cells", unit_scale=True, disable=None) as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch))

    return reconstruction(reference.model, shown(), _mean_profile(reference)[own], measured_g), measured_g


def _mean_profile(reference: ReferenceModel) -> NDArray[np.float64]:
    """(g,) mean of each gene over the cells whose source measured it; 0 where none did."""
    cells_s = np.array([source.num_cells for source in reference.schema.sources], np.float64)
    share_g = cells_s @ reference.schema.measured_sg() / max(1.0, cells_s.sum())
    mean_g = reference.normalization.mean_g
    result: NDArray[np.float64] = np.divide(mean_g, share_g, out=np.zeros_like(mean_g), where=share_g > 0)
    return result


def _genes(reference: ReferenceModel, found: Reconstruction, measured_g: NDArray[np.bool_]) -> pd.DataFrame:
    columns = {
        "mean": found.mean_g,
        "decoded_mean": found.decoded_mean_g,
        "variance": found.variance_g,
        "error": found.error_g,
        "correlation": found.correlation_g,
    }
    return pd.DataFrame(columns, index=list(reference.own_genes))[measured_g]


def _by_group(found: Reconstruction, groups: pd.Series) -> pd.DataFrame:
    rows = {
        str(name): {
            "cells": len(members),
            "error": float(found.error_n[members].mean()),
            "mean_profile_error": float(found.mean_error_n[members].mean()),
            "explained": found.explained(members),
        }
        for name, members in groups.reset_index(drop=True).groupby(groups.to_numpy()).indices.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(groups.name or "group")


def _facts(found: Reconstruction, genes: pd.DataFrame) -> dict[str, Any]:
    varying = genes["correlation"].dropna()
    return {
        "cells": len(found.error_n),
        "genes": len(genes),
        "error": float(found.error_n.mean()),
        "mean_profile_error": float(found.mean_error_n.mean()),
        "explained": found.explained(),
        "median_gene_correlation": float(varying.median()) if len(varying) else None,
        "genes_never_decoded": int(((genes["decoded_mean"] == 0) & (genes["mean"] > 0)).sum()),
    }


def _say(by_group: pd.DataFrame, facts: dict[str, Any]) -> None:
    title = f"{facts['explained']:.1%} of what the mean profile leaves is explained"
    table = Table("group", "cells", "error", "of the mean profile", "explained", title=title)
    for name, row in by_group.iterrows():
        errors = (f"{row['error']:.1f}", f"{row['mean_profile_error']:.1f}", f"{row['explained']:.1%}")
        table.add_row(one_line(str(name)), f"{row['cells']:,.0f}", *errors)
    plain_console().print(table)
