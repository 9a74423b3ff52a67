"""Entries of one array through zarr-python: for codecs that `shard_reader` does not know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_OURS = {"codecs": ["bytes", "blosc"], "index_codecs": ["bytes", "crc32c"], "index_location": "end"}


@dataclass(frozen=True, slots=True)
class Part:
    """A range that is decoded in one piece, and where the entries of it that are wanted go."""

    chunk: int
    """Inner chunk that it lies in; starts are counted from the chunk's."""
    start: int
    stop: int
    out: NDArray[Any]
    """Filled with the entries that are wanted."""
    pieces: NDArray[np.int64] | None
    """(p, 2) start:stop of the runs that are wanted, counted from `start`; None if all are."""
    num_decoded: int
    """Entries that are decoded to get those wanted."""


class Work(Protocol):
    """What a reader does in one piece."""

    @property
    def num_decoded(self) -> int:
        """Entries that are decoded."""
        ...


class EntryReader(Protocol):
    """Reads entries of one array; any number of threads may call `decode` at a time."""

    def parts(self, spans: NDArray[np.int64], out: NDArray[Any]) -> Iterator[Work]:
        """Cut entry ranges start:stop into parts, which fill `out` in the order given."""
        ...

    def decode(self, part: Any) -> None:
        """Read one part; DataError names the shard and its rows if it is damaged."""
        ...


class ArrayReader:
    """Reads through zarr-python, whatever the codecs."""

    def __init__(self, array: Any, where: str, limit: int | None = None) -> None:
        """`where` names the array, for messages; entries must be indices below `limit`, if there is one."""
        self._array, self._where, self._limit = array, where, limit

    def parts(self, spans: NDArray[np.int64], out: NDArray[Any]) -> Iterator[Part]:
        """A part a range."""
        filled = 0
        for start, stop in spans.tolist():
            yield Part(0, start, stop, out[filled : filled + stop - start], None, stop - start)
            filled += stop - start

    def decode(self, part: Part) -> None:
        """Read one part; DataError if an index is out of bounds."""
        values = np.asarray(self._array[part.start : part.stop])
        if self._limit is not None and reaches(values, self._limit):
            raise DataError(
                f"{self._where}: entries {part.start}:{part.stop} hold an index that is not in 0..{self._limit - 1}; "
                "restore the file or ingest again"
            )
        part.out[:] = values


def reaches(indices: NDArray[Any], limit: int) -> bool:
    """Whether an index, of unsigned or signed integers, is not in 0..limit - 1."""
    unsigned = indices.view(f"u{indices.itemsize}")  # what is below 0 is large
    return len(indices) > 0 and int(np.maximum.reduce(unsigned)) >= limit


def is_sharded_blosc(array: Any) -> bool:
    """Whether the array is encoded as `zarr_writer` does it, whatever compressor blosc uses inside."""
    codecs = array.metadata.to_dict()["codecs"]
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return False
    inside = codecs[0]["configuration"]
    found = {key: [codec["name"] for codec in inside[key]] for key in ("codecs", "index_codecs")}
    return {**found, "index_location": inside["index_location"]} == _OURS
