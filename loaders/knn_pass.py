"""The pass that finds every cell's neighbours: pieces of queries against searches that lie in files.

Threads and processes open the same files, so it does not matter who does which piece.
Shapes: n cells, d dimensions, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.errors import ConfigError
from unicoord_atlas.neighbors.knn import (
    ExactSearch,
    ListSearch,
    Metric,
    Search,
    build_lists,
    choose_probes,
    load_lists,
    nearest,
    needs_lists,
    recall,
    rows_by_list,
    save_lists,
    search_in_one_thread,
    true_distances,
)

from .graph_pass import RunPieces, pieces
from .row_file import RowFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .graph_pass import Rows

_QUERIES = 8_192
_TUNED_ON, _MEASURED_ON = 500, 2_000


@dataclass(frozen=True, slots=True)
class Group:
    """Cells that neighbours are taken from: all of them, or those of a batch."""

    members: Path | None
    """File of their rows; None if they are all."""
    lists: Path | None
    """File of their inverted lists; None if all are compared."""
    probes: int = 0


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
    """File of the rows in the order in which they are asked for; None if it is their own."""

    def open_points(self) -> NDArray[np.float32]:
        """(n, d), mapped into memory."""
        return np.memmap(self.points, np.float32, "r", shape=(self.num_points, self.num_dims))


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
    points_nd = points.rows()
    rng = np.random.default_rng([seed, 1])
    sample = np.sort(rng.choice(num_points, min(_TUNED_ON, num_points), replace=False))
    groups = []
    for number, members_n in enumerate([None] if batches is None else batches):
        members = None
        if members_n is not None:
            members = folder / f"group{number}.npy"
            np.save(members, members_n)
        inside_nd = points_nd if members_n is None else points_nd[members_n]
        if not needs_lists(num_points, len(inside_nd)):
            groups.append(Group(members, None))
            continue
        file = folder / f"group{number}.lists"
        if not file.exists():
            save_lists(build_lists(inside_nd, seed), file)
        probes = choose_probes(points_nd, sample, members_n, load_lists(file), k, wanted_recall)
        groups.append(Group(members, file, probes))
    order = _order_by_lists(groups[0].lists) if batches is None and groups[0].lists is not None else None
    return KnnTask(points.path, num_points, num_dims, k, metric, tuple(groups), order)


def _order_by_lists(lists: Path) -> Path:
    """File of all rows, list after list: neighbours look into the same lists, which are still in the cache then."""
    path = lists.with_suffix(".order.npy")
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        np.save(partial, rows_by_list(load_lists(lists)))
        partial.replace(path)
    return path


def measured_recall(task: KnnTask, seed: int) -> float:
    """Share of true neighbours among those found, for cells that the search was not tuned on; 1 if all are compared."""
    points_nd = task.open_points()
    rng = np.random.default_rng([seed, 2])
    sample = np.sort(rng.choice(task.num_points, min(_MEASURED_ON, task.num_points), replace=False))
    shares = [
        recall(
            nearest(points_nd, sample, members, search, task.k)[1], true_distances(points_nd, sample, members, task.k)
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
    for found_nk, distances_nk in run(partial(_neighbors_beside_others, task), left):
        indices.append(found_nk)
        distances.append(distances_nk)
        progress(len(found_nk))
    _searches.cache_clear()  # the lists of a finished pass would stay in memory


def _neighbors_beside_others(task: KnnTask, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    if any(group.lists is not None for group in task.groups):
        search_in_one_thread()
    return _neighbors_of_piece(task, rows)


def _neighbors_of_piece(task: KnnTask, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    points_nd = task.open_points()
    queries = np.arange(*rows) if task.order is None else np.load(task.order, mmap_mode="r")[slice(*rows)]
    found = [nearest(points_nd, queries, members, search, task.k) for members, search in _searches(task)]
    rows_nk = np.concatenate([rows for rows, _ in found], axis=1)
    distances_nk = np.concatenate([distances for _, distances in found], axis=1)
    if task.metric == "cosine":
        distances_nk = distances_nk**2 / 2
    order = np.lexsort((rows_nk, distances_nk), axis=1)
    return (
        np.take_along_axis(rows_nk, order, axis=1).astype(np.int32),
        np.take_along_axis(distances_nk, order, axis=1),
    )


@lru_cache(maxsize=1)
def _searches(task: KnnTask) -> tuple[tuple[NDArray[np.int64] | None, Search], ...]:
    """Members and search of each group, opened once a process."""
    points_nd = task.open_points()
    opened: list[tuple[NDArray[np.int64] | None, Search]] = []
    for group in task.groups:
        members = None if group.members is None else np.load(group.members)
        if group.lists is not None:
            opened.append((members, ListSearch(load_lists(group.lists), group.probes)))
        else:
            opened.append((members, ExactSearch(points_nd if members is None else points_nd[members])))
    return tuple(opened)
