"""obs columns to codes and values.  Shapes: N cells of a store, l label columns, c continuous columns."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from .errors import DataError, UsageError
from .schema import UNLABELLED, LabelColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray


class Columns(Protocol):
    """A table by its columns: a DataFrame, or one that is read as it is asked for."""

    @property
    def columns(self) -> Iterable[Any]:
        """Their names."""
        ...

    def __getitem__(self, name: Any, /) -> Any:
        """(N,) values of one."""
        ...


def label_codes(obs: pd.DataFrame, column: LabelColumn) -> NDArray[np.int32]:
    """(N,) code of each cell under the column's categories, -1 where missing or unknown to the column."""
    values = require_column(obs, column.name)
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype("string").astype("category")
    position = {category: code for code, category in enumerate(column.categories)}
    # One look-up a category, not a cell; the last entry answers for code -1, which is missing.
    new_codes = np.array([position.get(str(c), UNLABELLED) for c in values.cat.categories] + [UNLABELLED], np.int32)
    codes: NDArray[np.int32] = new_codes[values.cat.codes.to_numpy()]
    return codes


def label_column(obs: pd.DataFrame, name: str) -> LabelColumn:
    """The label column of this name as it stands in obs, categories sorted by name."""
    values = require_column(obs, name).astype("string")
    counts = values.value_counts().sort_index()
    return LabelColumn(
        name=name,
        categories=tuple(str(c) for c in counts.index),
        counts=tuple(int(n) for n in counts),
        num_unlabelled=int(values.isna().sum()),
    )


def continuous_values(
    obs: pd.DataFrame, obsm: Mapping[str, Columns], names: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names and values (N, c) of continuous columns: "time" is obs["time"], "obsm:KEY" is every column of obsm[KEY].

    Missing values are NaN.  DataError names a column that is not numeric, UsageError one that is not there.
    """
    columns: list[tuple[str, Callable[[], Any]]] = []
    for name in names:
        if name.startswith("obsm:"):
            table = obsm[name.removeprefix("obsm:")]
            columns += [(str(title), partial(table.__getitem__, title)) for title in table.columns]
        else:
            columns.append((name, partial(_numbers, require_column(obs, name))))
    values_nc = np.empty((len(obs), len(columns)), np.float32)
    for number, (_, read) in enumerate(columns):  # one at a time: together they would be there twice
        values_nc[:, number] = pd.Series(read()).to_numpy(np.float32, na_value=np.nan)
    return tuple(title for title, _ in columns), values_nc


def require_column(obs: pd.DataFrame, name: str) -> pd.Series:
    """The column of this name; UsageError lists what there is."""
    if name not in obs:
        raise UsageError(f"obs has no column {name!r}; it has: {', '.join(map(str, obs.columns))}")
    return obs[name]


def _numbers(values: pd.Series) -> NDArray[np.float32]:
    plain = values.astype(object) if isinstance(values.dtype, pd.CategoricalDtype) else values
    numbers = pd.to_numeric(plain, errors="coerce")
    strange = plain[numbers.isna() & plain.notna()]
    if len(strange):
        raise DataError(
            f"continuous column {values.name!r}: {strange.iloc[0]!r} (cell {strange.index[0]}) is no number; "
            "use it as a label with --discrete, or ingest it as numbers"
        )
    result: NDArray[np.float32] = numbers.to_numpy(np.float32, na_value=np.nan)
    if np.isinf(result).any():
        raise DataError(
            f"continuous column {values.name!r}: infinite (cell {values.index[int(np.isinf(result).argmax())]})"
        )
    return result
