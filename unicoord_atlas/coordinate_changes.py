"""What is to be changed about cells before they are decoded: asked for by name, then resolved against a reference.

Shapes: n cells, p points of a grid of sweeps.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from .columns import continuous_values, label_codes
from .discrete import discrete_coordinates
from .errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from unicoord_atlas.model.latent import LatentSpec

    from .reference import ReferenceModel
    from .schema import LabelColumn

COLUMN = "@"
"""Begins the name of an obs column where a class or a value is expected."""
_LARGEST = float(np.finfo(np.float32).max)
_JITTER = re.compile(r"\s*([UN])\(\s*([^,\s]+)\s*(?:,\s*([^,\s]+)\s*)?\)\s*")


@dataclass(frozen=True, slots=True)
class Jitter:
    """Noise added to a coordinate: uniform between two numbers, or normal with mean 0."""

    kind: Literal["U", "N"]
    low: float = 0.0
    high: float = 0.0
    """Upper end of a uniform jitter, standard deviation of a normal one."""

    @classmethod
    def parse(cls, text: str) -> Jitter:
        """``U(-0.5,0.5)`` or ``N(0.2)``; UsageError for anything else."""
        found = _JITTER.fullmatch(text)
        wrong = UsageError(f"--jitter {text!r}: write it as U(-0.5,0.5), or as N(0.2) with a standard deviation")
        if found is None:
            raise wrong
        kind, first, second = found.groups()
        try:
            numbers = [float(part) for part in (first, second) if part is not None]
        except ValueError:
            raise wrong from None
        if not all(map(_is_finite, numbers)):
            raise UsageError(f"--jitter {text!r}: its numbers must be finite")
        if kind == "U" and len(numbers) == 2 and numbers[0] <= numbers[1]:
            return cls("U", *numbers)
        if kind == "N" and len(numbers) == 1 and numbers[0] >= 0:
            return cls("N", 0.0, numbers[0])
        raise wrong

    def __str__(self) -> str:
        return f"U({self.low:g},{self.high:g})" if self.kind == "U" else f"N({self.high:g})"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a user asks for, by the names of labels and dimensions."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Class of a discrete coordinate, or ``@column`` of obs; cells whose column is empty keep their own.

    A class of an unsupervised one is a number from 0 on: ``{"unsupervised_discrete_0": "3"}``.
    """
    values: Mapping[str, float | str] = field(default_factory=dict)
    """Value of a continuous coordinate in its label's units, or ``@column``."""
    jitter: Mapping[str, Jitter] = field(default_factory=dict)
    """Added to the value set, else to the label of the same name in obs, else to the encoded mean."""
    sweeps: Mapping[str, str] = field(default_factory=dict)
    """``0:1:21`` of a continuous coordinate, ``B:NK:11`` from class to class of a discrete one; a grid if several."""

    def __bool__(self) -> bool:
        """Whether anything is to be changed."""
        return bool(self.labels or self.values or self.jitter or self.sweeps)


@dataclass(frozen=True, slots=True)
class Sweep:
    """The points of one sweep: a value, or weights of the categories, for each."""

    name: str
    titles: tuple[float, ...] | tuple[str, ...]
    values: NDArray[np.float32]
    """(p,) values, or (p, k) weights."""


@dataclass(frozen=True, slots=True)
class ResolvedChanges:
    """Changes as numbers, one entry a cell of the file; by the number of the dimension."""

    codes: Mapping[int, NDArray[np.int32]]
    """(n,) category, -1 where the cell keeps its own."""
    values: Mapping[int, NDArray[np.float32]]
    """(n,) value, NaN where the cell keeps its own."""
    jitter: Mapping[int, Jitter]
    sweeps: tuple[Sweep, ...] = ()

    @property
    def grid(self) -> list[tuple[int, ...]]:
        """Number of the point of each sweep, for all combinations; one empty combination without sweeps."""
        return list(itertools.product(*(range(len(sweep.titles)) for sweep in self.sweeps)))


def resolve_changes(reference: ReferenceModel, changes: Changes, obs: pd.DataFrame) -> ResolvedChanges:
    """Codes and values of all that is to be set.

    Raises
    ------
    UsageError
        For a label, class, dimension or column that is not there; it lists what can be set.
    DataError
        For a column that holds a class that the reference lacks, or no numbers.
    """
    latent, n = reference.config.network.latent, len(obs)
    twice = sorted(set(changes.sweeps) & (set(changes.labels) | set(changes.values) | set(changes.jitter)))
    if twice:
        raise UsageError(f"--sweep {twice[0]}=...: {twice[0]!r} is set otherwise, too; leave one of them out")
    coordinates, codes = discrete_coordinates(reference.config), {}
    for name, asked in changes.labels.items():
        number = _discrete(coordinates, name)
        codes[number] = _codes(coordinates[number], asked, obs)
    values = {
        _continuous(latent, name, "--set-value"): _values(name, asked, obs) for name, asked in changes.values.items()
    }
    jitter = {}
    for name, noise in changes.jitter.items():
        number = _continuous(latent, name, "--jitter")
        jitter[number] = noise
        if number not in values:
            known = name in obs and latent.continuous[number].supervised
            values[number] = _column(name, obs) if known else np.full(n, np.nan, np.float32)
    return ResolvedChanges(codes, values, jitter, tuple(_sweep(reference, *item) for item in changes.sweeps.items()))


def _discrete(coordinates: Sequence[LabelColumn], name: str) -> int:
    names = [label.name for label in coordinates]
    if name not in names:
        raise UsageError(f"--set-label {name}=...: no such label; it can be one of: {', '.join(names) or 'none'}")
    return names.index(name)


def _continuous(latent: LatentSpec, name: str, option: str) -> int:
    names = [dimension.name for dimension in latent.continuous]
    if name not in names:
        supervised = names[: latent.num_supervised_continuous]
        more = f", or one of {names[len(supervised)]} ... {names[-1]}" if len(names) > len(supervised) else ""
        raise UsageError(
            f"{option} {name}=...: no such continuous coordinate; "
            f"it can be one of: {', '.join(supervised) or 'none with a label'}{more}"
        )
    return names.index(name)


def _codes(label: LabelColumn, asked: str, obs: pd.DataFrame) -> NDArray[np.int32]:
    name = label.name
    if not asked.startswith(COLUMN):
        return np.broadcast_to(np.int32(label.code(asked)), (len(obs),))
    column = asked.removeprefix(COLUMN)
    if column not in obs:
        raise UsageError(
            f"--set-label {name}={asked}: obs has no column {column!r}; it has: {', '.join(map(str, obs.columns))}"
        )
    renamed = obs[[column]].rename(columns={column: name})
    codes = label_codes(renamed, label)
    unknown = obs[column][(codes < 0) & obs[column].notna().to_numpy()]
    if len(unknown):
        raise DataError(f"--set-label {name}={asked}, cell {unknown.index[0]}: {_why(label, str(unknown.iloc[0]))}")
    return codes


def _why(label: LabelColumn, category: str) -> str:
    try:
        label.code(category)
    except UsageError as error:
        return str(error)
    return f"{category!r} cannot be read"


def _values(name: str, asked: float | str, obs: pd.DataFrame) -> NDArray[np.float32]:
    if isinstance(asked, str) and asked.startswith(COLUMN):
        return _column(asked.removeprefix(COLUMN), obs)
    try:
        number = float(asked)
    except ValueError:
        raise UsageError(f"--set-value {name}={asked}: {asked!r} is no number; write @COLUMN for a column") from None
    if not _is_finite(number):
        raise UsageError(f"--set-value {name}={asked}: it must be finite")
    return np.broadcast_to(np.float32(number), (len(obs),))


def _is_finite(number: float) -> bool:
    """Also as the float32 that it becomes."""
    return abs(number) <= _LARGEST


def _column(name: str, obs: pd.DataFrame) -> NDArray[np.float32]:
    _, values = continuous_values(obs, {}, [name])
    return values[:, 0]


def _sweep(reference: ReferenceModel, name: str, text: str) -> Sweep:
    first, last, count = _ends(name, text)
    label = next((each for each in discrete_coordinates(reference.config) if each.name == name), None)
    if label is not None:
        ends = np.eye(len(label.categories), dtype=np.float32)[[label.code(first), label.code(last)]]
        share = np.linspace(0, 1, count, dtype=np.float32)
        titles = tuple(f"{first}:{last}:{part:.4g}" for part in share.tolist())
        return Sweep(name, titles, (1 - share)[:, None] * ends[0] + share[:, None] * ends[1])
    _continuous(reference.config.network.latent, name, "--sweep")
    try:
        numbers = float(first), float(last)
    except ValueError:
        raise UsageError(f"--sweep {name}={text}: {first!r} or {last!r} is no number") from None
    if not all(map(_is_finite, numbers)):
        raise UsageError(f"--sweep {name}={text}: its ends must be finite")
    values = np.linspace(*numbers, count)
    return Sweep(name, tuple(float(f"{value:.6g}") for value in values.tolist()), values.astype(np.float32))


def _ends(name: str, text: str) -> tuple[str, str, int]:
    parts = text.split(":")
    if len(parts) != 3 or not parts[2].strip().isdigit() or int(parts[2]) < 2:
        raise UsageError(f"--sweep {name}={text}: write it as FIRST:LAST:POINTS with 2 points or more: 0:1:21")
    return parts[0].strip(), parts[1].strip(), int(parts[2])
