"""Zarr's view of an atlas in an object store, read through `ObjectFiles`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from .byte_cache import ByteCache
    from .object_files import ObjectFiles

_READ_WHOLE = 1 << 20
"""Bytes of a file up to which all of it is read, and verified, where a part is asked for."""


class VerifiedStore(ObjectStore[Any]):
    """Zarr's view of an atlas: only files of the manifest exist, and whole ones are verified."""

    def __init__(self, files: ObjectFiles, store: Any) -> None:
        super().__init__(store, read_only=True)
        self._files = files

    def __reduce__(self) -> tuple[Callable[..., VerifiedStore], tuple[str, ByteCache | None]]:
        return _verified_store, (self._files.uri, self._files.cache)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """A file or a range of it; None if the manifest has none."""
        loop = asyncio.get_running_loop()
        try:
            data = await loop.run_in_executor(self._files.pool, self._bytes, key, byte_range)
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether the manifest has it."""
        return key in self._files.entries

    def _bytes(self, key: str, part: ByteRequest | None) -> bytes:
        size = self._files.entries.get(key, {"bytes": 0})["bytes"]
        if part is None or size <= _READ_WHOLE:
            return _cut(self._files.read(key), part)
        start, stop = _bounds(part, size)
        return bytes(self._files.read_range(key, start, stop))


def _verified_store(uri: str, cache: ByteCache | None) -> VerifiedStore:
    from .object_files import ObjectFiles  # late: it makes these

    made: VerifiedStore = ObjectFiles(uri, cache).zarr()
    return made


def _cut(data: bytes, part: ByteRequest | None) -> bytes:
    if part is None:
        return data
    start, stop = _bounds(part, len(data))
    return data[start:stop]


def _bounds(part: ByteRequest, size: int) -> tuple[int, int]:
    match part:
        case RangeByteRequest(start=start, end=end):
            return start, min(end, size)
        case OffsetByteRequest(offset=offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix=suffix):
            return max(size - suffix, 0), size
    raise AssertionError(part)
