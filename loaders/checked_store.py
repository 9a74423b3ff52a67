"""Zarr's view of a finished directory on this machine: what is read of its files is compared with the manifest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from unicoord_atlas.checksums import checksum, file_checksum
from unicoord_atlas.errors import DataError

from .manifest import size_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class CheckedStore(LocalStore):
    """Read-only; files that the manifest does not name are read as they are.

    A whole file is compared each time that it is read; one of which parts are read, before the first of them is handed
    out.  The shards that our own readers map into memory are compared there, see `shard_reader`.

    Parameters
    ----------
    root
        The directory.
    entries
        Bytes and crc32c of each file, by its name.
    """

    def __init__(self, root: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(root, read_only=True)
        self._entries = entries
        self._compared: set[str] = set()

    def __reduce__(self) -> tuple[Callable[..., CheckedStore], tuple[Path]]:
        return _checked_store, (self.root,)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """A file or a range of it; None if there is none, and the manifest names none.

        Raises
        ------
        DataError
            If the file is missing, or other than it was.
        """
        found = await super().get(key, prototype, byte_range)
        if self._must_compare(key, byte_range):
            await asyncio.to_thread(self._compare, key, byte_range, found)
        return found

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The same, for a zarr that asks from its own threads."""
        found = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        if self._must_compare(key, byte_range):
            self._compare(key, byte_range, found)
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    def _must_compare(self, key: str, part: ByteRequest | None) -> bool:
        return key in self._entries and (part is None or key not in self._compared)

    def _compare(self, key: str, part: ByteRequest | None, found: Buffer | None) -> None:
        expected, path = self._entries[key], self.root / key
        size = None
        if found is not None:
            size = len(found) if part is None else path.stat().st_size
        if found is None or size != expected["bytes"]:
            fault = size_fault(size, expected["bytes"])
        elif expected["crc32c"] != (checksum([found.to_bytes()]) if part is None else file_checksum(path)):
            fault = "has a wrong checksum"
        else:
            self._compared.add(key)
            return
        raise DataError(f"{path} {fault}: restore what is damaged, or make {self.root.name} again")


def _checked_store(root: Path) -> CheckedStore:
    from .store_files import LocalFiles  # late: it makes these

    made: CheckedStore = LocalFiles(root).zarr()
    return made
