"""Entries of one sharded array in an object store: neighbouring inner chunks in one request, decoded as they arrive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unicoord_atlas.errors import DataError

from .array_reader import Part
from .shard_file import decode_index, index_bytes
from .shard_reader import ShardReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from .array_reader import Work
    from .byte_cache import Filling
    from .object_files import ObjectFiles

_GAP_BYTES = 512 << 10
"""Chunks that are not wanted are read along where that costs less than a request of their own."""
_REQUEST_BYTES = 8 << 20
_COMPLETED_FROM = 0.75
"""Share of a shard from which on the rest is fetched for the cache."""


@dataclass(frozen=True, slots=True)
class Request:
    """A range of one shard, and what is decoded from it."""

    shard: int
    start: int
    stop: int
    parts: tuple[Part, ...]

    @property
    def num_decoded(self) -> int:
        """Entries that are decoded."""
        return sum(part.num_decoded for part in self.parts)


class ObjectShardReader(ShardReader):
    """See `EntryReader`; a shard that lies whole in the cache is mapped into memory as a local one."""

    def __init__(
        self,
        files: ObjectFiles,
        array: str,
        dtype: np.dtype[np.generic],
        inner_chunk: int,
        chunks_per_shard: int,
        where: Callable[[int], str],
        crc32c_of: Callable[[int], str | None],
        limit: int | None = None,
    ) -> None:
        super().__init__(Path(array), dtype, inner_chunk, chunks_per_shard, where, crc32c_of, limit)
        self._files, self._name = files, array
        self._indices: dict[int, NDArray[np.uint64]] = {}

    def parts(self, spans: NDArray[np.int64], out: NDArray[Any]) -> Iterator[Work]:
        """See `EntryReader`; parts of shards that are not here are joined to requests."""
        parts = list(self._parts(spans, out))
        numbers = np.unique([part.chunk // self._chunks_per_shard for part in parts]).astype(int).tolist()
        far = {shard for shard in numbers if not self._is_here(shard)}
        unknown = [shard for shard in far if shard not in self._indices]
        self._indices |= zip(unknown, self._files.pool.map(self._read_index, unknown), strict=True)
        yield from self._requests([part for part in parts if part.chunk // self._chunks_per_shard in far])
        yield from (part for part in parts if part.chunk // self._chunks_per_shard not in far)

    def decode(self, part: Part | Request) -> None:
        """Read one part, or all parts of a request."""
        if isinstance(part, Part):
            super().decode(part)
            return
        data = memoryview(self._files.read_range(self._file(part.shard), part.start, part.stop))
        encoded = np.frombuffer(data, np.uint8)
        for wanted in part.parts:
            offset, length = self._extent(wanted.chunk, self._indices[part.shard])
            begin = offset - part.start
            self._fill(wanted, self._checked(wanted.chunk, encoded[begin : begin + length]))
        self._keep(part, data)

    def _is_here(self, shard: int) -> bool:
        if shard not in self._shards and (path := self._files.kept_shard(self._file(shard))) is not None:
            try:
                self._shards[shard] = self._map_file(path, shard)
            except DataError:
                path.unlink(missing_ok=True)  # damaged here, on this disk: it is read from the server again
        return shard in self._shards

    def _file(self, shard: int) -> str:
        return f"{self._name}/c/{shard}"

    def _read_index(self, shard: int) -> NDArray[np.uint64]:
        name = self._file(shard)
        size = self._files.entries[name]["bytes"]
        start = max(size - index_bytes(self._chunks_per_shard), 0)
        return decode_index(bytes(self._files.read_range(name, start, size)), size, self._where(shard))

    def _requests(self, parts: Sequence[Part]) -> Iterator[Request]:
        extents = sorted(
            (shard, *self._extent(part.chunk, self._indices[shard]), number)
            for number, part in enumerate(parts)
            for shard in (part.chunk // self._chunks_per_shard,)
        )
        for group in joined(extents):
            shard, start, _, _ = extents[group.start]
            stop = max(offset + length for _, offset, length, _ in extents[group.start : group.stop])
            wanted = tuple(parts[number] for *_, number in extents[group.start : group.stop])
            yield Request(shard, start, stop, wanted)

    def _keep(self, request: Request, data: memoryview) -> None:
        """Put what was read into the cache; once most of a shard is there, the rest."""
        name, index = self._file(request.shard), self._indices[request.shard]
        filling = self._files.filling(name, self._chunks_per_shard)
        if filling is None:
            return
        size = self._files.entries[name]["bytes"]
        whole = pieces(index, size - index_bytes(self._chunks_per_shard))
        if whole is None:  # of another writer, in another order
            return
        first = int(np.searchsorted(whole, request.start))
        stop = int(np.searchsorted(whole, request.stop))
        there = filling.add(first, stop, request.start, data)
        lengths = np.diff(whole)
        if lengths[there].sum() < _COMPLETED_FROM * lengths.sum():
            return
        self._complete(request.shard, filling, there, whole)

    def _complete(self, shard: int, filling: Filling, there: NDArray[np.bool_], whole: NDArray[np.int64]) -> None:
        name = self._file(shard)
        for first, stop in _runs(~there):
            if whole[stop] > whole[first]:
                data = self._files.read_range(name, int(whole[first]), int(whole[stop]))
                filling.add(first, stop, int(whole[first]), memoryview(data))
        size = self._files.entries[name]["bytes"]
        tail = self._files.read_range(name, int(whole[-1]), size)
        filling.add(0, 0, int(whole[-1]), memoryview(tail))
        self._files.finish(name, filling)


def joined(extents: Sequence[tuple[int, int, int, int]]) -> Iterable[range]:
    """Which (shard, offset, bytes, _), in their order, are read together: of one shard, near by, and not too much."""
    begin = 0
    for place in range(1, len(extents) + 1):
        if place < len(extents):
            shard, offset, length, _ = extents[place]
            last_shard, last_offset, last_length, _ = extents[place - 1]
            near = shard == last_shard and offset - (last_offset + last_length) <= _GAP_BYTES
            if near and offset + length - extents[begin][1] <= _REQUEST_BYTES:
                continue
        yield range(begin, place)
        begin = place


def pieces(index: NDArray[np.uint64], end: int) -> NDArray[np.int64] | None:
    """Where each chunk of a shard begins, and the end, if they lie one after the other from 0 to `end`.

    Chunks that were never written are empty ones at the end.
    """
    written = index[:, 1] < end + 1
    lengths = np.where(written, index[:, 1], 0).astype(np.int64)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    in_order = np.array_equal(begins[:-1][written], index[written, 0].astype(np.int64))
    return begins if in_order and begins[-1] == end else None


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    borders = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    yield from zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True)
