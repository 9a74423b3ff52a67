"""Small stores for tests, written by the real writer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from unicoord_atlas.batch import CellColumns
from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.jobs.workdir import finished_directory
from unicoord_atlas.loaders import soma_additions
from unicoord_atlas.loaders.zarr_layout import MatrixLayout, count_dtype
from unicoord_atlas.loaders.zarr_tables import finish_store
from unicoord_atlas.loaders.zarr_writer import AtlasWriter
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.schema import AtlasSchema, LabelColumn, Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unicoord_atlas.loaders.store import CellStore


def random_counts(num_rows: int, num_genes: int, seed: int = 0, density: float = 0.1) -> sp.csr_matrix:
    """Counts of 1 to 400; every seventh row is empty."""
    rng = np.random.default_rng(seed)
    matrix = sp.random(num_rows, num_genes, density, format="csr", rng=rng)
    matrix.data = rng.integers(1, 401, matrix.nnz).astype(np.float64)
    kept = sp.diags((np.arange(num_rows) % 7 != 6).astype(float)) @ matrix
    kept.eliminate_zeros()
    kept.sort_indices()
    return sp.csr_matrix(kept)


def small_layout(matrix: sp.csr_matrix, inner_chunk: int = 200, chunks_per_shard: int = 4) -> MatrixLayout:
    """Chunks and shards so small that rows straddle both."""
    largest = matrix.data.max() if matrix.nnz else 0
    return MatrixLayout(
        matrix.indptr.astype(np.int64), matrix.shape[1], count_dtype(largest), inner_chunk, chunks_per_shard
    )


def write_rows(
    out: Path, layout: MatrixLayout, matrix: sp.csr_matrix, rows_per_block: int = 37, stop: int = 1 << 60
) -> None:
    """What ingest does in its second pass; killed when it comes to row `stop`."""
    with AtlasWriter(out, layout) as writer:
        while writer.next_row < writer.stop_row:
            if writer.next_row >= stop:
                raise KeyboardInterrupt
            rows = matrix[writer.next_row : writer.next_row + rows_per_block]
            writer.write(CsrBlock(rows.indptr.astype(np.int64), rows.indices, rows.data))


def finish(out: Path, layout: MatrixLayout, size_factors: np.ndarray | None = None) -> None:
    """Write obs, var and uns with one source and one label column."""
    n, g = layout.num_rows, layout.num_genes
    size_factors = np.arange(n) + 0.5 if size_factors is None else size_factors
    kinds = np.where(np.arange(n) % 3 == 0, None, np.where(np.arange(n) % 3 == 1, "B cell", "T cell"))
    obs = pd.DataFrame(
        {"source": pd.Categorical(["one"] * n), "cell_type": pd.Categorical(kinds), "size_factor": size_factors},
        index=[f"one:cell-{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene-{i}" for i in range(g)])
    counts = tuple(int((kinds == kind).sum()) for kind in ("B cell", "T cell"))
    schema = AtlasSchema(
        gene_key="symbol",
        genes=tuple(var.index),
        labels=(LabelColumn(name="cell_type", categories=("B cell", "T cell"), counts=counts),),
        sources=(Source.of("one", n, np.ones(g, np.bool_)),),
    )
    normalization = Normalization(np.arange(g) == 1, np.full(g, 1 / g), np.ones(g), np.ones(g) * 2, min_cells=3)
    finish_store(out, layout, obs, var, schema, normalization)


def write_store(out: Path, matrix: sp.csr_matrix, size_factors: np.ndarray | None = None, **sizes: int) -> Path:
    """A finished store of these counts."""
    layout = small_layout(matrix, **sizes)
    with finished_directory(out, inputs=[], config={}, counts={"cells": layout.num_rows}) as partial:
        write_rows(partial, layout, matrix)
        finish(partial, layout, size_factors)
    return out


def plain_columns(store: CellStore) -> CellColumns:
    """One label column and one continuous column, both the row number."""
    rows = np.arange(store.n_obs)
    return CellColumns(
        store.size_factors.astype(np.float32),
        np.zeros(store.n_obs, np.int32),
        rows[:, None].astype(np.int32),
        rows[:, None].astype(np.float32),
    )


@contextmanager
def killed_after_a_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is done inside ends as by Ctrl-C once a SOMA has got the first of its new tables."""
    whole, written = soma_additions._write_table, list[str]()

    def kill(collection: object, key: str, *rest: object) -> object:
        if written:
            raise KeyboardInterrupt
        written.append(key)
        return whole(collection, key, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(soma_additions, "_write_table", kill)
        yield
    assert written == ["X_unicoord"]
