"""Gene sets from GMT files, and the genes of them that an atlas has.

A line of a GMT file is a set: its name, a description, and its genes, separated by tabs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.schema import AtlasSchema

_FEWEST_COLUMNS = 3
_NO_WORDS = ("", "na", "n/a", "-", ".")


@dataclass(frozen=True, slots=True)
class GeneSet:
    """A line of a GMT file."""

    name: str
    description: str
    genes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PresentSet:
    """A gene set by the genes of an atlas."""

    name: str
    title: str
    """What its column of scores is called: the description where that is words, else the name; never with a slash."""
    members: NDArray[np.int64]
    """Its genes that are present, ascending."""
    num_genes: int
    """All its genes, present or not."""


def read_gmt(path: Path) -> tuple[GeneSet, ...]:
    """All sets of a file.

    Raises
    ------
    DataError
        If the file cannot be read, a line is no set, or a name stands twice; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a GMT file ({error})") from error
    sets: dict[str, GeneSet] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *rest = (cell.strip() for cell in line.split("\t"))
        genes = tuple(dict.fromkeys(gene for gene in rest[1:] if gene))
        if len(rest) + 1 < _FEWEST_COLUMNS or not name or not genes:
            raise DataError(f"{path}, line {number}: no gene set; write name, description and genes, tabs between them")
        if name in sets:
            raise DataError(f"{path}, line {number}: a second set is called {name!r}; give it a name of its own")
        sets[name] = GeneSet(name, rest[0], genes)
    if not sets:
        raise DataError(f"{path}: holds no gene set")
    return tuple(sets.values())


def gmt_text(sets: Sequence[PresentSet], genes: Sequence[str]) -> str:
    """Sets with the genes that are present, as a GMT file; the title stands as the description."""
    return "".join("\t".join([s.name, s.title, *(genes[i] for i in s.members)]) + "\n" for s in sets)


def present_sets(
    sets: Sequence[GeneSet],
    schema: AtlasSchema,
    present_g: NDArray[np.bool_],
    smallest: int,
    largest: int,
    where: object = "the GMT file",
) -> tuple[PresentSet, ...]:
    """The sets with so many genes present, in their order.

    Parameters
    ----------
    present_g
        (g,) which genes of the atlas count.
    where
        What errors name.

    Raises
    ------
    DataError
        If no set is left.
    """
    index = {**schema.aliases, **{gene: number for number, gene in enumerate(schema.genes)}}
    titles = _titles(sets)
    kept, largest_found = [], 0
    for gene_set, title in zip(sets, titles, strict=True):
        found = np.unique([index[gene] for gene in gene_set.genes if gene in index]).astype(np.int64)
        members = found[present_g[found]]
        largest_found = max(largest_found, len(members))
        if smallest <= len(members) <= largest:
            kept.append(PresentSet(gene_set.name, title, members, len(gene_set.genes)))
    if not kept:
        raise DataError(
            f"{where}: none of its {len(sets):,} sets has {smallest} to {largest} genes in the atlas "
            f"(the most of any is {largest_found}); the atlas names genes like {schema.genes[0]!r}, "
            f"the file like {sets[0].genes[0]!r}"
        )
    return tuple(kept)


def _titles(sets: Iterable[GeneSet]) -> list[str]:
    wanted = [s.name if s.description.lower() in _NO_WORDS or "://" in s.description else s.description for s in sets]
    plain = [title.replace("/", "-") for title in wanted]  # a slash would be a folder in a store
    names = [s.name.replace("/", "-") for s in sets]
    times = Counter(plain)
    return [title if times[title] == 1 else name for title, name in zip(plain, names, strict=True)]
