"""The pass that finds every cell's neighbours: pieces of queries against searches that lie in files.

Threads and processes open the same files, so it does not matter who does which piece.
Shapes: n cells, d dimensions, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.errors import ConfigError
from unicoord_atlas.neighbors.knn import (
    MANY_PROBES,
    ExactSearch,
    Metric,
    Search,
    Trial,
    choose_pool,
    choose_probes,
    nearest,
    needs_lists,
    recall,
    true_distances,
)
from unicoord_atlas.neighbors.lists import (
    SEARCHED,
    SEARCHED_APART,
    SEARCHED_CODED,
    ListSearch,
    build_lists,
    coded_lists,
    empty_lists,
    lists_of,
    load_lists,
    put_lists_in_file,
    save_lists,
    search_in_one_thread,
)

from .graph_pass import RunPieces, pieces
from .row_file import MappedRows, RowFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .graph_pass import Rows

    Searches = tuple[tuple[NDArray[np.int64] | None, Search], ...]

_BY_LIST = "by_list.lists"
_QUERIES = 2_048
_TUNED_ON, _MEASURED_ON = 500, 2_000


@dataclass(frozen=True, slots=True)
class Group:
    """Cells that neighbours are taken from: all of them, or those of a batch."""

    members: Path | None
    """File of their rows; None if they are all."""
    lists: Path | None
    """File of their inverted lists; None if all are compared."""
    probes: int = 0
    pool: int = 0
    """Where the lists are of codes: so many of their points are compared; see `neighbors.lists.coded_lists`."""


@dataclass(frozen=True, slots=True)
class KnnTask:
    """All that a process needs to find neighbours."""

    points: Path
    num_points: int
    num_dims: int
    k: int
    """From each group."""
    metric: Metric
    """With "cosine" the points have length 1."""
    groups: tuple[Group, ...]
    order: Path | None = None
    """File of the cells in the order in which their points lie; None if it is the atlas's."""

    def open_points(self) -> MappedRows:
        """(n, d)."""
        return MappedRows(self.points, (self.num_points, self.num_dims), np.float32)


def require_enough(sizes: Mapping[str, int], k: int) -> None:
    """ConfigError if a batch, or the atlas, has too few cells to give each k neighbours beside itself."""
    for name, size in sizes.items():
        if size <= k:
            raise ConfigError(
                f"k = {k}: {name} has {size} cells, so a cell has {size - 1} others there; "
                f"set --k to at most {max(size - 1, 0)}" + (", or merge small batches" if len(sizes) > 1 else "")
            )


def prepare_groups(
    points: RowFile,
    batches: Sequence[NDArray[np.int64]] | None,
    k: int,
    metric: Metric,
    wanted_recall: float,
    seed: int,
) -> KnnTask:
    """Write the members and, where cells are many, the inverted lists of each group beside the points."""
    folder, (num_points, num_dims) = points.path.parent, points.shape
    order = None
    if batches is None and needs_lists(num_points, num_points):
        points, order = _by_lists(points, seed)
    points_nd = points.anywhere()
    rng = np.random.default_rng([seed, 1])
    sample = np.sort(rng.choice(num_points, min(_TUNED_ON, num_points), replace=False))
    groups = []
    for number, members_n in enumerate([None] if batches is None else batches):
        members = None
        if members_n is not None:
            members = folder / f"group{number}.npy"
            np.save(members, members_n)
        if not needs_lists(num_points, num_points if members_n is None else len(members_n)):
            groups.append(Group(members, None))
            continue
        file = folder / (_BY_LIST if members_n is None else f"group{number}.lists")
        if members_n is not None and not file.exists():
            save_lists(build_lists(points_nd[members_n], seed), file)
        trial = Trial.of(points_nd, sample, members_n, k, wanted_recall)
        groups.append(_cheapest(Group(members, file, choose_probes(trial, load_lists(file))), trial, seed))
    return KnnTask(points.path, num_points, num_dims, k, metric, tuple(groups), order)


def _cheapest(group: Group, trial: Trial, seed: int) -> Group:
    """The same group, with lists of codes where many lists have to be looked into and codes tell enough."""
    assert group.lists is not None
    if group.probes < MANY_PROBES or trial.wanted >= 1:  # codes never promise all
        return group
    file = group.lists.with_suffix(".coded")
    if not file.exists():
        inside = trial.points_nd if trial.members_n is None else trial.points_nd[trial.members_n]
        save_lists(coded_lists(load_lists(group.lists), inside, seed), file)
    chosen = choose_pool(trial, load_lists(file), group.probes)
    return group if chosen is None else Group(group.members, file, *chosen)


def _by_lists(points: RowFile, seed: int) -> tuple[RowFile, Path]:
    """The points list after list, and a file of the cells that they are; _BY_LIST numbers them so.

    What is asked for together then looks into the same lists, and its neighbours lie side by side in the file.
    """
    folder = points.path.parent
    sorted_points = RowFile(folder / "by_list.points.f32", *points.shape, np.float32)
    order, lists = folder / "by_list.order.npy", folder / _BY_LIST
    if not lists.exists():  # it comes last
        points_nd = points.anywhere()
        index = empty_lists(points_nd, seed)
        list_n = lists_of(index, points_nd)
        rows_n = np.argsort(list_n, kind="stable")
        np.save(order, rows_n)
        sorted_points.next_row = 0
        for start, stop in pieces(len(rows_n)):
            sorted_points.append(points_nd[rows_n[start:stop]])
        ends_l = np.cumsum(np.bincount(list_n, minlength=index.nlist))
        put_lists_in_file(index, folder / "by_list.entries", sorted_points.anywhere(), ends_l)
        save_lists(index, lists)
    return sorted_points, order


def measured_recall(task: KnnTask, seed: int) -> float:
    """Share of true neighbours among those found, for cells that the search was not tuned on; 1 if all are compared."""
    points_nd = task.open_points()
    rng = np.random.default_rng([seed, 2])
    sample = np.sort(rng.choice(task.num_points, min(_MEASURED_ON, task.num_points), replace=False))
    shares = [
        recall(
            nearest(points_nd, sample, members, replace(search, at_once=SEARCHED_APART), task.k)[1],
            true_distances(points_nd, sample, members, task.k),
        )
        if isinstance(search, ListSearch)
        else 1.0
        for members, search in _searches(task)
    ]
    return float(np.mean(shares))


def write_neighbors(
    task: KnnTask, indices: RowFile, distances: RowFile, run: RunPieces, progress: Callable[[int], object]
) -> None:
    """Append the neighbours of all cells that the files do not have yet."""
    if task.order is None:
        _append_neighbors(task, indices, distances, run, progress)
        return
    found, far = (
        RowFile(file.path.with_name(f"by_list.{file.path.name}"), *file.shape, file.dtype)
        for file in (indices, distances)
    )
    _append_neighbors(task, found, far, run, progress)
    rows_n = np.load(task.order)
    indices.put_in_place(found, rows_n)
    distances.put_in_place(far, rows_n)


def _append_neighbors(
    task: KnnTask, indices: RowFile, distances: RowFile, run: RunPieces, progress: Callable[[int], object]
) -> None:
    """In the order of the task."""
    indices.next_row = distances.next_row = min(indices.next_row, distances.next_row)
    progress(distances.next_row)
    left = pieces(task.num_points, distances.next_row, _QUERIES)
    try:
        for found_nk, distances_nk in run(partial(_neighbors_beside_others, task), left):
            indices.append(found_nk)
            distances.append(distances_nk)
            progress(len(found_nk))
    finally:
        _opened.cache_clear()  # the lists of a finished pass would stay in memory


def _neighbors_beside_others(task: KnnTask, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    if any(group.lists is not None for group in task.groups):
        search_in_one_thread()
    return _neighbors_of_piece(task, rows)


def _neighbors_of_piece(task: KnnTask, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    points_nd = task.open_points()
    queries = np.arange(*rows)
    found = [nearest(points_nd, queries, members, search, task.k) for members, search in _searches(task)]
    rows_nk = np.concatenate([rows for rows, _ in found], axis=1)
    if task.order is not None:
        rows_nk = np.load(task.order, mmap_mode="r")[rows_nk]
    distances_nk = np.concatenate([distances for _, distances in found], axis=1)
    if task.metric == "cosine":
        distances_nk = distances_nk**2 / 2
    order = np.lexsort((rows_nk, distances_nk), axis=1)
    return (
        np.take_along_axis(rows_nk, order, axis=1).astype(np.int32),
        np.take_along_axis(distances_nk, order, axis=1),
    )


def _searches(task: KnnTask) -> Searches:
    """Members and search of each group, opened once a process."""
    files = (task.points, *(file for group in task.groups for file in (group.members, group.lists) if file))
    stats = [file.stat() for file in files]
    return _opened(task, tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats))


@lru_cache(maxsize=1)
def _opened(task: KnnTask, _versions: tuple[tuple[int, ...], ...]) -> Searches:
    # The versions tell the files from former ones of their names: a process of a cluster sees many graphs.
    points_nd = task.open_points()
    opened: list[tuple[NDArray[np.int64] | None, Search]] = []
    for group in task.groups:
        members = None if group.members is None else np.load(group.members)
        if group.lists is not None:
            at_once = SEARCHED_CODED if group.pool else SEARCHED
            opened.append((members, ListSearch(load_lists(group.lists), group.probes, at_once, group.pool)))
        else:
            opened.append((members, ExactSearch(points_nd[:] if members is None else points_nd[members])))
    return tuple(opened)
