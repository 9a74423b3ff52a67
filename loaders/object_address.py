"""Addresses of atlases that lie in an object store: s3://, gs://, az://, http:// and https://.

Jobs take stores as paths, and a Path keeps one of two slashes: `s3:/bucket/atlas.zarr` is read as what it was.
"""

from __future__ import annotations

import re
from pathlib import Path

from unicoord_atlas.errors import UsageError

_ADDRESS = re.compile(r"(s3|gs|az|https?):/{1,2}([^/?]+)/?([^?]*)(\?.*)?", re.DOTALL)


def object_address(path: str | Path) -> str | None:
    """The address with both slashes and none at its end; None for a path on this machine.

    A query is kept: a SOMA has one, see `soma_address`.

    Raises
    ------
    UsageError
        If the address holds a name and password; it is not repeated, since it would end up in logs.
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None:
        return None
    scheme, host, key, query = found.groups()
    if "@" in host:
        raise UsageError(f"{scheme}://...: an address holds no credentials; give them by the environment")
    return f"{scheme}://{host}/{key.rstrip('/')}".rstrip("/") + (query or "")


def shown(path: str | Path) -> str:
    """A path or an address as messages call it."""
    return object_address(path) or str(path)


def from_anywhere(path: str) -> str:
    """A path as a process that stands in another folder finds it; an address is the same everywhere."""
    return path if object_address(path) is not None else str(Path(path).absolute())
