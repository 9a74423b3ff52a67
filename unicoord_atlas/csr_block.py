"""Rows of counts on the host, in NumPy's arrays: what needs only these starts without torch.

Shapes: n cells, z non-zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CsrBlock:
    """Rows as CSR, perhaps in buffers that the next read uses again."""

    indptr: NDArray[np.int64]
    """(n + 1,), from 0."""
    indices: NDArray[np.integer]
    """(z,) column of each entry."""
    data: NDArray[np.number]
    """(z,) in the type of the file."""

    @property
    def num_rows(self) -> int:
        """Number of rows n."""
        return len(self.indptr) - 1
