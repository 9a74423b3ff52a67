"""A run directory mirrored in an object store, so that a run goes on where its own disk is gone.

    <address>/mirror.json             step, and checksum and size of each file by its name; written last
    <address>/<crc32c>/<name>         the files: one that has changed is another object

mirror.json is put on condition that nobody has put another one since: of two writers one is refused.  What it no
longer names is removed after it, so a writer that is killed at any moment leaves a whole mirror, and at most some
objects more.
"""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from unicoord_atlas.checksums import checksum, file_checksum
from unicoord_atlas.errors import DataError, UnreachableError

from .object_open import OPENING, READING, open_objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


INDEX = "mirror.json"
_LARGE = ".safetensors"
"""Files that are never changed once they have their name; all others are read at once."""
_CHUNK = 1 << 22


class RunMirror:
    """Files of one run, up and down; one writer at a time.

    Parameters
    ----------
    address
        Where it lies; nothing else may.
    first
        Names of files, or folders with `/` at the end, that are mirrored.
    last
        The file that makes the others count: it comes down last.
    """

    def __init__(self, address: str, first: Sequence[str], last: str) -> None:
        self.address, self._wanted, self._last = address, tuple(first), last
        self._objects = open_objects(address, READING)
        self._index: dict[str, Any] | None = None
        self._version: Any = "create"
        self._sums: dict[str, tuple[tuple[int, int], str]] = {}
        self._thread = ThreadPoolExecutor(1)
        self._sending: Future[None] | None = None

    def step(self) -> int:
        """Of the mirror; -1 if there is none yet.

        Raises
        ------
        DataError
            If something else is there.
        """
        self._find_index()
        return -1 if self._index is None else int(self._index["step"])

    def pull(self, folder: Path, names: Sequence[str] | None = None) -> None:
        """Bring files of the mirror, all or these, into a folder.

        Raises
        ------
        DataError
            If one is missing or damaged.
        """
        files = {} if self._index is None else self._index["files"]
        if names is None:
            (folder / self._last).unlink(missing_ok=True)
        for name in sorted(files if names is None else names, key=lambda name: name == self._last):
            if name not in files:
                raise DataError(
                    f"{self.address}/{INDEX}: names no {name}; choose another address, or remove the mirror"
                )
            self._bring(name, files[name], folder / name)

    def push(self, folder: Path, step: int) -> None:
        """Begin to send what has changed; `wait` before a file may be removed."""
        self.wait()
        self._sending = self._thread.submit(self._send, self._snapshot(folder), step)

    def wait(self) -> None:
        """Until all is sent, or has failed because of a server that is away: the next push sends it.

        Raises
        ------
        DataError
            If another writer is at work.
        ConfigError
            If writing is denied.
        """
        try:
            self._result()
        except UnreachableError as error:
            print(f"{error}; the next checkpoint is mirrored again", file=sys.stderr)

    def push_all(self, folder: Path, step: int) -> None:
        """Send what has changed, and wait; also raises UnreachableError."""
        self.push(folder, step)
        self._result()

    def _result(self) -> None:
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.result()

    def _find_index(self) -> None:
        import obstore

        def get(store: Any) -> Any:
            try:
                found = obstore.get(store, INDEX)
                return bytes(found.bytes()), _version(found.meta)
            except FileNotFoundError:
                return None

        answer = open_objects(self.address, OPENING).ask(INDEX, get)
        if answer is None:
            return
        try:
            index = json.loads(answer[0])
            sound = (
                isinstance(index["step"], int)
                and self._last in index["files"]
                and all(_is_file(name, facts) for name, facts in index["files"].items())
            )
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise DataError(f"{self.address}/{INDEX}: is no mirror of a run; choose another address, or remove it")
        self._index, self._version = index, answer[1]

    def _bring(self, name: str, facts: Mapping[str, Any], target: Path) -> None:
        import obstore

        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.partial")

        def get(store: Any) -> str:
            with aside.open("wb") as file:
                parts = obstore.get(store, _key(name, facts)).stream(min_chunk_size=_CHUNK)
                return checksum(_written(file, parts))

        found = self._objects.ask(name, get)
        if found != facts["crc32c"]:
            aside.unlink()
            raise DataError(f"{self.address}/{_key(name, facts)}: has a wrong checksum; remove the mirror")
        aside.replace(target)

    def _snapshot(self, folder: Path) -> dict[str, tuple[Path, bytes | None]]:
        found = {}
        for wanted in self._wanted:
            paths = sorted((folder / wanted).rglob("*")) if wanted.endswith("/") else [folder / wanted]
            for path in paths:
                if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
                    content = None if path.suffix == _LARGE else path.read_bytes()
                    found[path.relative_to(folder).as_posix()] = (path, content)
        return found

    def _send(self, found: dict[str, tuple[Path, bytes | None]], step: int) -> None:
        import obstore

        before = {} if self._index is None else self._index["files"]
        files = {name: self._facts(path, content) for name, (path, content) in found.items()}
        for name, (path, content) in found.items():
            if before.get(name) != files[name]:
                self._put(name, files[name], path if content is None else content)
        self._put_index({"step": step, "files": files})
        gone = {_key(name, facts) for name, facts in before.items()} - {_key(*item) for item in files.items()}
        if gone:
            self._objects.ask("old checkpoints", lambda store: obstore.delete(store, sorted(gone)))

    def _put(self, name: str, facts: Mapping[str, Any], body: Path | bytes) -> None:
        import obstore

        self._objects.ask(name, lambda store: obstore.put(store, _key(name, facts), body))

    def _put_index(self, index: dict[str, Any]) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        body = json.dumps(index, indent=1).encode()

        def put(store: Any) -> Any:
            try:
                return obstore.put(store, INDEX, body, mode=self._version)
            except (AlreadyExistsError, PreconditionError):  # perhaps by this very request, when its answer was lost
                found = obstore.get(store, INDEX)
                return found.meta if bytes(found.bytes()) == body else None

        answer = self._objects.ask(INDEX, put)
        if answer is None:
            raise DataError(
                f"{self.address}: another process mirrors a run there; stop it, or choose another address for this one"
            )
        self._index, self._version = index, _version(answer)

    def _facts(self, path: Path, content: bytes | None) -> dict[str, Any]:
        if content is not None:
            return {"bytes": len(content), "crc32c": checksum([content])}
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns)
        if self._sums.get(str(path), ((), ""))[0] != state:
            self._sums[str(path)] = (state, file_checksum(path))
        return {"bytes": stat.st_size, "crc32c": self._sums[str(path)][1]}


def _key(name: str, facts: Mapping[str, Any]) -> str:
    return f"{facts['crc32c']}/{name}"


def _version(meta: Mapping[str, Any]) -> dict[str, str]:
    """What tells this version of an object from all others, as obstore takes it."""
    return {key: meta[key] for key in ("e_tag", "version") if meta.get(key)}


def _is_file(name: str, facts: object) -> bool:
    """Whether an entry of the index is of a file that lies in the run's folder, and tells where in the mirror."""
    inside = name != "" and not name.startswith("/") and ".." not in name.split("/") and "\0" not in name
    return inside and isinstance(facts, dict) and re.fullmatch("[0-9a-f]{8}", str(facts.get("crc32c"))) is not None


def _written(file: Any, parts: Any) -> Iterator[bytes]:
    for part in parts:
        file.write(part)
        yield bytes(part)
