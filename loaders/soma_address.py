"""Which cells and which matrix of a SOMA Experiment a store is, in one text that every job takes as a path.

    cells.soma
    cells.soma?measurement=RNA&layer=raw&filter=tissue == "lung"
    s3://bucket/cells.soma?layer=raw

The filter comes last, since it may hold any character; it is a value filter of SOMA on obs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from unicoord_atlas.errors import UsageError

from .object_address import from_anywhere, object_address, shown

_MARK = "__tiledb_group.tdb"
_KEYS = ("measurement", "layer")


@dataclass(frozen=True, slots=True)
class SomaAddress:
    """An experiment and what of it is read; None means the only one, or the usual one."""

    path: Path
    measurement: str | None = None
    layer: str | None = None
    filter: str | None = None

    def __str__(self) -> str:
        given = {"measurement": self.measurement, "layer": self.layer, "filter": self.filter}
        query = "&".join(f"{key}={value}" for key, value in given.items() if value is not None)
        return f"{self.uri}?{query}" if query else self.uri

    @property
    def uri(self) -> str:
        """Where the experiment is, as TileDB takes it: it reads relative paths from where a process once stood."""
        return shown(self.from_anywhere().path)

    def from_anywhere(self) -> SomaAddress:
        """The same as a process that stands in another folder finds it."""
        return replace(self, path=Path(from_anywhere(str(self.path))))

    @classmethod
    def parse(cls, text: str) -> SomaAddress:
        """Read an address; UsageError for a key that it cannot have."""
        path, _, query = text.partition("?")
        rest, found, condition = f"&{query}".partition("&filter=")
        given: dict[str, str] = {}
        for part in filter(None, rest.split("&")):
            key, equals, value = part.partition("=")
            if key not in _KEYS or not equals or not value:
                raise UsageError(
                    f"{text}: {part!r} cannot be read; write PATH?measurement=NAME&layer=NAME&filter=CONDITION"
                )
            given[key] = value
        return cls(Path(path), given.get("measurement"), given.get("layer"), condition if found else None)


def store_path(store: Path) -> Path:
    """Where an atlas, or a SOMA whatever its cells and counts are chosen by, lies."""
    return SomaAddress.parse(str(store)).path if is_soma(store) else store


def is_soma(path: str | Path) -> bool:
    """Whether a path, or an address, leads to a TileDB group.

    In an object store one that ends in .zarr does not, and one with a query does; others are looked at.
    """
    address = object_address(path)
    if address is None:
        return (Path(str(path).partition("?")[0]) / _MARK).exists()
    if address.startswith("http") or address.partition("?")[0].endswith(".zarr"):
        return False
    if "?" in address:
        return True
    from .object_open import read_first  # late: obstore is an extra

    return read_first(address, _MARK) is not None
