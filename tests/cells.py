"""Small atlases made in memory, for tests of the model and of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from unicoord_atlas.batch import CellColumns, MiniBatch, SparseRows

if TYPE_CHECKING:
    from pathlib import Path


def sparse_rows(dense: np.ndarray) -> SparseRows:
    """CSR tensors of a dense matrix."""
    rows = torch.from_numpy(np.asarray(dense, np.float32)).to_sparse_csr()
    return SparseRows(rows.crow_indices(), rows.col_indices().to(torch.int32), rows.values(), dense.shape[1])


def counts_of_types(
    num_cells: int = 60, num_genes: int = 40, num_types: int = 3, num_markers: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Poisson counts of cells whose types have marker genes of their own; and the types."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.5, 1.0, (num_types, num_genes))  # drawn first: the same types whatever the number of cells
    for number in range(num_types):
        rates[number, number * num_markers : (number + 1) * num_markers] += 5
    types = rng.integers(0, num_types, num_cells)
    return rng.poisson(rates[types]).astype(np.float32), types


def minibatch(
    counts: np.ndarray,
    codes: np.ndarray | None = None,
    values: np.ndarray | None = None,
    sources: np.ndarray | None = None,
) -> MiniBatch:
    """A minibatch of dense counts; labels are (n, l) codes and (n, c) values."""
    n = len(counts)
    columns = CellColumns(
        counts.sum(axis=1).astype(np.float32),
        np.zeros(n, np.int32) if sources is None else sources.astype(np.int32),
        np.zeros((n, 0), np.int32) if codes is None else codes.astype(np.int32),
        np.zeros((n, 0), np.float32) if values is None else values.astype(np.float32),
    )
    return columns.batch(sparse_rows(counts), np.arange(n, dtype=np.int64), np.ones(n, np.float32))


def write_cells(path: Path, seed: int, num_cells: int = 800) -> anndata.AnnData:
    """An .h5ad of cells of three types with a time that drives forty genes; every tenth label is missing."""
    counts, types = counts_of_types(num_cells, 400, 3, num_markers=30)
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_cells)
    counts, types = counts[order], types[order]
    time = rng.uniform(0, 10, num_cells)
    counts[:, 100:140] = rng.poisson(time[:, None], (num_cells, 40))
    names = np.array(["B", "T", "NK"])[types].astype(object)
    names[::10] = "unknown"
    obs = pd.DataFrame({"cell_type": names, "time": time, "truth": types}, index=[f"cell{i}" for i in range(num_cells)])
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(400)]))
    adata.write_h5ad(path)
    return adata
