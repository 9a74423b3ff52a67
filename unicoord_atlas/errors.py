"""What can go wrong, as a tree of exceptions.

    UnicoordError            anything a user can mend; a ValueError
    ├── UsageError           the command line asks for something that does not exist or fit (exit code 64)
    ├── DataError            a file, store or manifest is not what it should be          (exit code 65)
    ├── ConfigError          a setting has an unknown name or a bad value                (exit code 78)
    └── UnreachableError     a server cannot be reached now; the same command later may  (exit code 75)

Each message names the file or key, the value got, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class UnicoordError(ValueError):
    """Base of all errors that a user can mend."""

    exit_code = 1


class UsageError(UnicoordError):
    """The command asks for something that does not exist or does not fit."""

    exit_code = 64


class DataError(UnicoordError):
    """A file, store or manifest is not what it should be."""

    exit_code = 65


class ConfigError(UnicoordError):
    """A setting has an unknown name or a bad value."""

    exit_code = 78


class UnreachableError(UnicoordError):
    """A server cannot be reached now; nothing is wrong with what was asked."""

    exit_code = 75


class AlreadyDone(Exception):
    """The output is there, finished, from the same inputs and settings: nothing to do."""

    def __init__(self, out: Path | str) -> None:
        super().__init__(f"{out} is finished already, from the same inputs and settings")
        self.out = out
