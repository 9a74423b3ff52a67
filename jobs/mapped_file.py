"""Files that map-query wrote, read without any X that they may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import h5py
import zarr

from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.reading import reading

if TYPE_CHECKING:
    from pathlib import Path

_PARTS = ("obs", "obsm", "uns")


def read_mapped(path: Path) -> anndata.AnnData:
    """obs, obsm and uns of an .h5ad or AnnData .zarr; DataError if it is neither."""
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    with reading(path, "the file"):
        if path.is_dir():
            group = zarr.open_group(path, mode="r")
            parts = {name: anndata.io.read_elem(group[name]) for name in _PARTS if name in group}
        else:
            with h5py.File(path, "r") as file:
                parts = {name: anndata.io.read_elem(file[name]) for name in _PARTS if name in file}
    return anndata.AnnData(**parts)
