"""What tells tables and columns of a store from others that had their names: both may be made anew in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .manifest import files_fingerprint, read_manifest
from .zarr_store import ZarrStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .soma_store import SomaStore
    from .store import CellStore


def table_fingerprint(store: CellStore, key: str) -> str:
    """The same for two stores only if their table `key` of obsm is the same; of the store as it is now."""
    if not isinstance(store, ZarrStore):
        return cast("SomaStore", store).table_fingerprint(key)
    return files_fingerprint(read_manifest(store.files), f"obsm/{key}/")


def column_fingerprints(store: CellStore, columns: Iterable[str]) -> dict[str, str]:
    """Likewise of each of these columns that obs has; of a SOMA none, whose own fingerprint tells all of its obs."""
    if not isinstance(store, ZarrStore):
        return {}
    known = set(store.group["obs"].attrs["column-order"])
    return {name: files_fingerprint(store.manifest, f"obs/{name}/") for name in columns if name in known}
