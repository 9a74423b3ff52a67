"""What sources and gene files call their genes: symbols, Ensembl ids, and tables of both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import pandas as pd

from .errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from .schema import GeneKey

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?")
_SYMBOL_COLUMNS = (
    "gene_symbols", "gene_symbol", "symbol", "symbols", "gene_name", "gene_names", "feature_name", "gene_short_name",
)  # fmt: skip
_HEADERS = {
    "gene", "genes", "symbol", "symbols", "genesymbol", "genesymbols", "genename", "genenames", "hgncsymbol",
    "ensembl", "ensemblid", "ensemblgeneid", "geneid", "geneids",
}  # fmt: skip
KEY_WORDS: dict[GeneKey, str] = {"symbol": "gene symbol", "ensembl": "Ensembl id"}
_MOST = 0.5
"""Share of names that decides what a column is."""
Name = str | None


@dataclass(frozen=True, slots=True)
class GeneTable:
    """Ensembl ids and symbols of the same genes, from a file."""

    symbol_of: Mapping[str, str]
    ensembl_of: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GeneNames:
    """What one source calls its genes, in the order of its columns; None where it does not say."""

    own: GeneKey
    """The key of the names in the index of var."""
    symbol: Sequence[Name]
    ensembl: Sequence[Name]

    def by(self, key: GeneKey) -> Sequence[Name]:
        """The names by one key."""
        return self.symbol if key == "symbol" else self.ensembl

    def knows(self, key: GeneKey) -> bool:
        """Whether most genes have a name by this key."""
        return sum(name is not None for name in self.by(key)) > _MOST * len(self.symbol)


def other_key(key: GeneKey) -> GeneKey:
    """Ensembl for symbol, symbol for Ensembl."""
    return "ensembl" if key == "symbol" else "symbol"


def without_version(name: str) -> str:
    """An Ensembl gene id without its version suffix; any other name as it is."""
    match = _ENSEMBL.fullmatch(name)
    return match.group(1) if match else name


def guess_gene_key(names: Iterable[str]) -> GeneKey:
    """Ensembl if most names are Ensembl gene ids, else symbol."""
    hits = [_ENSEMBL.fullmatch(name) is not None for name in names]
    return "ensembl" if sum(hits) > _MOST * len(hits) else "symbol"


def gene_names(var: pd.DataFrame, table: GeneTable | None = None) -> GeneNames:
    """What a source calls its genes, by either key.

    The index of `var` gives one key; a column of `var` gives the other, and where it has none, `table`.
    Features of another kind than gene expression (10x `feature_types`) have no name.
    """
    key = guess_gene_key(var.index)
    names: dict[GeneKey, list[Name]] = {key: [without_version(name) if name else None for name in var.index]}
    column = _column_of(other_key(key), var)
    values: list[Name] = [None] * len(var)
    if column is not None:
        values = [None if pd.isna(v) or not str(v) else without_version(str(v)) for v in column]
    if table is not None:
        of = table.ensembl_of if key == "symbol" else table.symbol_of
        values = [v if v is not None or n is None else of.get(n) for v, n in zip(values, names[key], strict=True)]
    names[other_key(key)] = values
    if "feature_types" in var and (var["feature_types"] == "Gene Expression").any():
        genes = (var["feature_types"] == "Gene Expression").tolist()
        names = {k: [n if g else None for n, g in zip(v, genes, strict=True)] for k, v in names.items()}
    return GeneNames(key, names["symbol"], names["ensembl"])


def _column_of(key: GeneKey, var: pd.DataFrame) -> Sequence[object] | None:
    for name in var.columns:
        if not (isinstance(var[name].dtype, pd.CategoricalDtype) or var[name].dtype.kind == "O"):
            continue
        values = [str(value) for value in var[name] if not pd.isna(value)]
        if len(values) <= _MOST * len(var):
            continue
        is_ensembl = guess_gene_key(values) == "ensembl"
        if is_ensembl if key == "ensembl" else not is_ensembl and str(name).lower() in _SYMBOL_COLUMNS:
            column: list[object] = var[name].tolist()
            return column
    return None


def read_gene_columns(path: Path) -> dict[GeneKey, list[Name]]:
    """Genes of a file, one a line: the first column of Ensembl ids, and the first other column as symbols.

    Columns are separated by tabs or commas.  A first line that holds a word like `symbol` or `gene_id` is a header.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of genes ({error})") from error
    rows = [[cell.strip().strip('"') for cell in line.split("\t" if "\t" in line else ",")] for line in lines]
    if rows and any(re.sub(r"[\W_]", "", cell).lower() in _HEADERS for cell in rows[0]):
        del rows[0]
    if not rows:
        raise DataError(f"{path}: holds no genes")
    columns: dict[GeneKey, list[Name]] = {}
    for cells in zip_longest(*rows, fillvalue=""):
        key = guess_gene_key(cell for cell in cells if cell)
        columns.setdefault(key, [without_version(cell) or None for cell in cells])
    return columns


def read_gene_table(path: Path) -> GeneTable:
    """A file of Ensembl ids and symbols; of several partners of a name, the first counts."""
    columns = read_gene_columns(path)
    if len(columns) < 2:
        raise DataError(f"{path}: a gene table needs a column of Ensembl ids and one of symbols, separated by tabs")
    symbol_of: dict[str, str] = {}
    ensembl_of: dict[str, str] = {}
    for symbol, ensembl in zip(columns["symbol"], columns["ensembl"], strict=True):
        if symbol and ensembl:
            symbol_of.setdefault(ensembl, symbol)
            ensembl_of.setdefault(symbol, ensembl)
    return GeneTable(symbol_of, ensembl_of)


def choose_key(sources: Mapping[Path, GeneNames], wanted: GeneKey | None) -> GeneKey:
    """The key of an atlas: the wanted one, else the first source's own if all sources know it, else the other.

    Raises
    ------
    DataError
        If a source does not know the key.
    """
    own = next(iter(sources.values())).own
    candidates = (wanted,) if wanted else (own, other_key(own))
    strangers = {key: [path for path, names in sources.items() if not names.knows(key)] for key in candidates}
    for key in candidates:
        if not strangers[key]:
            return key
    key = candidates[0]
    raise DataError(
        f"{strangers[key][0]}: most of its genes have no {KEY_WORDS[key]}, which the "
        "other sources or --gene-key ask for; give --gene-table FILE with Ensembl ids and symbols"
    )
