"""Files that map-query or export-latents wrote, read without any X that they may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import h5py

from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.reading import reading
from unicoord_atlas.loaders.store_files import open_output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

_PARTS = ("obs", "obsm", "uns")


def read_mapped(path: Path) -> anndata.AnnData:
    """obs, obsm and uns of an .h5ad or AnnData .zarr; DataError if it is neither."""
    return anndata.AnnData(**_read(path, _PARTS))


def read_obs(path: Path) -> pd.DataFrame:
    """Obs of such a file alone: tables of a million cells take gigabytes."""
    return _read(path, ("obs",))["obs"]


def _read(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    with reading(path, "the file"):
        if path.is_dir():
            group = open_output(path)
            return {name: anndata.io.read_elem(group[name]) for name in wanted if name in group}
        with h5py.File(path, "r") as file:
            return {name: anndata.io.read_elem(file[name]) for name in wanted if name in file}
