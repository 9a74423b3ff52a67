"""What lies in an input file: AnnData in HDF5 or Zarr, new and old encodings, and CellRanger's 10x .h5, v2 and v3.

A file's matrices are opened one by one, when asked for: a broken layer that nobody wants harms nobody.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem

from unicoord_atlas.errors import DataError

from .chunked import open_stretch
from .labels import as_text
from .reading import reading
from .row_matrix import CsrMatrix, RowMatrix, open_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

H5_SUFFIXES = (".h5ad", ".h5")
ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
_GENOME_PARTS = {"barcodes", "gene_names", "genes", "data", "indices", "indptr", "shape"}


class SourceFile(Protocol):
    """An open input file."""

    path: Path
    format: str
    """For messages: AnnData HDF5, AnnData Zarr, 10x HDF5 v2 or v3."""
    matrix_names: tuple[str, ...]
    """X, raw, layers/NAME; in a 10x file `matrix` or the genomes."""

    def matrix(self, name: str) -> RowMatrix:
        """One of the matrices."""
        ...

    def var(self, name: str) -> pd.DataFrame:
        """The genes of one of the matrices; index = gene names."""
        ...

    def obs(self, name: str, /) -> pd.DataFrame:
        """The cells of one of the matrices; index = cell names; text columns are categorical."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class AnnDataFile:
    """AnnData in HDF5 or Zarr."""

    def __init__(self, path: Path, root: Any, scratch: Path | None) -> None:
        self.path, self._root, self._scratch = path, root, scratch
        self.format = "AnnData HDF5" if isinstance(root, h5py.Group) else "AnnData Zarr"
        self._places = {"X": "X"} if "X" in root else {}
        self._places |= {f"layers/{name}": f"layers/{name}" for name in (root["layers"] if "layers" in root else ())}
        for place in ("raw/X", "raw.X"):
            if place in root:
                self._places["raw"] = place
        self.matrix_names = tuple(self._places)

    def matrix(self, name: str) -> RowMatrix:
        """One of the matrices."""
        with reading(self.path, name):
            return open_matrix(self._root[self._places[name]], self._scratch)

    def var(self, name: str) -> pd.DataFrame:
        """The genes of X and layers, or of raw."""
        place = self._places["raw"].replace("X", "var") if name == "raw" else "var"
        with reading(self.path, place):
            return shared_texts(self._table(place))

    def obs(self, _name: str, /) -> pd.DataFrame:
        """The cells, of whatever matrix."""
        with reading(self.path, "obs"):
            table = self._table("obs")
            for column in table.columns[[dtype.kind == "O" for dtype in table.dtypes]]:
                table[column] = text_categories(table[column])
            return table

    def close(self) -> None:
        """Close an HDF5 file; a Zarr group holds nothing open."""
        if isinstance(self._root, h5py.Group):
            self._root.file.close()

    def _table(self, place: str) -> pd.DataFrame:
        element = self._root[place]
        table = self._compound_table(element) if hasattr(element, "dtype") else read_elem(element)
        if not isinstance(table, pd.DataFrame):
            raise DataError("is not an AnnData table; write the file again with a current anndata")
        table.index = table.index.astype(str)
        return table

    def _compound_table(self, element: Any) -> pd.DataFrame:
        """A table as anndata wrote it before version 0.7: one compound dataset, categories in uns."""
        records = element[()]
        columns = {}
        for name in records.dtype.names:
            values = records[name]
            if values.dtype.kind in "SO":
                values = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], object)
            if f"uns/{name}_categories" in self._root:
                categories = _texts(self._root[f"uns/{name}_categories"])
                values = pd.Categorical.from_codes(values.astype(int), categories)
            columns[name] = values
        table = pd.DataFrame(columns)
        return table.set_index(table.columns[0])


class TenxFile:
    """CellRanger's matrix: version 3 (group `matrix`, features) or 2 (a group for each genome, genes)."""

    def __init__(self, path: Path, root: h5py.File) -> None:
        self.path, self._root = path, root
        self._new = "matrix" in root
        self.format = f"10x HDF5 v{3 if self._new else 2}"
        self.matrix_names = ("matrix",) if self._new else tuple(root)

    def matrix(self, name: str) -> RowMatrix:
        """Genes by cells in CSC is cells by genes in CSR."""
        with reading(self.path, name):
            group = self._root[name]
            indptr = np.asarray(group["indptr"][:]).astype(np.int64)
            return CsrMatrix(
                indptr, open_stretch(group["indices"]), open_stretch(group["data"]), int(group["shape"][0])
            )

    def var(self, name: str) -> pd.DataFrame:
        """Gene symbols, with Ensembl ids in `gene_ids`."""
        with reading(self.path, f"{name} genes"):
            group = self._root[name]
            if not self._new:
                symbols, columns = _texts(group["gene_names"]), {"gene_ids": _texts(group["genes"])}
            else:
                features = group["features"]
                symbols, columns = _texts(features["name"]), {"gene_ids": _texts(features["id"])}
                if "feature_type" in features:
                    columns["feature_types"] = _texts(features["feature_type"])
            return shared_texts(pd.DataFrame(columns, index=pd.Index(symbols, dtype=object)))

    def obs(self, name: str, /) -> pd.DataFrame:
        """Barcodes and nothing else; in version 2 each genome has its own."""
        with reading(self.path, f"{name}/barcodes"):
            return pd.DataFrame(index=pd.Index(_texts(self._root[name]["barcodes"]), dtype=object))

    def close(self) -> None:
        """Close the file."""
        self._root.close()


def text_categories(values: pd.Series) -> pd.Categorical:
    """An object column as a categorical of its texts; whatever pandas calls missing stays missing."""
    texts = values.map(as_text, na_action="ignore")
    return pd.Categorical(texts)


def shared_texts(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each of its texts in memory once: the sources of an atlas name the same genes."""

    def shared(values: Any) -> NDArray[np.object_]:
        return np.array([sys.intern(value) if type(value) is str else value for value in values], object)

    if table.index.dtype.kind == "O":
        table.index = pd.Index(shared(table.index), dtype=object, name=table.index.name)
    for column in table.columns[[dtype.kind == "O" and isinstance(dtype, np.dtype) for dtype in table.dtypes]]:
        table[column] = shared(table[column])
    return table


def _texts(dataset: Any) -> NDArray[np.object_]:
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in dataset[:]], object)


def is_zarr(path: Path) -> bool:
    """Whether a path is a Zarr group on disk."""
    return path.is_dir() and any((path / mark).exists() for mark in ZARR_MARKS)


def open_file(path: Path, scratch: Path | None = None) -> SourceFile:
    """Open an input file; what it is is seen from its contents.

    Raises
    ------
    DataError
        If it does not exist, is damaged, or is neither AnnData nor a 10x matrix.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, or a link that leads nowhere")
    if path.is_dir():
        if not is_zarr(path):
            raise DataError(f"{path}: is a folder without Zarr metadata ({' or '.join(ZARR_MARKS)}), so no AnnData")
        with reading(path, "Zarr group"):
            return _anndata(path, zarr.open_group(path, mode="r"), scratch)
    with reading(path, "HDF5"):
        root = h5py.File(path, "r")
        _bound_cache(root)
        refuse_outside(root)
    if "matrix" in root and "barcodes" in root["matrix"]:
        return TenxFile(path, root)
    if len(root) and all(isinstance(group, h5py.Group) and set(group) >= _GENOME_PARTS for group in root.values()):
        return TenxFile(path, root)
    return _anndata(path, root, scratch)


def _bound_cache(root: h5py.File) -> None:
    """HDF5 keeps texts of obs for as long as a file is open, megabytes in each of an atlas's hundred sources."""
    cache = root.id.get_mdc_config()
    cache.set_initial_size, cache.initial_size, cache.min_size, cache.max_size = True, 1 << 19, 1 << 19, 1 << 20
    root.id.set_mdc_config(cache)


def refuse_outside(root: h5py.File) -> None:
    """DataError if a part of a file lies in another file: a shared .h5ad could read any of this machine."""
    left, seen = [root], set()
    while left:
        group = left.pop()
        seen.add(group)
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.SoftLink):
                continue  # to a name of this file, which is looked at itself
            where = f"{group.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"{where} is a link to another file, {link.filename!r}; copy what it holds into this")
            part = group[name]
            if isinstance(part, h5py.Dataset) and (part.is_virtual or part.external):
                raise DataError(f"{where} keeps its values in another file; copy what it holds into this")
            if isinstance(part, h5py.Group) and part not in seen:
                left.append(part)


def _anndata(path: Path, root: Any, scratch: Path | None) -> AnnDataFile:
    missing = [part for part in ("obs", "var") if part not in root]
    if missing:
        found = ", ".join(sorted(root)) or "nothing"
        raise DataError(f"{path}: is no AnnData: {' and '.join(missing)} missing at its root, which holds {found}")
    return AnnDataFile(path, root, scratch)
