"""From bytes on disk to minibatches: sources, stores and the streams that read them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plan import Partition
    from .sampling import balanced_weights
    from .store import CellStore, open_store
    from .stream import CellStream

__all__ = ["CellStore", "CellStream", "Partition", "balanced_weights", "open_store"]

_HOMES = {
    "CellStore": "store",
    "CellStream": "stream",
    "Partition": "plan",
    "balanced_weights": "sampling",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the stream needs torch, which reading a table does not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
