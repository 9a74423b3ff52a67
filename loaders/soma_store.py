"""SomaStore: cells of a SOMA Experiment as a store."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from unicoord_atlas.columns import label_column
from unicoord_atlas.errors import ConfigError, DataError, UsageError
from unicoord_atlas.gene_names import gene_names
from unicoord_atlas.genes import union_space
from unicoord_atlas.schema import AtlasSchema, Source

from .cell_names import arrow_index
from .labels import LabelRules, join_labels, labels_of
from .plan import expand_ranges
from .soma_additions import addition_of
from .soma_address import SomaAddress
from .soma_facts import cached_facts
from .soma_open import JOINID, OpenExperiment
from .soma_rows import COLUMNS, ROWS, VALUES, graph_rows, read_rows
from .soma_written import obsm_columns, written_facts
from .store import CsrBuffer
from .take_rows import take_rows
from .zarr_layout import GRAPH_FACTS, GRAPH_PART, INNER_CHUNK, SIZE_FACTOR, SOURCE, count_dtype, index_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from unicoord_atlas.csr_block import CsrBlock

_MOST_CATEGORIES = 1000
"""A text column with more values is no label."""


class SomaStore:
    """Cells of an experiment; see `CellStore`.  It pickles as its address, so a spawned worker opens it anew.

    An experiment of this program carries schema and normalization.  Of another, the genes are those of var, every obs
    column of texts is a label, and normalization is computed from the cells that the filter takes.
    """

    def __init__(self, uri: str) -> None:
        self._opened = OpenExperiment.at(SomaAddress.parse(uri))
        self.address = self._opened.address
        self.uri = str(self.address)
        self._process = os.getpid()
        self.joinids = self._opened.joinids()
        """(n_obs,) ascending: soma_joinid of each cell."""
        self.fingerprint = self._opened.fingerprint(self.joinids)
        genes = self._opened.measurement.var.read(column_names=[JOINID]).concat().column(JOINID).to_numpy()
        if not np.array_equal(np.sort(genes), np.arange(len(genes))):
            raise DataError(f"{self.uri}: soma_joinid of var are not 0..{len(genes) - 1}; write the experiment again")
        found = written_facts(self._opened, self.joinids)
        if found is not None:
            self.schema, self.normalization, entries_n = found
            self._data_dtype = self._opened.matrix.type.to_pandas_dtype()
            self._size_factors: NDArray[np.float64] | None = None
            if self.address.filter is not None:
                self.schema = _schema_of_some(self.schema, self.obs())
        else:
            facts = cached_facts(self._opened.matrix, self.joinids, len(genes), self.fingerprint)
            self.normalization, entries_n = facts.normalization, facts.entries_n
            self._data_dtype, self._size_factors = count_dtype(facts.largest), facts.size_factors_n
            self.schema = self._measured_schema()
        self.indptr = np.concatenate([[0], np.cumsum(entries_n)])

    def __reduce__(self) -> tuple[type[SomaStore], tuple[str, ...]]:
        return SomaStore, (str(self.address.from_anywhere()),)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.joinids)

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return self.schema.num_genes

    @cached_property
    def _dtypes(self) -> tuple[np.dtype[Any], np.dtype[Any]]:
        return index_dtype(self.n_vars), np.dtype(self._data_dtype)

    @property
    def entry_bytes(self) -> int:
        """Bytes of a stored entry in memory."""
        return sum(dtype.itemsize for dtype in self._dtypes)

    @cached_property
    def size_factors(self) -> NDArray[np.float64]:
        """(n_obs,); see `unicoord_atlas.normalization`."""
        if self._size_factors is not None:
            return self._size_factors
        return np.asarray(self.obs([SIZE_FACTOR])[SIZE_FACTOR], np.float64)

    def obs(self, columns: Sequence[str] | None = None, arrow_names: bool = False) -> pd.DataFrame:
        """Facts about the cells, all columns or these; see `CellStore.obs`."""
        table = self._opened.frame(self._opened.obs, columns)
        return table.set_axis(arrow_index([table.index])) if arrow_names else table

    def var(self) -> pd.DataFrame:
        """Genes; index = names."""
        return self._opened.frame(self._opened.measurement.var)

    def obsm_keys(self) -> list[str]:
        """Names of the tables with a row a cell."""
        return sorted(self._opened.measurement.get("obsm", ()))

    def obsm(self, key: str) -> NDArray[np.generic] | pd.DataFrame:
        """A table with a row a cell, as it was stored."""
        if key not in self.obsm_keys():
            raise UsageError(f"{self.uri}: obsm has no {key!r}; it has: {', '.join(self.obsm_keys()) or 'nothing'}")
        table = _whole_table(self._opened.measurement.obsm[key])[self.joinids]
        columns = obsm_columns(self._opened, key)
        return table if columns is None else pd.DataFrame(table, columns=columns, index=self.obs([]).index)

    def table_fingerprint(self, key: str) -> str:
        """See `OpenExperiment.table_fingerprint`."""
        return self._opened.table_fingerprint(key)

    @property
    def graph_record(self) -> Mapping[str, Any] | None:
        """See `graph_store.graph_record`."""
        addition = addition_of(self._opened, GRAPH_PART)
        if addition is None:
            return None
        config: Mapping[str, Any] = addition["config"]
        return config

    def graph_facts(self) -> Mapping[str, Any]:
        """What `build-graph` says of its graph."""
        facts: Mapping[str, Any] = self._opened.measurement["uns"][GRAPH_FACTS].metadata
        return facts

    def graph_entries(self, key: str) -> int:
        """How many distances or connectivities there are."""
        return int(self._opened.measurement.obsp[key].nnz)

    def graph(self, key: str) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """A matrix between cells; see `soma_rows.graph_rows`."""
        return graph_rows(self._opened.measurement.obsp[key], self.joinids)

    def read_ranges(self, ranges: NDArray[np.int64], out: CsrBuffer | None = None) -> CsrBlock:
        """Rows of the (b, 2) ranges start:stop, one after the other in the order given.

        They are read once each, in the order of storage.
        """
        if os.getpid() != self._process:
            raise ConfigError(
                f"{self.uri}: this process was forked after the store was opened, and TileDB's threads did not come "
                "along; start workers with the spawn method"
            )
        rows = expand_ranges(ranges)
        wanted = np.unique(rows)
        indptr = np.zeros(len(wanted) + 1, np.int64)
        np.cumsum(self.indptr[wanted + 1] - self.indptr[wanted], out=indptr[1:])
        read = read_rows(
            self._opened.matrix, self.joinids[wanted], indptr, self.n_vars, self._dtypes, out or CsrBuffer()
        )
        return read if np.array_equal(rows, wanted) else take_rows(read, np.searchsorted(wanted, rows))

    def to_dask(self, dtype: DTypeLike = np.float32) -> Any:
        """X as a dask.array.Array of CSR blocks; see `lazy.dask_rows`."""
        from .lazy import dask_rows  # late: Dask takes a second, and is an extra

        return dask_rows(self, dtype, INNER_CHUNK)

    def to_anndata(self, lazy: bool = True) -> anndata.AnnData:
        """The cells as an AnnData with obs, var and obsm; X is `to_dask()` if `lazy`, else in memory."""
        if lazy:
            matrix = self.to_dask()
        else:
            rows = self.read_ranges(np.array([[0, self.n_obs]]))
            matrix = csr_matrix((rows.data, rows.indices.astype(np.int32), rows.indptr), (self.n_obs, self.n_vars))
        return anndata.AnnData(matrix, self.obs(), self.var(), obsm={key: self.obsm(key) for key in self.obsm_keys()})

    def _measured_schema(self) -> AtlasSchema:
        """Of an experiment that another program wrote."""
        names, obs = gene_names(self.var()), self.obs()
        space = union_space([names], names.own)
        if space.genes != tuple(names.by(names.own)):
            raise DataError(
                f"{self.uri}: some genes of var have no name, or one that others have, too; "
                "write the experiment to .h5ad (tiledbsoma.io.to_h5ad) and use `unicoord-atlas ingest`"
            )
        columns = [name for name in obs if _may_be_label(obs[name])]
        found = labels_of(self.address.path.stem, self.address.path, obs, LabelRules.of(columns, None))
        return AtlasSchema(
            gene_key=space.key,
            genes=space.genes,
            aliases=space.aliases,
            labels=tuple(join_labels(name, [found[name]])[1] for name in columns),
            sources=(Source.of(self.address.path.stem, len(obs), np.ones(len(space.genes), np.bool_)),),
        )


def _whole_table(array: Any) -> NDArray[np.generic]:
    if not array.is_sparse:
        return np.asarray(array.read().to_numpy())
    table = np.zeros(array.shape, array.type.to_pandas_dtype())
    for part in array.read().tables():
        table[part.column(ROWS), part.column(COLUMNS)] = part.column(VALUES)
    return table


def _may_be_label(values: pd.Series) -> bool:
    return bool(values.dtype.kind == "O" and values.nunique() <= _MOST_CATEGORIES)


def _schema_of_some(schema: AtlasSchema, obs: pd.DataFrame) -> AtlasSchema:
    """The schema with the counts of a selection of its cells; categories without any keep their codes."""
    labels = []
    for column in schema.labels:
        found = label_column(obs, column.name)
        counts = dict(zip(found.categories, found.counts, strict=True))
        labels.append(
            column.model_copy(
                update={
                    "counts": tuple(counts.get(name, 0) for name in column.categories),
                    "num_unlabelled": found.num_unlabelled,
                }
            )
        )
    cells = obs[SOURCE].astype(str).value_counts()
    sources = [source.model_copy(update={"num_cells": int(cells.get(source.name, 0))}) for source in schema.sources]
    return schema.model_copy(update={"labels": tuple(labels), "sources": tuple(sources)})
