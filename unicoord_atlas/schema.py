"""AtlasSchema: which genes, in which order, which labels with which categories, and what each source measured.

One JSON text holds it, the same in a store, a run and a reference.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT_VERSION = 1
UNLABELLED = -1
GeneKey = Literal["symbol", "ensembl"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelColumn(_Frozen):
    """A discrete obs column: its categories in code order and how many cells carry each."""

    name: str
    categories: tuple[str, ...]
    counts: tuple[int, ...]
    num_unlabelled: int = 0
    folded: Mapping[str, int] = Field(default_factory=dict)
    """Categories folded into "other" with their cell counts; empty in an atlas, filled by a run."""

    @model_validator(mode="after")
    def _one_count_each(self) -> LabelColumn:
        if len(self.counts) != len(self.categories) or len(set(self.categories)) != len(self.categories):
            raise ValueError(f"label column {self.name!r}: categories must be unique, with one count each")
        return self

    def code(self, category: str) -> int:
        """Code of a category; UsageError lists what there is."""
        if category in self.categories:
            return self.categories.index(category)
        why = (
            f" ({category!r} has only {self.folded[category]} cells and was folded into 'other')"
            if category in self.folded
            else ""
        )
        raise UsageError(f"{self.name}={category!r} is unknown{why}; it can be one of: {', '.join(self.categories)}")


class Source(_Frozen):
    """One ingested file: its name, cells, and a bit for each atlas gene that it measured."""

    name: str
    num_cells: int
    measured_bits: str
    """base64 of zlib of numpy.packbits over the genes."""

    @classmethod
    def of(cls, name: str, num_cells: int, measured: NDArray[np.bool_]) -> Source:
        """Pack the measured genes, shape (g,)."""
        packed = zlib.compress(np.packbits(measured).tobytes(), 6)
        return cls(name=name, num_cells=num_cells, measured_bits=base64.b64encode(packed).decode("ascii"))

    def measured(self, num_genes: int) -> NDArray[np.bool_]:
        """Shape (g,): True where this source measured the gene; elsewhere a zero says nothing."""
        limit = (num_genes + 7) // 8
        try:
            packed = zlib.decompressobj().decompress(base64.b64decode(self.measured_bits, validate=True), limit + 1)
        except (ValueError, zlib.error) as error:
            raise DataError(f"schema: source {self.name!r}: measured_bits cannot be read ({error})") from error
        if len(packed) != limit:
            raise DataError(f"schema: source {self.name!r}: measured_bits do not fit {num_genes} genes")
        return np.unpackbits(np.frombuffer(packed, np.uint8), count=num_genes).astype(np.bool_)


class AtlasSchema(_Frozen):
    """Identity and order of genes, label columns, sources."""

    format_version: int = FORMAT_VERSION
    gene_key: GeneKey
    genes: tuple[str, ...]
    """Gene identity, in the order of the columns of X."""
    aliases: Mapping[str, int] = Field(default_factory=dict)
    """Other names (the other key's ids) to the index of their gene."""
    labels: tuple[LabelColumn, ...] = ()
    sources: tuple[Source, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> AtlasSchema:
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"schema version {self.format_version} is newer than {FORMAT_VERSION}; update unicoord-atlas"
            )
        if len(set(self.genes)) != len(self.genes):
            raise ValueError("genes must be unique")
        if any(not 0 <= index < len(self.genes) for index in self.aliases.values()):
            raise ValueError("an alias points past the last gene")
        return self

    @property
    def num_genes(self) -> int:
        """Number of genes g."""
        return len(self.genes)

    def label(self, name: str) -> LabelColumn:
        """The label column of this name; UsageError lists what there is."""
        for column in self.labels:
            if column.name == name:
                return column
        known = ", ".join(column.name for column in self.labels) or "none"
        raise UsageError(f"label column {name!r} is not in the schema; it has: {known}")

    def measured_sg(self) -> NDArray[np.bool_]:
        """(sources, g): which genes each source measured."""
        if not self.sources:
            return np.ones((0, self.num_genes), np.bool_)
        return np.stack([source.measured(self.num_genes) for source in self.sources])

    def subset(self, genes: NDArray[np.int64]) -> AtlasSchema:
        """The schema with only these gene indices, ascending."""
        new_index = np.full(self.num_genes, -1, np.int64)
        new_index[genes] = np.arange(len(genes))
        return self.model_copy(
            update={
                "genes": tuple(self.genes[i] for i in genes),
                "aliases": {name: int(new_index[i]) for name, i in self.aliases.items() if new_index[i] >= 0},
                "sources": tuple(
                    Source.of(s.name, s.num_cells, s.measured(self.num_genes)[genes]) for s in self.sources
                ),
            }
        )

    def to_json(self) -> str:
        """The schema as JSON text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str, where: str = "schema") -> AtlasSchema:
        """Read and check; DataError names `where` and the first fault."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(part) for part in first["loc"]) or "schema"
            raise DataError(
                f"{where}: {path}: {first['msg']}; the file was not written by unicoord-atlas or is damaged"
            ) from error


def fold_rare(
    column: LabelColumn, labelled: NDArray[np.int64], min_cells: int
) -> tuple[LabelColumn, NDArray[np.int32]]:
    """Fold the categories with fewer than `min_cells` labelled cells into one category "other".

    Parameters
    ----------
    column
        The atlas's column.
    labelled
        (k,) labelled training cells of each category.
    min_cells
        Categories below it are folded.  A category already called "other" or "others" (any case) joins.

    Returns
    -------
    The new column, whose counts are of the training cells, and (k,) int32: new code of each old code.
    """
    is_other = np.array([name.lower() in ("other", "others") for name in column.categories], np.bool_)
    small = (labelled < min_cells) & ~is_other
    goes = small | is_other
    kept = [i for i in range(len(column.categories)) if not goes[i]]
    categories: Sequence[str] = [column.categories[i] for i in kept]
    counts = [int(labelled[i]) for i in kept]
    new_code = np.full(len(column.categories), len(kept), np.int32)
    new_code[kept] = np.arange(len(kept), dtype=np.int32)
    if goes.any():
        categories, counts = [*categories, "other"], [*counts, int(labelled[goes].sum())]
    folded = {column.categories[i]: int(labelled[i]) for i in np.flatnonzero(small)}
    return (
        column.model_copy(update={"categories": tuple(categories), "counts": tuple(counts), "folded": folded}),
        new_code,
    )
