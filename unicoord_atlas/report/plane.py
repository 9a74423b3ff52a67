"""Cells on a plane, for pictures.  Shapes: n cells, d dimensions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from unicoord_atlas.errors import ConfigError
from unicoord_atlas.neighbors.knn import ExactSearch, Search, needs_lists
from unicoord_atlas.neighbors.lists import ListSearch, build_lists
from unicoord_atlas.neighbors.query_knn import query_nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PROBES = 8
_AT_ONCE = 16_384
_NEIGHBORS = 15
"""umap's own number, the point itself included."""
_FEW = 4096
"""Of fewer points umap compares all pairs itself."""
MOST_POINTS = 100_000
"""Of so many cells all are drawn; of more, so many at random."""


def drawn_rows(num_cells: int, most: int = MOST_POINTS, seed: int = 0) -> NDArray[np.int64]:
    """Ascending rows of the cells that are drawn: all, or as many as `most` at random."""
    if num_cells <= most:
        return np.arange(num_cells, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(num_cells, most, replace=False)).astype(np.int64)


def umap_of_points(points_nd: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """(n, 2) UMAP of points, with neighbours found here: umap's own search takes half a minute to compile itself.

    Raises
    ------
    ConfigError
        If umap-learn is not installed, or faiss where points are many.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap speaks of Tensorflow and of its own parallel settings
        umap, settings = _umap(), {}
        if len(points_nd) >= _FEW:
            settings["precomputed_knn"] = _neighbors(points_nd, seed)
        places: NDArray[np.float32] = umap.UMAP(_NEIGHBORS, random_state=seed, **settings).fit_transform(points_nd)
    return places


def _neighbors(points_nd: NDArray[np.float32], seed: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(n, k) rows of each point's nearest, itself first, and their distances."""
    search = _search(points_nd, len(points_nd), seed)
    parts = [
        query_nearest(points_nd, points_nd[start : start + _AT_ONCE], search, _NEIGHBORS)
        for start in range(0, len(points_nd), _AT_ONCE)
    ]
    found, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    return found.astype(np.int32), distances


def _search(points_nd: NDArray[np.float32], num_queries: int, seed: int) -> Search:
    if needs_lists(num_queries, len(points_nd)):
        return ListSearch(build_lists(points_nd, seed), _PROBES)
    return ExactSearch(points_nd)


class PointRows(Protocol):
    """(n, d) points, an array or in a file, of which ascending rows are taken."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]: ...


def umap_of_many(points_nd: PointRows, most: int = MOST_POINTS, seed: int = 0) -> NDArray[np.float32]:
    """(n, 2) UMAP of `most` points at random; the others lie between the nearest three of those.

    Raises
    ------
    ConfigError
        If umap-learn is not installed, or faiss where points are many.
    """
    rows = drawn_rows(len(points_nd), most, seed)
    drawn_md = np.ascontiguousarray(points_nd[rows])
    drawn_m2 = umap_of_points(drawn_md, seed)
    if len(rows) == len(points_nd):
        return drawn_m2
    places = np.empty((len(points_nd), 2), np.float32)
    places[rows] = drawn_m2
    others = np.setdiff1d(np.arange(len(points_nd)), rows)
    search = _search(drawn_md, len(others), seed)
    for start in range(0, len(others), _AT_ONCE):
        some = others[start : start + _AT_ONCE]
        found, distances = query_nearest(drawn_md, points_nd[some], search, 3)
        weights = 1 / (distances + 1e-6)
        places[some] = (drawn_m2[found] * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1)[:, None]
    return places


def umap_of_graph(weights: Any, points_nd: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """(n, 2) UMAP of a graph that is there already.

    Parameters
    ----------
    weights
        (n, n) scipy CSR matrix of UMAP's weights: `connectivities` of scanpy and build-graph.
    points_nd
        What the graph was made of; the layout starts from its first two columns.

    Raises
    ------
    ConfigError
        If umap-learn is not installed.
    """
    start = points_nd[:, :2] / np.abs(points_nd[:, :2]).max() * 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        umap = _umap()
        a, b = umap.umap_.find_ab_params(1.0, 0.5)
        places, _ = umap.umap_.simplicial_set_embedding(
            data=points_nd,
            graph=weights.tocoo(),
            n_components=2,
            initial_alpha=1.0,
            a=a,
            b=b,
            gamma=1.0,
            negative_sample_rate=5,
            n_epochs=None,
            init=np.asarray(start, np.float32),
            random_state=np.random.RandomState(seed),  # umap takes no Generator
            metric="euclidean",
            metric_kwds={},
            densmap=False,
            densmap_kwds={},
            output_dens=False,
        )
    return np.asarray(places, np.float32)


def _umap() -> Any:
    try:
        import umap
    except ImportError:
        raise ConfigError("a UMAP needs umap-learn: pip install 'unicoord-atlas[report]'") from None
    return umap
