"""Labels of several levels together: decoded so that they agree, and measured as a tree.

Shapes: n cells, k categories of a level, m categories of all levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from .errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from .hierarchy import Hierarchy

_LEAST = 1e-30


Level = TypeVar("Level", "Tie", "Hierarchy")


class Tie(BaseModel):
    """A level and the next finer one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parent: str
    child: str
    parents: tuple[tuple[int, ...], ...]
    """Codes of the parents of each child category: one, or several."""

    @classmethod
    def of(cls, parent: str, child: str, shares_kp: Iterable[Sequence[float]]) -> Tie:
        """Which shares are not 0."""
        rows = tuple(tuple(np.flatnonzero(row).tolist()) for row in shares_kp)
        return cls(parent=parent, child=child, parents=rows)

    def allowed_kp(self, num_parents: int) -> NDArray[np.bool_]:
        """(k, p) whether a child may stand below a parent."""
        allowed = np.zeros((len(self.parents), num_parents), np.bool_)
        for code, parents in enumerate(self.parents):
            allowed[code, list(parents)] = True
        return allowed


def consistent_codes(
    probabilities: Mapping[str, NDArray[np.float32]], ties: Sequence[Tie]
) -> dict[str, NDArray[np.intp]]:
    """(n,) code of each level: of all choices in which each child lies below its parent, the most probable one.

    Levels that are not tied keep their arg-max.  From the finest level upwards, a category's best is its own
    log-probability plus those of the best allowed categories below; then the choice is read off from the top.  A
    category that no child belongs to leaves the level below its arg-max: it would be out of reach otherwise.

    Raises
    ------
    ConfigError
        If a level has two parents: there is no one top to begin from.
    """
    above: dict[str, Tie] = {}
    for tie in ties:
        if tie.child in above:
            both = f"{above[tie.child].parent!r} and {tie.parent!r}"
            raise ConfigError(f"{tie.child!r} is tied to {both}, so no level is the top; leave out --consistent")
        above[tie.child] = tie
    best = {name: np.log(np.maximum(values, _LEAST)) for name, values in probabilities.items()}
    in_order = finest_first(ties)
    choice: dict[str, NDArray[np.intp]] = {}
    for tie in in_order:
        allowed = _choices(tie, best[tie.parent].shape[1])
        below_np = np.stack([np.where(column, best[tie.child], -np.inf).max(axis=1) for column in allowed.T], axis=1)
        best[tie.parent] = best[tie.parent] + below_np
    for name in probabilities:
        if name not in above:
            choice[name] = best[name].argmax(axis=1)
    for tie in reversed(in_order):
        allowed = _choices(tie, best[tie.parent].shape[1])
        choice[tie.child] = np.where(allowed.T[choice[tie.parent]], best[tie.child], -np.inf).argmax(axis=1)
    return {name: choice[name] for name in probabilities}


def _choices(tie: Tie, num_parents: int) -> NDArray[np.bool_]:
    """(k, p) which children may be chosen with a parent: those below it; any, where none is."""
    allowed_kp = tie.allowed_kp(num_parents)
    choices_kp: NDArray[np.bool_] = allowed_kp | ~allowed_kp.any(axis=0)
    return choices_kp


def agreement(child_codes: NDArray[np.integer], parent_codes: NDArray[np.integer], tie: Tie) -> float:
    """Share of cells whose child lies below their parent."""
    allowed = tie.allowed_kp(int(max(parent_codes.max(initial=0), max(map(max, tie.parents)))) + 1)
    return float(allowed[child_codes, parent_codes].mean())


def hierarchical_f1(
    true_n: NDArray[np.integer], predicted_n: NDArray[np.integer], chain: Sequence[Tie], num_categories: Sequence[int]
) -> float:
    """F1 of the sets of a label and all its ancestors, over all cells together.

    Parameters
    ----------
    true_n, predicted_n
        Codes of the finest level.
    chain
        From the finest level upwards.
    num_categories
        Of the parent of each tie.

    Source: Kiritchenko et al. 2006, "Learning and evaluation in the presence of class hierarchies".
    """
    lineage_km = np.eye(len(chain[0].parents), dtype=np.bool_)
    level = lineage_km
    for tie, num_parents in zip(chain, num_categories, strict=True):
        level = level @ tie.allowed_kp(num_parents)
        lineage_km = np.concatenate([lineage_km, level], axis=1)
    true_nm, predicted_nm = lineage_km[true_n], lineage_km[predicted_n]
    return float(2 * (true_nm & predicted_nm).sum() / (true_nm.sum() + predicted_nm.sum()))


def chain_above(name: str, ties: Sequence[Tie]) -> list[Tie]:
    """Ties from a level upwards; of two parents the first."""
    chain: list[Tie] = []
    while tie := next((tie for tie in ties if tie.child == name), None):
        chain.append(tie)
        name = tie.parent
    return chain


def finest_first(ties: Sequence[Level]) -> list[Level]:
    """Each tie after all ties below its child.

    Raises
    ------
    ConfigError
        If they go round in a circle.
    """
    left, ordered = list(ties), list[Level]()
    while left:
        ready = [tie for tie in left if not any(other.parent == tie.child for other in left)]
        if not ready:
            raise ConfigError(f"latent.hierarchy goes round in a circle: {', '.join(t.child for t in left)}")
        ordered += ready
        left = [tie for tie in left if tie not in ready]
    return ordered
