"""What a store must know of a SOMA matrix that nothing in a SOMA says: entries of each cell, normalization.

An experiment that this program wrote holds it under uns; another is read through once, and what was found is kept in
the user's cache folder under the experiment's fingerprint.
Shapes: n cells, g genes.
"""

from __future__ import annotations

import os
import secrets
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unicoord_atlas.errors import DataError
from unicoord_atlas.genes import GeneMap
from unicoord_atlas.normalization import MAX_FRACTION, Normalization

from .facts import block_facts
from .row_matrix import bounded_cuts
from .soma_rows import entries_of, read_rows
from .sources import content_of
from .store import CsrBuffer
from .tally import Tally, block_sums, unfinished_normalization
from .zarr_layout import count_dtype, index_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from unicoord_atlas.csr_block import CsrBlock

_ROWS_TOGETHER = 8192


@dataclass(frozen=True, slots=True)
class SomaFacts:
    """Entries, size factors and frozen normalization of the selected cells."""

    entries_n: NDArray[np.int64]
    size_factors_n: NDArray[np.float64]
    largest: float
    highly_expressed_g: NDArray[np.bool_]
    mean_fraction_g: NDArray[np.float64]
    mean_g: NDArray[np.float64]
    variance_g: NDArray[np.float64]

    @property
    def normalization(self) -> Normalization:
        """The frozen facts of the genes."""
        return Normalization(self.highly_expressed_g, self.mean_fraction_g, self.mean_g, self.variance_g)

    @classmethod
    def load(cls, path: Path) -> SomaFacts | None:
        """What `save` wrote; None if nothing whole is there."""
        try:
            with np.load(path) as saved:
                parts = {name: saved[name] for name in cls.__dataclass_fields__}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return None
        return cls(**{**parts, "largest": float(parts["largest"])})

    def save(self, path: Path) -> None:
        """Write a file that is there whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{secrets.token_hex(4)}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, **asdict(self))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def cached_facts(array: Any, joinids: NDArray[np.int64], num_genes: int, fingerprint: str) -> SomaFacts:
    """Facts of the cells of an experiment that does not hold them: from the cache, or by three passes over them."""
    path = cache_folder() / f"soma-{fingerprint}.npz"
    facts = SomaFacts.load(path)
    if facts is None:
        facts = measure(array, joinids, num_genes)
        try:
            facts.save(path)
        except OSError as error:
            print(f"{path}: cannot be kept ({error.strerror}); the next run measures again", file=sys.stderr)
    return facts


def cache_folder() -> Path:
    """The user's folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unicoord-atlas"


def measure(array: Any, joinids: NDArray[np.int64], num_genes: int) -> SomaFacts:
    """Read the cells through.

    Raises
    ------
    DataError
        If the values are no counts.
    """
    entries_n, largest = _count(array, joinids)
    indptr = np.concatenate([[0], np.cumsum(entries_n)])
    identity = GeneMap.of(np.arange(num_genes, dtype=np.int32), num_genes)
    dominated_g = np.zeros(num_genes, np.int64)
    for block in _blocks(array, joinids, indptr, num_genes, count_dtype(largest)):
        dominated_g += block_facts(block, identity, MAX_FRACTION).dominated_g
    frozen = unfinished_normalization(dominated_g > 0, 1, log_input=False)
    tally = Tally(num_genes)
    for block in _blocks(array, joinids, indptr, num_genes, count_dtype(largest)):
        tally.add(block_sums(block, frozen))
    sums = tally.sums()
    fraction_g, mean_g, square_g = sums.moments_3g / max(1, len(joinids))
    return SomaFacts(
        entries_n,
        sums.size_factors_n,
        largest,
        frozen.highly_expressed_g,
        fraction_g,
        mean_g,
        np.maximum(square_g - mean_g**2, 0.0),
    )


def _count(array: Any, joinids: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
    entries_n, largest = np.zeros(len(joinids), np.int64), 0.0
    for start in range(0, len(joinids), _ROWS_TOGETHER):
        part = joinids[start : start + _ROWS_TOGETHER]
        for positions, _, values in entries_of(array, part):
            if not (np.isfinite(values).all() and values.min(initial=0) >= 0 and content_of(values) == "counts"):
                raise DataError(f"{array.uri}: holds values that are no counts; choose another matrix by ?layer=NAME")
            entries_n[start : start + len(part)] += np.bincount(positions, minlength=len(part))
            largest = max(largest, float(values.max(initial=0)))
    return entries_n, largest


def _blocks(
    array: Any, joinids: NDArray[np.int64], indptr: NDArray[np.int64], num_genes: int, dtype: np.dtype[Any]
) -> Iterator[CsrBlock]:
    buffer = CsrBuffer()
    for start, stop in bounded_cuts(indptr, _ROWS_TOGETHER, 0, len(joinids)):
        begins = indptr[start : stop + 1] - indptr[start]
        rows = read_rows(array, joinids[start:stop], begins, num_genes, (index_dtype(num_genes), dtype), buffer)
        yield rows
