"""Files of an atlas in an object store: whole ones are verified against the manifest, ranges against their length."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unicoord_atlas.checksums import checksum
from unicoord_atlas.errors import DataError

from .manifest import fingerprint
from .object_open import READING, Objects, open_objects, read_first
from .object_reader import ObjectShardReader
from .object_zarr import VerifiedStore
from .zarr_layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import numpy as np

    from .byte_cache import ByteCache, Filling

_TRIES = 5
"""Of a request whose answer is cut short or wrong, beyond what obstore itself tries again."""


class ObjectFiles:
    """See `StoreFiles`; any number of threads may read."""

    threads = 16

    def __init__(self, address: str, cache: ByteCache | None = None) -> None:
        self.uri, self.name = address, address.rpartition("/")[2]
        self.cache = cache
        self.requests = self.bytes_read = 0
        """Since the store was opened."""
        self._lock = threading.Lock()
        self._fillings: dict[str, Filling | None] = {}

    @cached_property
    def entries(self) -> Mapping[str, Mapping[str, Any]]:
        """Files of the manifest, with bytes and crc32c."""
        files: Mapping[str, Mapping[str, Any]] = self._manifest["files"]
        return files

    def read(self, name: str) -> bytes:
        """A whole file, as the manifest has it; FileNotFoundError if the manifest has none, or there is no manifest.

        Raises
        ------
        DataError
            If the file is missing, or other than it was.
        """
        if name == MANIFEST:
            return self._manifest_bytes
        if name not in self.entries:
            raise FileNotFoundError(name)
        entry = self.entries[name]
        path = self._cache_path(name)
        if path is not None and self.cache is not None:
            kept = self.cache.read(path, entry["crc32c"])
            if kept is not None:
                return kept
        for _ in range(_TRIES):
            data: bytes = self._ask(name, lambda store: _whole(store, name))
            if len(data) == entry["bytes"] and checksum([data]) == entry["crc32c"]:
                break
        else:
            raise DataError(f"{self.uri}/{name} has a wrong checksum: restore it, or copy the atlas there again")
        if path is not None and self.cache is not None:
            self.cache.keep(path, data)
        return data

    def read_range(self, name: str, start: int, stop: int) -> Any:
        """Bytes start:stop of a file, as a buffer."""
        for _ in range(_TRIES):
            data = self._ask(name, lambda store: _range(store, name, start, stop))
            if len(data) == stop - start:
                return data
        raise DataError(f"{self.uri}/{name} has {len(data)} bytes from {start} on, not {stop - start}; restore it")

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of each of these files that is there: by listing, or one by one where a server cannot list."""
        wanted = set(names)
        if self.uri.startswith("http"):
            found = dict(zip(wanted, self.pool.map(self._size, wanted), strict=True))
            return {name: size for name, size in found.items() if size is not None}
        listed = self._ask("its list of files", _listed)
        return {name: size for name, size in listed.items() if name in wanted}

    def checksums(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Bytes and crc32c of each of these files that is there: all of them are read."""
        wanted = list(names)
        found = self.pool.map(lambda name: self._ask_unless_missing(name, lambda store: _sums(store, name)), wanted)
        return {name: sums for name, sums in zip(wanted, found, strict=True) if sums is not None}

    def absent(self) -> str | None:
        """Nothing is known but whether there is a manifest."""
        return None

    def zarr(self) -> Any:
        """A store of zarr's that reads through this."""
        return VerifiedStore(self, self.objects.store)

    def reader(
        self,
        array: str,
        dtype: np.dtype[Any],
        inner_chunk: int,
        chunks_per_shard: int,
        where: Callable[[int], str],
        crc32c_of: Callable[[int], str | None],
        limit: int | None = None,
    ) -> ObjectShardReader:
        """Asks for ranges of shards."""
        return ObjectShardReader(self, array, dtype, inner_chunk, chunks_per_shard, where, crc32c_of, limit)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Threads that wait for answers."""
        return ThreadPoolExecutor(self.threads, "ask-objects")

    def kept_shard(self, name: str) -> Path | None:
        """A shard that lies whole in the cache."""
        path = self._cache_path(name)
        if path is None or self.cache is None or not self.cache.found(path, self.entries[name]["bytes"]):
            return None
        return path

    def filling(self, name: str, num_pieces: int) -> Filling | None:
        """Where pieces of a shard are kept; None without a cache, or without room in it."""
        path = self._cache_path(name)
        if path is None or self.cache is None:
            return None
        with self._lock:
            if name not in self._fillings:
                self._fillings[name] = self.cache.begin(path, self.entries[name]["bytes"], num_pieces)
            return self._fillings[name]

    def finish(self, name: str, filling: Filling) -> None:
        """Verify a shard that is all there; DataError if it is not what the manifest says."""
        if not filling.finish(self.entries[name]["crc32c"]):
            raise DataError(f"{self.uri}/{name} has a wrong checksum: restore it, or copy the atlas there again")
        with self._lock:
            self._fillings.pop(name, None)

    @cached_property
    def objects(self) -> Objects:
        """What is asked; it waits long for a server that is down."""
        return open_objects(self.uri, READING)

    @cached_property
    def _manifest_bytes(self) -> bytes:
        data = read_first(self.uri, MANIFEST)
        if data is None:
            raise FileNotFoundError(MANIFEST)
        self._counted(data)
        return data

    @cached_property
    def _manifest(self) -> Mapping[str, Any]:
        manifest: Mapping[str, Any] = json.loads(self._manifest_bytes)
        return manifest

    @cached_property
    def _atlas(self) -> str:
        return fingerprint(self._manifest)

    def _cache_path(self, name: str) -> Path | None:
        return None if self.cache is None else self.cache.path(self._atlas, name, self.entries[name]["crc32c"])

    def _ask(self, name: str, request: Callable[[Any], Any]) -> Any:
        """The answer, whose bytes are counted."""
        return self._counted(self.objects.ask(name, request))

    def _ask_unless_missing(self, name: str, request: Callable[[Any], Any]) -> Any:
        try:
            return self._ask(name, request)
        except DataError:
            return None

    def _size(self, name: str) -> int | None:
        size: int | None = self._ask_unless_missing(name, lambda store: _size(store, name))
        return size

    def _counted(self, answer: Any) -> Any:
        with self._lock:
            self.requests += 1
            self.bytes_read += len(answer) if hasattr(answer, "__len__") and not isinstance(answer, dict) else 0
        return answer


def _whole(store: Any, name: str) -> bytes:
    import obstore

    return bytes(obstore.get(store, name).bytes())


def _range(store: Any, name: str, start: int, stop: int) -> Any:
    import obstore

    return obstore.get_range(store, name, start=start, end=stop)


def _size(store: Any, name: str) -> int:
    import obstore

    return int(obstore.head(store, name)["size"])


def _listed(store: Any) -> dict[str, int]:
    import obstore

    return {entry["path"]: entry["size"] for batch in obstore.list(store, chunk_size=1000) for entry in batch}


def _sums(store: Any, name: str) -> dict[str, Any]:
    import obstore

    answer = obstore.get(store, name)
    crc32c = checksum(bytes(part) for part in answer.stream(min_chunk_size=1 << 22))
    return {"bytes": answer.meta["size"], "crc32c": crc32c}
