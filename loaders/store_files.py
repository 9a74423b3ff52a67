"""Where the files of an atlas lie: a folder on this machine, or an object store."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import zarr

from unicoord_atlas.checksums import file_checksum
from unicoord_atlas.cores import usable_cores
from unicoord_atlas.errors import UsageError

from .checked_store import CheckedStore
from .manifest import read_manifest
from .object_address import object_address
from .shard_reader import ShardReader
from .zarr_layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from .byte_cache import ByteCache

READ_THREADS = min(usable_cores(), 8)


class StoreFiles(Protocol):
    """The files of one store, by their names in it."""

    uri: str
    name: str
    """The last part of it."""
    threads: int
    """How many may read entries at a time."""

    def read(self, name: str) -> bytes:
        """A whole file; FileNotFoundError if it is not there."""
        ...

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of each of these files that is there."""
        ...

    def checksums(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Bytes and crc32c of each of these files that is there, as manifests have them: all are read."""
        ...

    def absent(self) -> str | None:
        """Why there is no store at all; None if there is something."""
        ...

    def zarr(self) -> Any:
        """What zarr opens, read-only."""
        ...

    def reader(
        self,
        array: str,
        dtype: np.dtype[Any],
        inner_chunk: int,
        chunks_per_shard: int,
        where: Callable[[int], str],
        crc32c_of: Callable[[int], str | None],
        limit: int | None = None,
    ) -> ShardReader:
        """Reader of an array that lies in our shards.

        Parameters
        ----------
        where
            Names a shard, for messages.
        crc32c_of
            What a shard's file should have, if that is known.
        limit
            Entries are indices, which must be below it.
        """
        ...


class LocalFiles:
    """A folder."""

    threads = READ_THREADS

    def __init__(self, path: Path) -> None:
        self.path, self.uri, self.name = path, str(path), path.name

    def read(self, name: str) -> bytes:
        """A whole file."""
        try:
            return (self.path / name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(str(error)) from error

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of each of these files that is there."""
        files = {name: self.path / name for name in names}
        return {name: file.stat().st_size for name, file in files.items() if file.exists()}

    def checksums(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Bytes and crc32c of each of these files that is there."""
        sizes = self.sizes(names)
        with ThreadPoolExecutor(2) as pool:
            sums = pool.map(file_checksum, [self.path / name for name in sizes])
            return {
                name: {"bytes": size, "crc32c": crc32c}
                for (name, size), crc32c in zip(sizes.items(), sums, strict=True)
            }

    def absent(self) -> str | None:
        """Why there is no store at all."""
        partial = self.path.parent / f".{self.name}.partial"
        if self.path.exists():
            return None
        if partial.exists():
            return f"it is still being written or was cut off ({partial.name}): finish that job"
        return "no such store"

    def zarr(self) -> Any:
        """A store of zarr's that compares what it reads with the manifest; DataError if there is none."""
        return CheckedStore(self.path, read_manifest(self)["files"])

    def reader(
        self,
        array: str,
        dtype: np.dtype[Any],
        inner_chunk: int,
        chunks_per_shard: int,
        where: Callable[[int], str],
        crc32c_of: Callable[[int], str | None],
        limit: int | None = None,
    ) -> ShardReader:
        """Maps shards into memory."""
        return ShardReader(self.path / array, dtype, inner_chunk, chunks_per_shard, where, crc32c_of, limit)


def open_files(path: str | Path, cache: ByteCache | None = None) -> StoreFiles:
    """The files of a store, wherever it lies; `cache` keeps what comes from an object store.

    UsageError if there is a cache for a store on this machine.
    """
    address = object_address(path)
    if address is None:
        if cache is not None:
            raise UsageError(f"{path} lies on this machine already; leave out --cache")
        return LocalFiles(Path(path))
    from .object_files import ObjectFiles  # late: obstore is an extra

    return ObjectFiles(address, cache)


def open_zarr(path: str | Path) -> Any:
    """The Zarr group of a finished directory, wherever it lies, as it is now; GroupNotFoundError if it is none."""
    return zarr.open_group(open_files(path).zarr(), mode="r")


def open_output(folder: Path) -> Any:
    """The Zarr group of a directory on this machine; if we have finished it, compared with its manifest as it is read.

    Cells that others wrote may have a manifest.json of their own.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    ours = isinstance(found, dict) and {"format_version", "files"} <= found.keys()
    return open_zarr(folder) if ours else zarr.open_group(folder, mode="r")
