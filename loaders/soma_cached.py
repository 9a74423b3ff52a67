"""Counts of a SOMA from a copy on this machine; all else, and who they are, from the experiment.

A run that began with the copy goes on without it, and the other way round: cells, order and losses are the same.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.errors import DataError

from .soma_store import SomaStore
from .zarr_layout import MANIFEST
from .zarr_store import ZarrStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

    from .store import CsrBuffer


class CachedSoma(SomaStore):
    """A `SomaStore` whose rows are read from an atlas.zarr of the same cells; shards are verified as there."""

    def __init__(self, uri: str, copy: str) -> None:
        super().__init__(uri)
        held = os.open(copy, os.O_RDONLY)
        weakref.finalize(self, os.close, held)
        fcntl.flock(held, fcntl.LOCK_SH)  # nobody makes room by removing it
        os.utime(Path(copy) / MANIFEST)
        self._copy = ZarrStore(copy)
        if not np.array_equal(self._copy.indptr, self.indptr):
            raise DataError(f"{copy}: is no copy of {self.uri}; remove it")

    def __reduce__(self) -> tuple[type[SomaStore], tuple[str, ...]]:
        return CachedSoma, (str(self.address.from_anywhere()), self._copy.uri)

    def read_ranges(self, ranges: NDArray[np.int64], out: CsrBuffer | None = None) -> CsrBlock:
        """Rows of the (b, 2) ranges start:stop, one after the other in the order given."""
        return self._copy.read_ranges(ranges, out)
