"""A folder on this machine with bytes of atlases that lie in object stores: filled while they are read.

Only what agrees with the checksum in the atlas's manifest gets its name and is read again.  A shard grows in a sparse
file beside a map of what is there, which any number of processes and later runs fill together.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from unicoord_atlas.checksums import checksum, file_checksum
from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_PART, _MAP, _USED = ".part", ".map", ".used"
_JUST_USED = 60.0
"""Seconds before a run began in which another one may have begun to use an entry."""


@dataclass(frozen=True)
class ByteCache:
    """Entries by name of atlas and file; it pickles, and any number of processes may use one folder."""

    folder: Path
    max_bytes: int
    """Entries that this run did not use are removed, oldest first, to stay below; what has no room is not kept."""
    began: float = field(default_factory=time.time)

    def path(self, atlas: str, name: str, crc32c: str) -> Path:
        """Where the file of an atlas lies, or would lie."""
        digest = hashlib.blake2b(f"{name} {crc32c}".encode(), digest_size=16)
        return self.folder / atlas / digest.hexdigest()

    def found(self, path: Path, num_bytes: int) -> bool:
        """Whether a verified entry is there; it counts as used."""
        try:
            if path.stat().st_size != num_bytes:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def read(self, path: Path, crc32c: str) -> bytes | None:
        """A whole entry, verified again; None if it is not there."""
        try:
            data = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        return data if checksum([data]) == crc32c else None

    def keep(self, path: Path, data: bytes) -> None:
        """Put a whole file there, if there is room; the caller has verified it."""
        with self._room(path, len(data)) as room:
            if room:
                aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PART}")
                with aside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())  # an entry that has its name is whole
                aside.replace(path)

    def begin(self, path: Path, num_bytes: int, num_pieces: int) -> Filling | None:
        """Begin to fill an entry, or go on; None if it is there, or there is no room."""
        if path.exists():
            return None
        part = path.with_name(path.name + _PART)
        resumed = part.exists()
        if not resumed:
            with self._room(part, num_bytes) as room:
                if not room:
                    return None
                resumed = part.exists()  # by another process, meanwhile
                if not resumed:
                    path.with_name(path.name + _MAP).unlink(missing_ok=True)  # of a part that was removed
                    with part.open("wb") as file:
                        file.truncate(num_bytes)
        return Filling(path, num_bytes, num_pieces, resumed)

    @contextmanager
    def _room(self, path: Path, num_bytes: int) -> Iterator[bool]:
        """Whether an entry fits, once others are gone; nobody else may add one meanwhile."""
        with _full_disk_named(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / _USED) as counter:
                used = int(os.pread(counter, 32, 0) or 0)  # may be too much, which the next removal puts right
                if used + num_bytes > self.max_bytes:
                    used = self._remove_old(num_bytes)
                fits = used + num_bytes <= self.max_bytes
                yield fits
                os.ftruncate(counter, 0)
                os.pwrite(counter, str(used + num_bytes * fits).encode(), 0)

    def _remove_old(self, num_bytes: int) -> int:
        """Remove entries of earlier runs, oldest first, until so much fits; bytes that are left."""
        entries = sorted((stat.st_mtime, stat.st_size, file) for file, stat in _files(self.folder))
        used = sum(size for _, size, _ in entries)
        for modified, size, file in entries:
            if used + num_bytes <= self.max_bytes or modified >= self.began - _JUST_USED:
                break
            file.unlink(missing_ok=True)
            used -= size
        return used


class Filling:
    """One entry that grows by pieces; threads and processes may add at a time."""

    def __init__(self, path: Path, num_bytes: int, num_pieces: int, resumed: bool) -> None:
        self._path, self._num_bytes, self._num_pieces = path, num_bytes, num_pieces
        self._part, self._map = (path.with_name(path.name + ending) for ending in (_PART, _MAP))
        self._resumed = resumed
        self._thread_lock = threading.Lock()

    def add(self, first: int, stop: int, offset: int, data: memoryview) -> NDArray[np.bool_]:
        """Write the pieces first:stop, which lie from `offset` on; which pieces are there now."""
        with self._thread_lock, _full_disk_named(self._path.parent.parent), _locked(self._map) as map_file:
            try:
                part = os.open(self._part, os.O_WRONLY)
            except FileNotFoundError:  # finished or removed meanwhile
                return np.ones(self._num_pieces, np.bool_)
            try:
                while data:
                    written = os.pwrite(part, data, offset)
                    data, offset = data[written:], offset + written
            finally:
                os.close(part)
            os.pwrite(map_file, b"\1" * (stop - first), first)
            there = np.frombuffer(os.pread(map_file, self._num_pieces, 0).ljust(self._num_pieces, b"\0"), np.bool_)
        return there

    def finish(self, crc32c: str) -> bool:
        """Give the entry its name if it agrees with the checksum, or forget it.

        Returns
        -------
        False if what this process has added cannot have been what the atlas holds.
        """
        with self._thread_lock, _locked(self._map) as map_file:
            if not self._part.exists():
                return True
            whole = file_checksum(self._part) == crc32c
            if whole:
                descriptor = os.open(self._part, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
                self._part.replace(self._path)
            else:
                self._part.unlink()
            os.ftruncate(map_file, 0)  # not removed: others may wait for it
        return whole or self._resumed


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob("*/*"):
        if path.suffix == _MAP or path.is_dir():  # copies of SOMAs are looked after elsewhere
            continue
        with suppress(FileNotFoundError):  # another process finished or removed it
            yield path, path.stat()


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{folder}: the disk is full; free some space, or give a smaller --cache-size") from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold a file, made if it is not there, against all other processes and threads that do."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
