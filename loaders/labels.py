"""Labels: obs columns of many sources under one name each, through a label map where there is one."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from unicoord_atlas.errors import DataError
from unicoord_atlas.schema import LabelColumn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

UNLABELLED_WORDS = (
    "", "na", "n/a", "nan", "none", "(none)", "null", "unknown", "unassigned", "unlabelled", "unlabeled", "?",
)  # fmt: skip
_KEYS = ["source", "column", "label"]


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """How one source's obs column fills one label column; values that are not listed are unlabelled."""

    column: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelMap:
    """A label-map file: for each source, the label columns it fills."""

    columns: tuple[str, ...] = ()
    """The label columns, as the header names them."""
    sources: Mapping[str, Mapping[str, ColumnMap]] = field(default_factory=dict)
    """Source, label column: map."""

    def leaves_blank(self, source: str, name: str) -> bool:
        """Whether the map has lines for the source, but no value for this label column of its."""
        return name in self.columns and source in self.sources and name not in self.sources[source]


@dataclass(frozen=True, slots=True)
class LabelRules:
    """Which label columns an atlas gets, and what counts as no label."""

    columns: tuple[str, ...]
    label_map: LabelMap = field(default_factory=LabelMap)
    unlabelled: frozenset[str] = frozenset(UNLABELLED_WORDS)
    """Lower-case words."""
    allow_missing: bool = False
    """A source without a label column is unlabelled, not refused."""

    @classmethod
    def of(
        cls, columns: Sequence[str], map_file: Path | None, unlabelled: Sequence[str] = (), allow_missing: bool = False
    ) -> LabelRules:
        """The wanted columns and then those that only the label map names; `unlabelled` adds to the usual words."""
        label_map = LabelMap() if map_file is None else read_label_map(map_file)
        names = tuple(dict.fromkeys([*columns, *label_map.columns]))
        words = frozenset([*UNLABELLED_WORDS, *(word.strip().lower() for word in unlabelled)])
        return cls(names, label_map, words, allow_missing)


def read_label_map(path: Path) -> LabelMap:
    """Read a label map: a CSV of source, column, label and then any number of label columns to fill.

    Raises
    ------
    DataError
        Naming file, line and what is wrong there.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a label map ({error})") from error
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    if header[:3] != _KEYS or len(header) < 4 or len(set(header)) != len(header):
        raise DataError(
            f"{path}: the first line must be source,column,label,<label columns...>, got {','.join(header)!r}"
        )
    sources: dict[str, dict[str, ColumnMap]] = {}
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{path}: line {number} has {len(row)} cells, the header {len(header)}; quote cells with commas"
            )
        source, column, value = row[:3]
        for name, label in zip(header[3:], row[3:], strict=True):
            filled = sources.setdefault(source, {})
            if not label.strip():
                continue
            column_map = filled.setdefault(name, ColumnMap(column, {}))
            if column_map.column != column:
                raise DataError(f"{path}: line {number}: {name} of {source} is filled by {column_map.column!r} already")
            if column_map.labels.get(value, label) != label:
                raise DataError(f"{path}: line {number}: {value!r} of {source} is mapped to two values of {name}")
            column_map.labels[value] = label  # type: ignore[index]  # a dict until it is handed out
    return LabelMap(tuple(header[3:]), sources)


def labels_of(source: str, path: Path, obs: pd.DataFrame, rules: LabelRules) -> dict[str, pd.Categorical]:
    """Each label column of one source, as texts.

    Raises
    ------
    DataError
        If a column is missing and that is not allowed.
    """
    found = {}
    for name in rules.columns:
        column_map = rules.label_map.sources.get(source, {}).get(name)
        column = name if column_map is None else column_map.column
        if column in obs:
            found[name] = _label(as_texts(obs[column]), column_map, rules.unlabelled)
        elif rules.allow_missing or (column_map is None and rules.label_map.leaves_blank(source, name)):
            found[name] = pd.Categorical.from_codes(np.full(len(obs), -1), categories=pd.Index([], dtype=object))
        else:
            known = ", ".join(map(str, obs.columns)) or "none"
            raise DataError(
                f"{path}: no obs column {column!r} for the label {name!r}; it has: {known}. Map it in --label-map, "
                "or give --allow-missing-labels to leave its cells unlabelled"
            )
    return found


def unseen_values(source: str, obs: pd.DataFrame, rules: LabelRules) -> list[str]:
    """Values that the label map lists for a source and that no cell of it has: perhaps misspelt."""
    unseen = set()
    for column_map in rules.label_map.sources.get(source, {}).values():
        if column_map.column in obs:
            texts = as_texts(obs[column_map.column])
            unseen |= {f"{column_map.column}={v}" for v in set(column_map.labels) - set(texts.categories)}
    return sorted(unseen)


def join_labels(name: str, parts: Sequence[pd.Categorical]) -> tuple[pd.Categorical, LabelColumn]:
    """One label column of the atlas: categories sorted, so that they do not depend on the order of sources."""
    joined = union_categoricals(parts, sort_categories=True)
    codes = np.asarray(joined.codes)
    counts = np.bincount(codes[codes >= 0], minlength=len(joined.categories))
    column = LabelColumn(
        name=name,
        categories=tuple(joined.categories),
        counts=tuple(int(count) for count in counts),
        num_unlabelled=int((codes < 0).sum()),
    )
    return joined, column


def as_texts(values: pd.Series) -> pd.Categorical:
    """Any column as texts; whole numbers read the same whether a source stores them as integers or floats."""
    categories = values.cat if isinstance(values.dtype, pd.CategoricalDtype) else values.astype("category").cat
    return _recoded(categories.codes.to_numpy(), [as_text(value) for value in categories.categories])


def as_text(value: object) -> str:
    """A value as a text: 1.0 is "1", as 1 is."""
    is_whole_float = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if is_whole_float else str(value)  # type: ignore[call-overload]


def _label(texts: pd.Categorical, column_map: ColumnMap | None, unlabelled: frozenset[str]) -> pd.Categorical:
    labels = [text if column_map is None else column_map.labels.get(text) for text in texts.categories]
    kept = [None if label is None or label.strip().lower() in unlabelled else label for label in labels]
    return _recoded(np.asarray(texts.codes), kept)


def _recoded(codes: np.ndarray, new_names: Sequence[str | None]) -> pd.Categorical:
    """A categorical with new category names, several of which may be the same, and none that no cell has."""
    used = np.unique(codes[codes >= 0])
    names = sorted({name for i in used if (name := new_names[i]) is not None})
    place = {name: i for i, name in enumerate(names)}
    new_code = np.array([-1 if name is None else place.get(name, -1) for name in new_names] + [-1], np.int32)
    return pd.Categorical.from_codes(new_code[codes], categories=pd.Index(names, dtype=object))
