"""Cells of any source as minibatches in a reference's gene space: what mapping a query streams.

Shapes: n cells, g genes of the reference's atlas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from .batch import CellColumns, MiniBatch, SparseRows
from .errors import DataError
from .genes import GeneMap, map_genes, remap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from .csr_block import CsrBlock
    from .gene_names import GeneTable
    from .normalization import Normalization
    from .schema import AtlasSchema

MIN_COVERAGE = 0.3
"""Cells whose genes carry less of a reference's mean profile are refused, unless a lower bar is asked for."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the reference a query can speak of."""

    num_query_genes: int
    num_found: int
    num_reference_genes: int
    profile_share: float
    """Share of the reference's mean profile that the query's genes carry."""
    missing: tuple[str, ...]
    """Missing genes of the reference, those with the largest share first; at most 20."""

    @classmethod
    def of(cls, gene_map: GeneMap, schema: AtlasSchema, normalization: Normalization) -> Coverage:
        """Coverage of a mapped query."""
        profile = normalization.profile_g
        lacking = np.flatnonzero(~gene_map.measured_g)
        largest = lacking[np.argsort(-profile[lacking], kind="stable")][:20]
        return cls(
            len(gene_map.new_index),
            int(gene_map.measured_g.sum()),
            schema.num_genes,
            normalization.profile_share(gene_map.measured_g),
            tuple(schema.genes[i] for i in largest),
        )


def require_coverage(coverage: Coverage, name: object, min_coverage: float = MIN_COVERAGE) -> None:
    """DataError, which calls the cells `name`, if their genes carry less of the reference's mean profile."""
    if coverage.profile_share < min_coverage:
        raise DataError(
            f"{name}: its genes carry {coverage.profile_share:.1%} of the reference's mean profile, less than "
            f"--min-coverage {min_coverage:g} (min_coverage= in Python); are species and gene key right (see "
            "--gene-table of map-query)?  0 takes the cells whatever they cover"
        )


@dataclass(frozen=True, slots=True)
class Panels:
    """Genes that cells of several sources have."""

    measured_sg: NDArray[np.bool_]
    """(s, own genes) which genes of the query's table each source measured."""
    source_n: NDArray[np.int32]
    """(n,) the source of each cell."""

    def of(self, rows: slice | Sequence[int]) -> Panels:
        """Of some of the cells."""
        return Panels(self.measured_sg, self.source_n[rows])


class Cells(Protocol):
    """What a query must offer: genes, and counts in blocks of consecutive cells."""

    @property
    def path(self) -> object:
        """What errors name."""
        ...

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        ...

    @property
    def var(self) -> pd.DataFrame:
        """Genes; index = names."""
        ...

    @property
    def panels(self) -> Panels | None:
        """Which genes the cells have; None if all have those of `var`."""
        ...

    def blocks(self, rows_per_block: int) -> Iterator[CsrBlock]:
        """Blocks of consecutive rows."""
        ...


class QueryBatches:
    """Minibatches of a query's cells, in order; iterate as often as needed."""

    def __init__(
        self,
        source: Cells,
        schema: AtlasSchema,
        normalization: Normalization,
        batch_size: int = 1024,
        table: GeneTable | None = None,
    ) -> None:
        self._source, self._normalization, self._batch_size = source, normalization, batch_size
        self._num_genes = schema.num_genes
        self._gene_map = map_genes(source.var, schema, str(source.path), table)
        self.coverage = Coverage.of(self._gene_map, schema, normalization)
        self.measured_g = self._gene_map.measured_g
        """(g,) which genes of the reference's atlas the query has, in some of its sources at least."""
        panels = source.panels
        self.measured_sg = self.measured_g[None] if panels is None else self._of_reference(panels.measured_sg)
        """(s, g) which of them each of its sources has."""
        self._source_n = np.zeros(source.n_obs, np.int32) if panels is None else panels.source_n

    def __len__(self) -> int:
        """Number of cells."""
        return self._source.n_obs

    def __iter__(self) -> Iterator[MiniBatch]:
        first = 0
        for block in self._source.blocks(self._batch_size):
            yield self._batch(remap(block, self._gene_map, self._num_genes), first)
            first += block.num_rows

    def _of_reference(self, measured_so: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(s, g) which genes of the reference's atlas each source has, of (s, own genes)."""
        found_sg = np.zeros((len(measured_so), self._num_genes), np.bool_)
        for measured_o, found_g in zip(measured_so, found_sg, strict=True):
            found_g[self._gene_map.new_index[measured_o & (self._gene_map.new_index >= 0)]] = True
        return found_sg

    def _size_factors(self, block: CsrBlock, source_n: NDArray[np.int32]) -> NDArray[np.float64]:
        kept = self._normalization.kept_sums(block.indptr, block.indices, block.data)
        for source in np.unique(source_n):
            of_source = source_n == source
            kept[of_source] = self._normalization.query_size_factors(kept[of_source], self.measured_sg[source])
        return kept

    def _batch(self, block: CsrBlock, first: int) -> MiniBatch:
        n = block.num_rows
        source_n = self._source_n[first : first + n]
        size_factors = self._size_factors(block, source_n)
        counts = SparseRows(
            torch.from_numpy(block.indptr.astype(np.int64)),
            torch.from_numpy(block.indices.astype(np.int32)),
            torch.from_numpy(block.data.astype(np.float32)),
            self._num_genes,
        )
        columns = CellColumns(
            size_factors.astype(np.float32),
            source_n,
            np.zeros((n, 0), np.int32),
            np.zeros((n, 0), np.float32),
        )
        here = columns.batch(counts, np.arange(n, dtype=np.int64), np.ones(n, np.float32))
        return MiniBatch(
            here.counts,
            here.rows_n + first,
            here.size_factors_n,
            here.sources_n,
            here.codes_nl,
            here.values_nc,
            here.weights_n,
            measured_sg=torch.from_numpy(self.measured_sg),
        )
