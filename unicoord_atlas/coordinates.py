"""Coordinates of cells as an AnnData without X: what export-latents and map-query write."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anndata
import numpy as np
import pandas as pd
from tqdm import tqdm

from .allocator import give_back_freed_memory
from .calls import Caller, CallRule
from .coordinate_facts import facts_of
from .discrete import unsupervised_discrete
from .encode import softmax
from .lineage import Tie, consistent_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from .batch import MiniBatch
    from .reference import Annotation, ReferenceModel
    from .schema import LabelColumn

NOVELTY_COLUMNS = ("novelty", "novelty_p")
_ROWS = 65_536
"""Of a table that is read from a file at a time."""
_ENTRIES = 1 << 20
"""Of cells that are encoded together."""
_BATCHES = 8
"""After which freed memory is given back."""
_COLUMNS = 8
"""Of a table that are in memory together: its file is read once for each so many."""


class Rows(Protocol):
    """A table that gives consecutive rows: an array, or one in a file."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


class Table(Protocol):
    """(n, width) float32, filled from the first row to the last."""

    def append(self, values: NDArray[np.float32]) -> None:
        """Put the next rows."""
        ...


class MemoryTable:
    """A table in memory."""

    def __init__(self, _key: str, num_rows: int, width: int) -> None:
        self.values = np.zeros((num_rows, width), np.float32)
        self._next = 0

    def append(self, values: NDArray[np.float32]) -> None:
        """Put the next rows."""
        self.values[self._next : self._next + len(values)] = values
        self._next += len(values)


def coordinates(
    reference: ReferenceModel,
    batches: Iterable[MiniBatch],
    obs: pd.DataFrame,
    probabilities: bool,
    title: str,
    *,
    rule: CallRule | None = None,
    measured_g: NDArray[np.bool_] | None = None,
    consistent: bool = False,
) -> anndata.AnnData:
    """Encode all cells of `batches` into an AnnData in memory; see `annotated`.

    Returns
    -------
    AnnData without X: obs of `annotated`, obsm X_unicoord, X_unicoord_bio and, on request, X_unicoord_<label>, which
    unsupervised discrete dimensions have, too; uns["unicoord"] names the dimensions.
    """
    tables: dict[str, MemoryTable] = {}

    def make(key: str, num_rows: int, width: int) -> MemoryTable:
        tables[key] = MemoryTable(key, num_rows, width)
        return tables[key]

    table = annotated(
        reference,
        batches,
        obs,
        make,
        title,
        probabilities=probabilities,
        rule=rule,
        measured_g=measured_g,
        consistent=consistent,
    )
    obsm: dict[str, object] = {key: part.values for key, part in tables.items()}
    if tables:
        named = named_columns(reference, tables["X_unicoord"].values, table.index)
        obsm |= {key: columns.frame() for key, columns in named.items()}
    return anndata.AnnData(obs=table, obsm=obsm, uns={"unicoord": facts_of(reference)})


def annotated(
    reference: ReferenceModel,
    batches: Iterable[MiniBatch],
    obs: pd.DataFrame,
    make_table: Callable[[str, int, int], Table],
    title: str,
    *,
    probabilities: bool = False,
    rule: CallRule | None = None,
    measured_g: NDArray[np.bool_] | None = None,
    consistent: bool = False,
) -> pd.DataFrame:
    """Encode all cells of `batches`, which come in the order of `obs`; coordinates go to tables as they are made.

    Parameters
    ----------
    make_table
        Makes the table of a key of obsm, of its number of rows and its width.
    probabilities
        Also tables X_unicoord_<label> with the probability of every class, and the same of unsupervised discrete
        dimensions.
    rule
        Also calls by this rule, and novelty where the reference knows it.
    measured_g
        Which genes the cells' source measured: see `ReferenceModel.annotate`.
    consistent
        Labels of tied levels are decoded together, so that each lies below its parent, if that has children.

    Returns
    -------
    obs with ``<label>_predicted`` and ``<label>_confidence``, and ``<dimension>_predicted`` of unsupervised discrete
    ones: a number; with a rule also ``<label>_call``, ``<label>_call_level``, ``novelty`` and ``novelty_p``.
    """
    clusters = unsupervised_discrete(reference.config)
    columns = _Columns(reference, len(obs), rule, reference.config.ties if consistent else ())
    tables: dict[str, Table] = {}
    with tqdm(total=len(obs), desc=title, unit="cell", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for number, part in enumerate(
            reference.annotate(_small(reference, batches), measured_g, rule is not None), start=1
        ):
            for key, values in _tables(part, clusters if probabilities else None).items():
                if key not in tables:
                    tables[key] = make_table(key, len(obs), values.shape[1])
                tables[key].append(values)
            columns.put(part)
            bar.update(len(part.encoded.rows))
            if number % _BATCHES == 0:
                give_back_freed_memory()  # batches of different sizes leave gaps, which add up to half a gigabyte
    return columns.added_to(obs)


def _small(reference: ReferenceModel, batches: Iterable[MiniBatch]) -> Iterable[MiniBatch]:
    """The host's memory follows the counts of a minibatch, and neighbours of a cell with many have many."""
    if reference.device.type != "cpu":
        return batches
    return (part for batch in batches for part in batch.in_parts(_ENTRIES))


class _Columns:
    """obs columns that are filled batch by batch."""

    def __init__(
        self, reference: ReferenceModel, num_rows: int, rule: CallRule | None, ties: tuple[Tie, ...] = ()
    ) -> None:
        self._ties = ties
        self._labels = reference.config.labels
        self._clusters = unsupervised_discrete(reference.config)
        names = [label.name for label in self._labels]
        self._codes = {
            name: np.zeros(num_rows, np.int32) for name in (*names, *(each.name for each in self._clusters.values()))
        }
        self._confidence = {name: np.zeros(num_rows, np.float32) for name in names}
        self._callers = (
            {name: Caller(self._labels, reference.config.parent_shares, name, rule) for name in names} if rule else {}
        )
        self._calls = {name: np.zeros(num_rows, np.int32) for name in self._callers}
        self._levels = {name: np.zeros(num_rows, np.int8) for name in self._callers}
        self._novelty = {name: np.zeros(num_rows, np.float32) for name in NOVELTY_COLUMNS if rule and reference.novelty}

    def put(self, part: Annotation) -> None:
        """Fill the rows of a minibatch."""
        rows = part.encoded.rows
        chosen = consistent_codes(part.probabilities, self._ties)
        for name, probabilities in part.probabilities.items():
            self._codes[name][rows] = chosen[name]
            self._confidence[name][rows] = np.take_along_axis(probabilities, chosen[name][:, None], axis=1)[:, 0]
        for number, cluster in self._clusters.items():
            self._codes[cluster.name][rows] = part.encoded.logits[number].argmax(axis=1)
        for name, caller in self._callers.items():
            self._calls[name][rows], self._levels[name][rows] = caller.call(part.probabilities[name], part.novelty_p)
        if self._novelty:
            self._novelty["novelty"][rows], self._novelty["novelty_p"][rows] = part.novelty, part.novelty_p

    def added_to(self, obs: pd.DataFrame) -> pd.DataFrame:
        """Obs with all columns; what it had is shared with the given one."""
        added: dict[str, object] = {}
        for label in self._labels:
            name, categories = label.name, list(label.categories)
            added[f"{name}_predicted"] = pd.Categorical.from_codes(self._codes[name], categories)
            added[f"{name}_confidence"] = self._confidence[name]
            if name in self._callers:
                caller = self._callers[name]
                added[f"{name}_call"] = pd.Categorical.from_codes(self._calls[name], list(caller.categories))
                added[f"{name}_call_level"] = pd.Categorical.from_codes(self._levels[name], list(caller.levels))
        for cluster in self._clusters.values():
            classes = pd.Categorical.from_codes(self._codes[cluster.name], list(cluster.categories))
            added[f"{cluster.name}_predicted"] = classes
        added |= self._novelty
        table = with_free_names(obs, [*added, *(NOVELTY_COLUMNS if self._callers else ())])
        for name, values in added.items():
            table[name] = values
        return table


def with_free_names(obs: pd.DataFrame, ours: Iterable[str]) -> pd.DataFrame:
    """The table, its values shared, with own columns of our names called ``<name>_before``.

    So nothing of the cells' own is lost, and what another mapping said of them is not taken for this one's.
    """
    names, new = set(map(str, obs.columns)), {}
    for name in sorted(names & set(ours)):
        new[name] = f"{name}_before"
        while new[name] in names:
            new[name] += "_before"
        names.add(new[name])
    if new:
        print("obs: " + ", ".join(f"{old} is kept as {name}" for old, name in new.items()), file=sys.stderr)
    table = obs.copy(deep=False)
    table.columns = pd.Index([new.get(str(name), name) for name in obs.columns])
    return table


def _tables(part: Annotation, clusters: Mapping[int, LabelColumn] | None) -> dict[str, NDArray[np.float32]]:
    """Tables of obsm; with the probabilities of labels and of these unsupervised dimensions unless it is None."""
    tables = {"X_unicoord": part.encoded.mean.astype(np.float32), "X_unicoord_bio": part.bio}
    if clusters is not None:
        tables |= {f"X_unicoord_{name}": values for name, values in part.probabilities.items()}
        tables |= {f"X_unicoord_{each.name}": softmax(part.encoded.logits[at]) for at, each in clusters.items()}
    return tables


@dataclass(frozen=True)
class NamedColumns:
    """Some columns of a table, with names: what a DataFrame would be, read a few columns at a time."""

    rows: Rows
    cells: pd.Index
    places: Mapping[str, int]
    """Where each is in the table."""

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Names and values, (n,) each."""
        every = list(self.places)
        for first in range(0, len(every), _COLUMNS):
            names = every[first : first + _COLUMNS]
            places = [self.places[name] for name in names]
            values = np.empty((len(names), len(self.cells)), np.float32)
            for start in range(0, len(self.cells), _ROWS):
                values[:, start : start + _ROWS] = self.rows[start : start + _ROWS][:, places].T
            yield from zip(names, values, strict=True)

    def frame(self) -> pd.DataFrame:
        """All of them."""
        return pd.DataFrame(dict(self), self.cells)


def named_columns(reference: ReferenceModel, continuous_nd: Rows, cells: pd.Index) -> dict[str, NamedColumns]:
    """Dimensions that were supervised by an obsm table (X_gene_sets), by its key."""
    place = {name: number for number, name in enumerate(reference.dims)}
    return {
        key: NamedColumns(continuous_nd, cells, {name: place[name] for name in names})
        for key, names in reference.config.tables.items()
    }
