"""Some rows of CSR arrays, in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unicoord_atlas.csr_block import CsrBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray


def take_rows(counts: CsrBlock, picks: NDArray[np.int64]) -> CsrBlock:
    """The picked rows, in the order given; copies."""
    wanted = pa.array(picks)
    parts = (take_entries(counts.indptr, values, wanted) for values in (counts.indices, counts.data))
    return CsrBlock(taken_indptr(counts, picks), *parts)


def taken_indptr(counts: CsrBlock, picks: NDArray[np.int64]) -> NDArray[np.int64]:
    """(k + 1,) of the picked rows, from 0."""
    indptr = np.zeros(len(picks) + 1, np.int64)
    np.cumsum(counts.indptr[picks + 1] - counts.indptr[picks], out=indptr[1:])
    return indptr


def take_entries(indptr: NDArray[np.int64], values: NDArray[Any], picks: pa.Array) -> NDArray[Any]:
    """Entries of the picked rows.

    To Arrow a row is a byte string: it takes strings with a memcpy each, without Python's lock, into memory that its
    pool uses again.  Fancy indexing, with an index a non-zero, would cost ten times as much; a slice a row, twice.
    """
    offsets, content = pa.py_buffer(indptr * values.itemsize), pa.py_buffer(values)
    strings = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(indptr) - 1, [None, offsets, content])
    taken = strings.take(picks).buffers()[2]
    return np.frombuffer(taken, values.dtype) if taken else np.empty(0, values.dtype)
