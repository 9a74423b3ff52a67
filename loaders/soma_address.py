"""Which cells and which matrix of a SOMA Experiment a store is, in one text that every job takes as a path.

    cells.soma
    cells.soma?measurement=RNA&layer=raw&filter=tissue == "lung"

The filter comes last, since it may hold any character; it is a value filter of SOMA on obs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unicoord_atlas.errors import UsageError

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
        return f"{self.path}?{query}" if query else str(self.path)

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


def is_soma(path: str | Path) -> bool:
    """Whether a path, or an address, leads to a local TileDB group."""
    return (Path(str(path).partition("?")[0]) / _MARK).exists()
