"""A job in parts: each of many processes does its share of the cells, and the last to finish joins the shares.

A part is a finished directory of its own in a hidden folder beside the output (`.NAME.DIGEST.parts/INDEX`), and its
manifest is its done-marker.  So any part may be done again at any time: it finds its share there, and joins if all
others are there too.  Parts of other inputs or settings lie in a folder of another digest.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c

from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.loaders.zarr_layout import MANIFEST

from .workdir import describe_input, finished_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_JOINING, _JOINED = "joining", "joined"
"""Empty files: the output is being made from the parts; it was, and they are gone."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which share of the cells this process does."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"--part {self.index}/{self.count}: the first of 3 parts is 0/3, the last 2/3")

    @classmethod
    def of(cls, text: str | None) -> Part | None:
        """The part that an option names, or that `launch` gives this process; None for all cells."""
        if text is None:
            count = int(os.environ.get("WORLD_SIZE", "1"))
            return cls(int(os.environ["RANK"]), count) if count > 1 else None
        index, _, count_text = text.partition("/")
        if not (index.isdigit() and count_text.isdigit()):
            raise UsageError(f"--part {text!r}: write it as INDEX/COUNT; the first of 3 parts is 0/3")
        return cls(int(index), int(count_text))

    def rows(self, num_cells: int) -> tuple[int, int]:
        """First and last + 1 of this part's consecutive cells."""
        return num_cells * self.index // self.count, num_cells * (self.index + 1) // self.count


def do_part(
    part: Part,
    out: Path,
    inputs: Sequence[Path],
    config: Mapping[str, Any],
    write: Callable[[Path], None],
    join: Callable[[Sequence[Path]], None],
) -> bool:
    """Do a part unless it is done; then, if all are done, make the output of them.

    Parameters
    ----------
    inputs, config
        As `finished_directory` takes them.
    write
        Writes this part into a directory.
    join
        Makes `out` of the directories of all parts.

    Returns
    -------
    Whether the output is there.

    Raises
    ------
    AlreadyDone
        If it was there before.
    DataError
        If something else is.
    """
    folder = out.parent / f".{out.name}.{_digest(part, inputs, config)}.parts"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _refuse_other(folder, out)
    with suppress(AlreadyDone), finished_directory(_place(folder, part.index), inputs, dict(config)) as partial:
        write(partial)
    places = [_place(folder, index) for index in range(part.count)]
    with _alone(folder):
        if not (folder / _JOINED).exists():
            waiting = sum(not (place / MANIFEST).exists() for place in places)
            if waiting:
                print(f"part {part.index}/{part.count} is done; {waiting} others are not", file=sys.stderr)
                return False
            (folder / _JOINING).touch()
            if not out.exists():  # else a process was killed right after it had made it
                join(places)
            (folder / _JOINED).touch()
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
    return True


def _refuse_other(folder: Path, out: Path) -> None:
    """Raise if the output is there; forget that it was made if somebody has removed it."""
    if not out.exists():
        (folder / _JOINED).unlink(missing_ok=True)
        (folder / _JOINING).unlink(missing_ok=True)
    elif (folder / _JOINED).exists():
        raise AlreadyDone(out)
    elif not (folder / _JOINING).exists():
        raise DataError(f"{out} exists and was not made from these parts; remove it or choose another name")


def _place(folder: Path, index: int) -> Path:
    return folder / str(index)


def _digest(part: Part, inputs: Sequence[Path], config: Mapping[str, Any]) -> str:
    made_from = [[describe_input(path) for path in inputs], dict(config), part.count]
    return f"{google_crc32c.value(json.dumps(made_from, sort_keys=True).encode()):08x}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is between here and the end."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
