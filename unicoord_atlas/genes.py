"""Gene identity: by which key sources name their genes, one gene space for an atlas, and each source's way into it.

A query is mapped onto a reference by the same code that maps sources into an atlas.
Shapes: g genes of the atlas, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from .csr_block import CsrBlock
from .errors import DataError
from .gene_names import (
    KEY_WORDS,
    GeneNames,
    GeneTable,
    choose_key,
    gene_names,
    guess_gene_key,
    other_key,
    read_gene_columns,
    read_gene_table,
)
from .schema import AtlasSchema, GeneKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

__all__ = [
    "GeneMap",
    "GeneSpace",
    "gene_names",
    "gene_space",
    "guess_gene_key",
    "intersection_space",
    "listed_space",
    "map_genes",
    "map_names",
    "read_gene_table",
    "remap",
    "union_space",
]


@dataclass(frozen=True, slots=True)
class GeneSpace:
    """The genes of an atlas in their order, and other names they go by."""

    key: GeneKey
    genes: tuple[str, ...]
    aliases: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GeneMap:
    """Where each gene of a source goes."""

    new_index: NDArray[np.int32]
    """(own genes,) index in the atlas, or -1."""
    measured_g: NDArray[np.bool_]
    """(g,) which genes of the atlas the source has."""
    in_order: bool
    """Kept genes are all different and keep their order, so sorted rows stay sorted."""
    same: bool
    """Every gene goes where it is."""

    @classmethod
    def of(cls, new_index: NDArray[np.int32], num_genes: int) -> GeneMap:
        """The map with these targets."""
        measured_g = np.zeros(num_genes, np.bool_)
        kept = new_index[new_index >= 0]
        measured_g[kept] = True
        same = np.array_equal(new_index, np.arange(len(new_index)))
        return cls(new_index, measured_g, bool((np.diff(kept) > 0).all()), same)

    @property
    def num_lost(self) -> int:
        """Genes of the source that the atlas lacks."""
        return int((self.new_index < 0).sum())

    @property
    def num_lacking(self) -> int:
        """Genes of the atlas that the source did not measure."""
        return int((~self.measured_g).sum())

    @property
    def num_summed(self) -> int:
        """Genes of the source that were added to another of the same name."""
        return len(self.new_index) - self.num_lost - int(self.measured_g.sum())


def resolve(names: GeneNames, key: GeneKey, index: Mapping[str, int], aliases: Mapping[str, int]) -> NDArray[np.int32]:
    """(own genes,) index of each gene of a source, or -1.

    A gene is found by its name; else by an alias of its name or of its name by the other key, but never on a gene
    that the source has under its own name: these are two genes.  Genes that have an Ensembl id of their own are not
    joined by their symbols, which many share (Y_RNA).
    """
    new_index = np.array([-1 if name is None else index.get(name, -1) for name in names.by(key)], np.int32)
    taken = set(new_index.tolist())
    others = names.by(other_key(key))
    for i, (name, other) in enumerate(zip(names.by(key), others, strict=True)):
        if new_index[i] < 0:
            trusted = other if name is None or key == "symbol" else None
            targets = (aliases[alias] for alias in (name, trusted) if alias is not None and alias in aliases)
            new_index[i] = next((target for target in targets if target not in taken), -1)
    return new_index


def union_space(sources: Sequence[GeneNames], key: GeneKey, table: GeneTable | None = None) -> GeneSpace:
    """All genes of all sources, in the order of their first appearance."""
    index: dict[str, int] = {}
    aliases: dict[str, int] = {}
    for names in sources:
        known = resolve(names, key, index, aliases)
        for name, other, target in zip(names.by(key), names.by(other_key(key)), known.tolist(), strict=True):
            if name is not None:
                target = index.setdefault(name, len(index)) if target < 0 else target
                aliases.setdefault(name, target)
            if other is not None and target >= 0:
                aliases.setdefault(other, target)
    return _space(key, index, aliases, table)


def intersection_space(sources: Sequence[GeneNames], key: GeneKey, table: GeneTable | None = None) -> GeneSpace:
    """The genes that every source measured, in the order of the union."""
    union = union_space(sources, key, table)
    index = {name: i for i, name in enumerate(union.genes)}
    common_g = np.ones(len(index), np.bool_)
    for names in sources:
        common_g &= GeneMap.of(resolve(names, key, index, union.aliases), len(index)).measured_g
    if not common_g.any():
        raise DataError("--genes intersection: the sources have no gene in common; are some named by another key?")
    new_index = np.cumsum(common_g) - 1
    kept = tuple(name for name, common in zip(union.genes, common_g, strict=True) if common)
    return GeneSpace(key, kept, {name: int(new_index[i]) for name, i in union.aliases.items() if common_g[i]})


def listed_space(path: Path, key: GeneKey, table: GeneTable | None = None) -> GeneSpace:
    """The genes of a file, in its order; its other column gives aliases.

    Raises
    ------
    DataError
        If a gene is listed twice or the file has no column of this key.
    """
    columns = read_gene_columns(path)
    if key not in columns:
        raise DataError(f"{path}: has no column of {KEY_WORDS[key]}s, the atlas's gene key; see --gene-key")
    index: dict[str, int] = {}
    for line, name in enumerate(columns[key], start=1):
        if name is None:
            continue
        if name in index:
            raise DataError(f"{path}: gene {name!r} is listed twice (again as gene {line}); list each gene once")
        index[name] = len(index)
    aliases: dict[str, int] = {}
    for name, other in zip(columns[key], columns.get(other_key(key), [None] * len(columns[key])), strict=True):
        if name is not None and other is not None:
            aliases.setdefault(other, index[name])
    return _space(key, index, aliases, table)


def _space(key: GeneKey, index: dict[str, int], aliases: dict[str, int], table: GeneTable | None) -> GeneSpace:
    if table is not None:
        for other, name in (table.symbol_of if key == "symbol" else table.ensembl_of).items():
            if name in index:
                aliases.setdefault(other, index[name])
    return GeneSpace(key, tuple(index), {name: i for name, i in aliases.items() if name not in index})


def gene_space(
    sources: Mapping[Path, GeneNames], genes: str, wanted: GeneKey | None, table: GeneTable | None
) -> GeneSpace:
    """The genes of an atlas of these sources; `genes` is union, intersection or a file of genes."""
    if genes not in ("union", "intersection") and wanted is None:
        listed = read_gene_columns(Path(genes))
        wanted = next(iter(listed)) if len(listed) == 1 else None
    key = choose_key(sources, wanted)
    if genes == "union":
        return union_space(list(sources.values()), key, table)
    if genes == "intersection":
        return intersection_space(list(sources.values()), key, table)
    return listed_space(Path(genes), key, table)


def map_genes(var: pd.DataFrame, space: AtlasSchema | GeneSpace, where: str, table: GeneTable | None = None) -> GeneMap:
    """Map the genes of a query onto a reference.

    Parameters
    ----------
    var
        The query's genes, as `CellSource.var`.
    space
        The reference's genes and aliases.
    where
        What an error names, such as the path of the query.
    table
        Ensembl ids and symbols beyond the aliases.

    Raises
    ------
    DataError
        If no gene is found.
    """
    return map_names(gene_names(var, table), space, where)


def map_names(names: GeneNames, space: AtlasSchema | GeneSpace, where: str) -> GeneMap:
    """Map genes by their names; DataError names `where` if none is found."""
    key = space.gene_key if isinstance(space, AtlasSchema) else space.key
    index = {name: i for i, name in enumerate(space.genes)}
    gene_map = GeneMap.of(resolve(names, key, index, space.aliases), len(index))
    if not gene_map.measured_g.any():
        examples = [name for name in names.by(names.own) if name is not None][:3]
        raise DataError(
            f"{where}: no genes in common: it has {', '.join(examples)}, ... and wanted are "
            f"{', '.join(space.genes[:3])}, ... ({KEY_WORDS[key]}s); are species and gene key right? See --gene-table"
        )
    return gene_map


def remap(block: CsrBlock, gene_map: GeneMap, num_genes: int) -> CsrBlock:
    """The block in the atlas's genes: indices strictly ascending in each row, duplicates summed, no zeros."""
    indices, data, indptr = block.indices, block.data, block.indptr
    if not gene_map.same:
        indices = gene_map.new_index.take(indices)
    if (not gene_map.same and indices.min(initial=0) < 0) or not data.all():
        keep = (indices >= 0) & (data != 0)
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        indices, data, indptr = indices[keep], data[keep], kept_before[indptr]
    if gene_map.in_order and _rows_ascend(indptr, indices):
        return CsrBlock(indptr, indices, data)
    # Turning to CSC and back sorts in linear time, three times as fast as sorting keys.
    if data.dtype.kind in "ui":
        data = data.astype(np.int64)  # sums of duplicates may not fit the narrow type
    rows = csr_array((data, indices, indptr), shape=(block.num_rows, num_genes)).tocsc().tocsr()
    rows.sum_duplicates()
    return CsrBlock(rows.indptr.astype(np.int64), rows.indices, rows.data)


def _rows_ascend(indptr: NDArray[np.int64], indices: NDArray[np.integer]) -> bool:
    """Whether column indices ascend strictly within every row."""
    falls = np.flatnonzero(indices[1:] <= indices[:-1]) + 1
    return bool(np.isin(falls, indptr).all())
