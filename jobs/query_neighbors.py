"""query-neighbors: the nearest reference cells of each cell of a query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from unicoord_atlas.coordinate_facts import require_coordinates_of
from unicoord_atlas.coordinates import coordinates
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.neighbors.query_knn import query_nearest
from unicoord_atlas.query import MIN_COVERAGE, QueryBatches, require_coverage
from unicoord_atlas.reference import ReferenceModel

from .mapped_file import read_mapped
from .reference_cells import ReferenceCells
from .workdir import finished_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_CELLS = 4096
BIO = "X_unicoord_bio"


@dataclass(frozen=True)
class QueryNeighborsOptions:
    """What `unicoord-atlas query-neighbors` is asked to do."""

    query: Path
    reference: Path
    out: Path
    k: int = 15
    columns: list[str] = field(default_factory=list)
    """obs columns of the reference cells; its labels if empty."""
    min_coverage: float = MIN_COVERAGE
    """Cells with counts whose genes carry less of the reference's mean profile are refused."""


def run(options: QueryNeighborsOptions) -> dict[str, Any]:
    """Search in the biological coordinates, and write a row a neighbour."""
    if options.out.suffix not in (".csv", ".parquet"):
        raise UsageError(f"--out {options.out}: give it a name that ends in .csv or .parquet")
    if options.k < 1:
        raise UsageError(f"--k {options.k}: at least 1")
    reference = ReferenceModel.load(options.reference)
    cells = ReferenceCells.open(options.reference, [label.name for label in reference.config.labels])
    names, points = _query_points(options, reference)
    if points.shape[1] != cells.points_nb.shape[1]:
        raise DataError(
            f"{options.query}: {BIO} has {points.shape[1]} columns, the reference's {cells.points_nb.shape[1]}; "
            "was it mapped onto another reference?"
        )
    columns = options.columns or cells.labels
    table = cells.columns(columns)
    with finished_file(options.out) as partial:
        _write(partial, _parts(names, points, cells, table, options.k))
    return {"neighbors": str(options.out), "cells": len(names), "reference_cells": len(table), "columns": columns}


def _query_points(
    options: QueryNeighborsOptions, reference: ReferenceModel
) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
    """Names and coordinates of the query: as map-query wrote them, or encoded now."""
    mapped = read_mapped(options.query) if options.query.suffix in (".h5ad", ".zarr") else None
    if mapped is not None and BIO in mapped.obsm:
        require_coordinates_of(reference, mapped.uns.get("unicoord", {}), options.query)
        return mapped.obs_names.to_numpy(), np.asarray(mapped.obsm[BIO], np.float32)
    from unicoord_atlas.loaders.query_cells import open_query

    with open_query(options.query, input=reference.normalization.input) as source:
        batches = QueryBatches(source, reference.schema, reference.normalization)
        require_coverage(batches.coverage, options.query, options.min_coverage)
        obs = pd.DataFrame(index=source.obs.index)
        encoded = coordinates(reference, batches, obs, False, "encode", measured_g=batches.measured_g)
    return encoded.obs_names.to_numpy(), encoded.obsm[BIO]


def _parts(
    names: NDArray[np.object_], points_mb: NDArray[np.float32], cells: ReferenceCells, table: pd.DataFrame, k: int
) -> Iterator[pd.DataFrame]:
    search = cells.search(len(names))
    for start in range(0, len(names), _CELLS):
        rows_mk, distances_mk = query_nearest(cells.points_nb, points_mb[start : start + _CELLS], search, k)
        m, width = rows_mk.shape
        part = table.iloc[rows_mk.ravel()]
        found = pd.DataFrame(
            {
                "cell": np.repeat(names[start : start + m], width),
                "rank": np.tile(np.arange(1, width + 1), m),
                "neighbor": part.index.to_numpy(),
                "distance": distances_mk.ravel(),
            }
        )
        yield pd.concat([found, part.reset_index(drop=True)], axis=1)


def _write(path: Path, parts: Iterator[pd.DataFrame]) -> None:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            for number, part in enumerate(parts):
                part.to_csv(file, index=False, header=not number)
        return
    first = pa.Table.from_pandas(next(parts), preserve_index=False)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(pa.Table.from_pandas(part, schema=first.schema, preserve_index=False))
