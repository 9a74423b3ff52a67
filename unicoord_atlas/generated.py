"""Generated cells as an AnnData: their obs, what they were made from, and all of them in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from .discrete import discrete_coordinates
from .errors import DataError, UsageError
from .generate import Generation, generate
from .memory import AnnDataCells
from .points import between as points_between
from .points import encode_points
from .query import MIN_COVERAGE, QueryBatches, require_coverage
from .seeds import choose_seeds
from .version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from .generate import Generated
    from .points import Points
    from .query import Cells
    from .reference import ReferenceModel

BATCH = 256


class GeneratedObs:
    """Collects what is known of generated cells while they are written."""

    def __init__(self, reference: ReferenceModel) -> None:
        self._categories = {each.name: list(each.categories) for each in discrete_coordinates(reference.config)}
        self._rows: list[NDArray[np.int64]] = []
        self._columns: dict[str, list[Any]] = {}

    def add(self, part: Generated) -> None:
        """Take the next cells."""
        self._rows.append(part.rows)
        for name, values in {**part.coordinates, **part.titles}.items():
            self._columns.setdefault(name, []).append(values)

    def table(self, obs: pd.DataFrame) -> pd.DataFrame:
        """The obs of the cells they were made from, with ``<coordinate>_generated`` for each coordinate that was set.

        The points of a sweep are told apart by a number behind the name of the cell.
        """
        rows = np.concatenate(self._rows) if self._rows else np.zeros(0, np.int64)
        table = obs.iloc[rows].copy()
        if len(rows) > len(obs):
            number = pd.Series(rows).groupby(rows).cumcount().astype(str).to_numpy()
            table.index = pd.Index(table.index.astype(str) + "-" + number)
        for name, parts in self._columns.items():
            values = np.concatenate([np.asarray(part) for part in parts])
            if name in self._categories and values.dtype.kind in "iu":
                table[f"{name}_generated"] = pd.Categorical.from_codes(values, categories=self._categories[name])
            else:
                table[f"{name}_generated"] = pd.Categorical(values) if values.dtype.kind == "U" else values
        return table


def provenance(how: Generation, source: Mapping[str, Any]) -> dict[str, Any]:
    """What uns["unicoord"] says of how cells were made, in types that every AnnData file holds."""
    changes = how.changes
    depth = {"depth": how.depth} if how.depth is not None else {}
    return {
        **source,
        "set_label": dict(changes.labels),
        "set_value": {name: str(value) for name, value in changes.values.items()},
        "jitter": {name: str(jitter) for name, jitter in changes.jitter.items()},
        "sweep": dict(changes.sweeps),
        "exact": how.exact,
        "sample": how.sample,
        "seed": how.seed,
        "values": "counts" if how.counts else "log-normalized",
        "min_value": how.min_value,
        "version": __version__,
        **depth,
    }


def also_like(how: Generation, like: Mapping[str, str]) -> Generation:
    """Cells from seeds with a label get this label, unless it is set otherwise."""
    swept = how.changes.sweeps
    labels = {**{name: category for name, category in like.items() if name not in swept}, **how.changes.labels}
    return replace(how, changes=replace(how.changes, labels=labels))


def two_cells(obs: pd.DataFrame, between: tuple[str, str], steps: int, where: object) -> list[int]:
    """Positions of the cells that a way of so many steps begins and ends with.

    Raises
    ------
    UsageError
        For a way of less than two steps.
    DataError
        For a name that no cell has; it names `where` the cells are.
    """
    if steps < 2:
        raise UsageError(f"--steps {steps}: two cells are two steps already")
    unknown = [name for name in between if name not in obs.index]
    if unknown:
        raise DataError(f"{where}: has no cell {unknown[0]!r}; its first is {next(iter(obs.index), None)!r}")
    return [int((obs.index == name).argmax()) for name in between]


def way_between(reference: ReferenceModel, both: Cells, steps: int) -> tuple[Points, pd.DataFrame]:
    """Points from the first of two cells to the second, ends included, and their obs: ``share`` of the way."""
    batches = QueryBatches(both, reference.schema, reference.normalization)
    (ends,) = encode_points(reference.model, batches, reference.device)
    shares = [number / (steps - 1) for number in range(steps)]
    obs = pd.DataFrame({"share": shares}, index=[f"between-{number}" for number in range(steps)])
    return points_between(ends.take(ends.rows[:1]), ends.take(ends.rows[1:]), steps), obs


@dataclass(frozen=True)
class Start:
    """Where generation starts from."""

    points: Iterable[Points]
    obs: pd.DataFrame
    facts: Mapping[str, Any]
    """For the provenance."""
    how: Generation


def start_of(
    reference: ReferenceModel,
    cells: Cells,
    obs: pd.DataFrame,
    how: Generation,
    between: tuple[str, str] | None,
    steps: int,
    picked: Callable[[list[int]], Cells],
    min_coverage: float,
) -> Start:
    """All of some cells, or the way from one of them to another, which `picked` reads.

    Raises
    ------
    UsageError, DataError
        As `two_cells`; DataError also if the cells' genes carry less of the reference's mean profile.
    """
    batches = QueryBatches(cells, reference.schema, reference.normalization, batch_size=BATCH)
    require_coverage(batches.coverage, cells.path, min_coverage)
    facts = {"profile_share": batches.coverage.profile_share}
    if between is None:
        return Start(encode_points(reference.model, batches, reference.device), obs, facts, how)
    points, made = way_between(reference, picked(two_cells(obs, between, steps, cells.path)), steps)
    return Start([points], made, {**facts, "between": list(between)}, replace(how, reconstruct=True))


def generate_anndata(
    reference: ReferenceModel,
    adata: anndata.AnnData | None,
    how: Generation | None,
    like: Mapping[str, str],
    num: int,
    layer: str | None,
    between: tuple[str, str] | None = None,
    steps: int = 11,
    min_coverage: float = MIN_COVERAGE,
) -> anndata.AnnData:
    """What `ReferenceModel.generate` does: X is CSR over the model's genes, obs as of `GeneratedObs.table`.

    Parameters
    ----------
    between, steps
        Names of two cells of `adata`, and how many cells to make on the way from one to the other, ends included; obs
        then says the ``share`` of the way.

    Raises
    ------
    UsageError
        If neither or both of `adata` and `like` are given, if `num` or `between` is not for what is given, and as
        `generate.generate`, `seeds.choose_seeds` and `two_cells`.
    DataError
        If the cells' genes carry less than `min_coverage` of the reference's mean profile, and as
        `generate.generate`, `seeds.choose_seeds` and `two_cells`.
    """
    how = how or Generation()
    if (adata is None) == (not like):
        raise UsageError("generate: give either cells to start from, or `like` for new ones")
    if adata is None:
        if between is not None:
            raise UsageError("generate: `between` names two cells, so give the AnnData that holds them")
        points, obs = choose_seeds(reference, like, num, how.seed)
        start = Start([points], obs, {"like": dict(like)}, also_like(how, like))
    elif num != 1:
        raise UsageError("generate: `num` is for `like`; of an AnnData each cell is taken")
    else:
        input = reference.normalization.input
        cells = AnnDataCells(adata, layer, input)

        def picked(rows: list[int]) -> AnnDataCells:
            return AnnDataCells(adata[rows], layer, input)

        start = start_of(reference, cells, adata.obs, how, between, steps, picked, min_coverage)
    collected, blocks = GeneratedObs(reference), []
    for part in generate(reference, start.points, start.how, start.obs):
        collected.add(part)
        shape = (len(part.rows), len(reference.own_genes))
        blocks.append(sp.csr_matrix((part.block.data, part.block.indices, part.block.indptr), shape=shape))
    return anndata.AnnData(
        sp.vstack(blocks, format="csr"),
        obs=collected.table(start.obs),
        var=pd.DataFrame(index=list(reference.own_genes)),
        uns={"unicoord": provenance(start.how, start.facts)},
    )
