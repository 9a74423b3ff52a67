"""Points in inverted lists (faiss IVF): a query looks into those whose centres are nearest.

The lists may lie in a file, of which no more is in memory than is looked at.
Shapes: m queries, n points, d dimensions, l lists.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unicoord_atlas.errors import ConfigError, DataError

from .space_order import split_order

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .knn import Points

_LISTS_PER_ROOT = 2.0
_POINTS_PER_LIST = 64
_BLOCK = 1 << 16
"""Points that are read from a file together."""
SEARCHED, SEARCHED_APART = 512, 4
"""Queries after which the pages of lists in a file are given back: of neighbours, and of a sample from everywhere."""
SEARCHED_CODED = 64
"""Queries that are searched for in codes together: a table for each of a query's lists is in memory meanwhile."""
_CODE_BITS = 4
_ID_BYTES = 8
_POINTS_PER_CODE = 4096
"""Of a dimension, to choose its codes on."""


@dataclass(frozen=True, slots=True)
class ListSearch:
    """Compares a query with the points of the lists whose centres are nearest (faiss IVF)."""

    index: Any
    probes: int
    at_once: int = SEARCHED
    pool: int = 0
    """At least so many candidates: the nearest by their codes are not quite the nearest."""

    def candidates(self, queries_md: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Those of the nearest lists; more than `count` if the pool is larger."""
        self.index.nprobe = self.probes
        count = max(count, self.pool)
        found = np.empty((len(queries_md), count), np.int64)
        for start in range(0, len(queries_md), self.at_once):
            some = slice(start, start + self.at_once)
            found[some] = self.index.search(queries_md[some], count)[1]
            let_go_of_lists(self.index)
        return found


def import_faiss() -> Any:
    """The module; ConfigError if it is not installed."""
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "so many cells need faiss, which is not installed: pip install 'unicoord-atlas[graph]'"
        ) from None
    return faiss


def build_lists(points_nd: Points, seed: int) -> Any:
    """A faiss index of the points in some 2 sqrt(n) lists, the centres found by k-means on a sample."""
    index = empty_lists(points_nd, seed)
    fill_lists(index, points_nd, lists_of(index, points_nd))
    return index


def empty_lists(points_nd: Points, seed: int) -> Any:
    """The same, with no points in it yet."""
    faiss = import_faiss()
    num_points, num_dims = points_nd.shape
    num_lists = max(int(_LISTS_PER_ROOT * num_points**0.5), 1)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(num_dims), num_dims, num_lists)
    index.cp.niter, index.cp.seed, index.cp.min_points_per_centroid = 8, seed + 1, 1
    index.train(_some(points_nd, num_lists * _POINTS_PER_LIST, seed))
    centres_ld = index.quantizer.reconstruct_n(0, num_lists)
    index.quantizer.reset()
    index.quantizer.add(centres_ld[split_order(centres_ld, leaf=1)])  # lists that a query looks into stand together
    return index


def _some(points_nd: Points, count: int, seed: int) -> NDArray[np.float32]:
    """Points drawn without replacement, in their order; all if there are fewer."""
    num_points = points_nd.shape[0]
    chosen = np.sort(np.random.default_rng(seed).choice(num_points, min(num_points, count), replace=False))
    starts = range(0, num_points, _BLOCK)
    parts = np.split(chosen, np.searchsorted(chosen, starts[1:]))
    return np.concatenate(
        [points_nd[start : start + _BLOCK][rows - start] for start, rows in zip(starts, parts, strict=True)]
    )


def coded_lists(index: Any, points_nd: Points, seed: int) -> Any:
    """The lists of an index with codes of 4 bits a dimension in place of the points (faiss IVF PQ fast scan).

    A code is compared in a fraction of the time that a point takes, and its lists are in memory: half a byte a
    dimension and 8 a point.  Worth it where many lists have to be looked into.
    """
    faiss = import_faiss()
    num_points, num_dims = points_nd.shape
    quantizer = faiss.IndexFlatL2(num_dims)
    quantizer.add(index.quantizer.reconstruct_n(0, index.nlist))
    coded = faiss.IndexIVFPQFastScan(quantizer, num_dims, index.nlist, num_dims, _CODE_BITS)
    quantizer.this.disown()
    coded.own_fields = True
    coded.train(_some(points_nd, _POINTS_PER_CODE << _CODE_BITS, seed))
    for start in range(0, num_points, _BLOCK):
        # It looks for the list of each point once more: no fast scan takes lists that are known.
        coded.add(np.ascontiguousarray(points_nd[start : start + _BLOCK]))
    return coded


def lists_of(index: Any, points_nd: Points) -> NDArray[np.int64]:
    """(n,) the list of each point: that with the nearest centre."""
    starts = range(0, points_nd.shape[0], _BLOCK)
    blocks = (np.ascontiguousarray(points_nd[start : start + _BLOCK]) for start in starts)
    return np.concatenate([index.quantizer.search(block_nd, 1)[1][:, 0] for block_nd in blocks])


def fill_lists(index: Any, points_nd: Points, list_n: NDArray[np.int64]) -> None:
    """Put points into their lists, numbered from 0."""
    faiss = import_faiss()
    for start in range(0, len(list_n), _BLOCK):
        block_nd, lists = (np.ascontiguousarray(part[start : start + _BLOCK]) for part in (points_nd, list_n))
        index.add_core(len(lists), faiss.swig_ptr(block_nd), None, faiss.swig_ptr(lists))


def put_lists_in_file(index: Any, path: Path, points_nd: Points, ends_l: NDArray[np.int64]) -> None:
    """Give an empty index its lists, which lie in a file of their own and never in memory.

    Parameters
    ----------
    points_nd
        The points, list after list.
    ends_l
        Where each list ends.
    """
    faiss = import_faiss()
    path = path.absolute()  # the index keeps it, for a process that may stand elsewhere
    with path.open("wb") as file:  # written, not mapped: a full disk is an error then, not a signal
        for start, stop in zip([0, *ends_l[:-1].tolist()], ends_l.tolist(), strict=True):
            file.write(np.ascontiguousarray(points_nd[start:stop]).data)
            file.write(np.arange(start, stop, dtype=np.int64).data)
    sizes_l = np.diff(ends_l, prepend=0).astype(np.uint64)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(path))
    lists.set_all_lists_sizes(faiss.swig_ptr(sizes_l))
    lists.totsize, lists.read_only = path.stat().st_size, True
    lists.do_mmap()
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = int(ends_l[-1])


def save_lists(index: Any, path: Path) -> None:
    """Write an index, but for lists that lie in a file of their own; it appears under its name whole."""
    partial = path.with_suffix(".partial")
    import_faiss().write_index(index, str(partial))
    partial.replace(path)


def load_lists(path: Path, shared: bool = False) -> Any:
    """Read an index, mapped into memory, so that processes share it; one of codes is read whole.

    Parameters
    ----------
    shared
        It may come from anybody, so all its lists must lie in the file itself: an index can name any other file of
        this machine, which would be mapped in their place.

    Raises
    ------
    DataError
        If they do not.
    """
    faiss = import_faiss()
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    lists = faiss.downcast_InvertedLists(index.invlists)
    if shared:
        _require_inside(path, lists)
    if not isinstance(lists, faiss.OnDiskInvertedLists):
        return index  # of codes, in memory
    if lists.ptr is None:  # they lie in a file of their own
        lists.do_mmap()
    lists.prefetch_nthread = 0  # 32 threads that read ahead what the cache has take as long as the search
    return index


def _require_inside(path: Path, lists: Any) -> None:
    """DataError unless lists that were just read lie in their index's file, to the last byte."""
    if not isinstance(lists, import_faiss().OnDiskInvertedLists) or lists.ptr is None or not lists.nlist:
        raise DataError(f"{path}: its lists do not lie in this file; export the reference again")
    start = int(lists.get_codes(0)) - int(lists.ptr)
    num_points = sum(lists.list_size(number) for number in range(lists.nlist))
    stop = start + num_points * (lists.code_size + _ID_BYTES)
    if not 0 <= start <= stop <= lists.totsize:
        raise DataError(f"{path}: is cut off: its lists end at {stop} bytes, the file at {lists.totsize}")


def let_go_of_lists(index: Any) -> None:
    """Give back the pages of a mapped index that were looked at: the system's cache keeps them.  Nothing of another."""
    faiss = import_faiss()
    lists = faiss.downcast_InvertedLists(index.invlists)
    if isinstance(lists, faiss.OnDiskInvertedLists):  # whose memory is the file, from the start of a page
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(int(lists.ptr)), ctypes.c_size_t(lists.totsize), mmap.MADV_DONTNEED)


def search_in_one_thread() -> None:
    """Have faiss search in the calling thread alone: where others work beside it, its own would only be in the way."""
    import_faiss().omp_set_num_threads(1)  # OpenMP keeps the number for each thread that asks
