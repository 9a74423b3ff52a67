"""Whatever goes wrong while a part of a file or of a store is read, in one line."""

from __future__ import annotations

import errno
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anndata._io.specs.registry import IORegistryError  # an encoding that anndata does not know; nowhere public

from unicoord_atlas.errors import DataError, UnicoordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a part of a file or store is read into one line that names both."""
    try:
        yield
    except DataError as error:
        if str(error).startswith(tuple(f"{path}{after}" for after in ":/ ")):  # it says where
            raise
        raise DataError(f"{path}: {what}: {error}") from error
    except UnicoordError:  # of what was asked for, or of a server that is away: nothing is wrong with the file
        raise
    except (
        *(OSError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError),
        *(MemoryError, AttributeError, AssertionError, zlib.error, IORegistryError),
    ) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise DataError(
                f"{path}: {what}: too many files are open; raise `ulimit -n`, or give fewer files"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{path}: {what}: the disk is full of temporary files; set TMPDIR to a larger one"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: {what} cannot be read ({reason}); is the file whole? Copy it again") from error
