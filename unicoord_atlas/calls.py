"""From probabilities to a call: the class, its parent where the class is not sure, or none at all.

Shapes: n cells, k categories, p categories of a parent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .schema import LabelColumn

UNASSIGNED = "unassigned"
UNSURE, NOVEL = "unsure", "novel"
"""Why a cell is unassigned: no level is sure enough, or it is too strange for any."""


class ParentShares(BaseModel):
    """Which parent category each category of a label belongs to, as a reference stores it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parent: str
    child: str
    shares: tuple[tuple[float, ...], ...]
    """Share of each child that belongs to each parent; see `hierarchy.Hierarchy`."""

    @model_validator(mode="after")
    def _rectangular(self) -> ParentShares:
        if len({len(row) for row in self.shares}) > 1:
            raise ValueError(f"{self.parent} > {self.child}: rows of different lengths")
        return self


@dataclass(frozen=True, slots=True)
class CallRule:
    """When a prediction becomes a call."""

    min_confidence: float = 0.5
    """A class of less probability is not called; its parent may be."""
    max_novelty_p: float = 0.01
    """Cells whose novelty_p is below it are not called; 0 turns this off."""

    def __post_init__(self) -> None:
        for name, value in (("--min-confidence", self.min_confidence), ("--max-novelty-p", self.max_novelty_p)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} {value}: it is a probability, between 0 and 1")


class Caller:
    """Calls of one label: the class, else the nearest ancestor that is sure enough."""

    def __init__(self, labels: Sequence[LabelColumn], trees: Sequence[ParentShares], name: str, rule: CallRule) -> None:
        self._rule = rule
        columns = {label.name: label for label in labels}
        self._chain: list[tuple[str, NDArray[np.float32] | None]] = [(name, None)]
        """Levels from the label upwards, each with the (k, p) shares of the level below in it."""
        above = {tree.child: tree for tree in trees}
        while self._chain[-1][0] in above:
            tree = above[self._chain[-1][0]]
            self._chain.append((tree.parent, np.array(tree.shares, np.float32)))
        of_level = [columns[level].categories for level, _ in self._chain]
        self.categories = tuple(dict.fromkeys([*(c for level in of_level for c in level), UNASSIGNED]))
        """Of the calls: those of all levels, and `unassigned`."""
        self.levels = (*(level for level, _ in self._chain), UNSURE, NOVEL)
        position = {category: code for code, category in enumerate(self.categories)}
        self._unassigned = position[UNASSIGNED]  # not the last one if a class is called so, too
        self._codes = [np.array([position[c] for c in level], np.int32) for level in of_level]

    def call(
        self, probabilities_nk: NDArray[np.float32], novelty_p_n: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
        """(n,) codes under `categories` and (n,) codes under `levels`.

        A parent's probability is the sum of its children's.
        """
        n = len(probabilities_nk)
        calls = np.full(n, self._unassigned, np.int32)
        levels = np.full(n, self.levels.index(UNSURE), np.int8)
        open_n = np.ones(n, np.bool_)
        if novelty_p_n is not None:
            novel_n = novelty_p_n < self._rule.max_novelty_p
            levels[novel_n] = self.levels.index(NOVEL)
            open_n &= ~novel_n
        probabilities = probabilities_nk
        for number, (_, shares_kp) in enumerate(self._chain):
            probabilities = probabilities if shares_kp is None else probabilities @ shares_kp
            sure_n = open_n & (probabilities.max(axis=1) >= self._rule.min_confidence)
            calls[sure_n] = self._codes[number][probabilities.argmax(axis=1)[sure_n]]
            levels[sure_n] = number
            open_n &= ~sure_n
        return calls, levels
