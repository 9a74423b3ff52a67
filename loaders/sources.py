"""Input files as cells: which matrix of a file is read, and its rows in blocks."""

from __future__ import annotations

import glob
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.normalization import HELD, InputKind

from .object_address import object_address
from .reading import reading
from .soma_address import is_soma
from .source_files import H5_SUFFIXES, SourceFile, is_zarr, open_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import pandas as pd
    from numpy.typing import NDArray

    from .row_matrix import RowMatrix

__all__ = ["CellSource", "FileSource", "InputKind", "content_of", "find_sources", "open_source"]

Content = Literal["counts", "log-normalized values", "scaled values"]
_IN_ORDER = ("X", "layers/counts", "raw")
_OF_COUNTS = "ingest without --input lognorm, or a reference of counts"
_KEPT_OPEN = 4
"""Sources that a process of a cluster keeps open: the next task is likely to read one of them."""


class CellSource(Protocol):
    """Cells with one matrix, read as blocks of rows in the source's own gene space."""

    name: str
    path: Path
    n_obs: int
    matrix: str
    """Name of the matrix that was chosen: X, raw, layers/NAME."""
    is_counts: bool

    @property
    def var(self) -> pd.DataFrame:
        """Genes of the chosen matrix; index = names."""
        ...

    @property
    def obs(self) -> pd.DataFrame:
        """Cells; index = names; text columns are categorical.  Read from the file each time: it can be large."""
        ...

    def cuts(self, rows_per_block: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Row ranges of the blocks, bounded in rows and in entries."""
        ...

    def read(self, start: int, stop: int) -> CsrBlock:
        """Rows start to stop; may be called from several threads."""
        ...

    def blocks(self, rows_per_block: int, start: int = 0, stop: int | None = None) -> Iterator[CsrBlock]:
        """Blocks of consecutive rows."""
        ...


class FileSource:
    """The chosen matrix of an open file; a context manager that closes it.

    It pickles as its address, so another process opens it anew.
    """

    def __init__(self, file: SourceFile, matrix: str, is_counts: bool, scratch: Path | None = None) -> None:
        self._file = file
        self._scratch = scratch
        self._rows: RowMatrix = file.matrix(matrix)
        self.path, self.name = file.path, source_name(file.path)
        self.matrix, self.is_counts = matrix, is_counts
        self.n_obs = self._rows.shape[0]
        if len(self.var) != self._rows.shape[1]:
            raise DataError(f"{self.path}: {matrix} has {self._rows.shape[1]} columns, but var {len(self.var)} genes")

    def __reduce__(self) -> tuple[Any, ...]:
        kind: InputKind = "counts" if self.is_counts else "lognorm"
        scratch = self._scratch and self._scratch.absolute()
        return _reopen_source, (self.path.absolute(), self.matrix, kind, scratch, self.path.stat().st_mtime_ns)

    @cached_property
    def var(self) -> pd.DataFrame:
        """Genes of the chosen matrix; index = names."""
        return self._file.var(self.matrix)

    panels = None
    """All cells have these genes."""

    @property
    def obs(self) -> pd.DataFrame:
        """Cells; index = names; text columns are categorical.  Read from the file each time: it can be large."""
        table = self._file.obs(self.matrix)
        if len(table) != self.n_obs:
            raise DataError(f"{self.path}: {self.matrix} has {self.n_obs} rows, but obs {len(table)} cells")
        return table

    def cuts(self, rows_per_block: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Row ranges of the blocks, bounded in rows and in entries."""
        with reading(self.path, self.matrix):
            return list(self._rows.cuts(rows_per_block, start, self.n_obs if stop is None else stop))

    def read(self, start: int, stop: int) -> CsrBlock:
        """Rows start to stop; may be called from several threads once `cuts` was asked."""
        with reading(self.path, f"{self.matrix} rows {start} to {stop - 1}"):
            return self._rows.read(start, stop)

    def blocks(self, rows_per_block: int, start: int = 0, stop: int | None = None) -> Iterator[CsrBlock]:
        """Blocks of consecutive rows, their values checked."""
        from .facts import check_values  # late: facts are collected from sources

        for first, last in self.cuts(rows_per_block, start, stop):
            block = self.read(first, last)
            check_values(self, block, first)
            yield block

    def take(self, rows: Sequence[int]) -> CsrBlock:
        """These rows in the order given, each read by itself: they may lie anywhere."""
        parts = [self.read(row, row + 1) for row in rows]
        indptr = np.cumsum([0, *(part.indptr[-1] for part in parts)], dtype=np.int64)
        indices, data = (np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "data"))
        return CsrBlock(indptr, indices, data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def source_name(path: Path) -> str:
    """The stem of a file: what its cells and its label-map rows are named by."""
    return path.stem


def find_sources(patterns: Sequence[str], out: Path | None = None) -> list[Path]:
    """Input files of files, folders and globs, each once, sorted by path; `out`, the job's own, is none of them.

    Raises
    ------
    DataError
        If a pattern finds nothing, or a SOMA, or two files have the same stem.
    """
    found: set[Path] = set()
    own = None if out is None else out.absolute()
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if path.exists() else [Path(match) for match in glob.glob(pattern, recursive=True)]
        files = [file for match in matches for file in _expand(match) if file.absolute() != own or file == path]
        if not files:
            if object_address(pattern) is None and (is_soma(pattern) or any(map(is_soma, matches))):
                raise DataError(
                    f"{pattern}: is a SOMA, which stands wherever an atlas does and needs no ingest; "
                    "`unicoord-atlas convert` makes an atlas.zarr of it"
                )
            raise DataError(f"{pattern}: no .h5ad, .h5 or .zarr found here")
        found.update(files)
    by_name: dict[str, Path] = {}
    for path in sorted(found):
        twin = by_name.setdefault(source_name(path), path)
        if twin != path:
            raise DataError(
                f"{path}: has the same name {source_name(path)!r} as {twin}, and cells are named after their file; "
                "rename one, or give it through a link of another name"
            )
    return sorted(found)


def _expand(path: Path) -> list[Path]:
    if path.is_dir() and not is_zarr(path):
        return [p for p in path.iterdir() if p.name[0] != "." and (p.suffix in H5_SUFFIXES or is_zarr(p))]
    return [path]


def content_of(values: NDArray[Any]) -> Content:
    """What a sample of a matrix's values looks like; values that no matrix may have are left to the facts pass."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if (finite == np.rint(finite)).all():
        return "counts"
    return "scaled values" if finite.min() < 0 else "log-normalized values"


def open_source(
    path: Path | str, layer: str | None = None, input: InputKind = "counts", scratch: Path | None = None
) -> FileSource:
    """Open a file and choose its matrix.

    Parameters
    ----------
    path
        .h5ad, 10x .h5 or AnnData .zarr.
    layer
        `X`, `raw`, or the name of a layer; without it the first of X, layers["counts"] and raw that holds integers,
        or, of X and raw, the first that looks log-normalized for `input="lognorm"`.
    input
        What the matrix holds.
    scratch
        Folder for the temporary files that a CSC matrix is turned in.

    Raises
    ------
    DataError
        If the file cannot be read, or no matrix holds what is wanted: the message says what each holds.
    """
    file = open_file(Path(path), scratch)
    try:
        return FileSource(file, choose_matrix(file, layer, input), input == "counts", scratch)
    except Exception:
        file.close()
        raise


@lru_cache(_KEPT_OPEN)
def _reopen_source(path: Path, layer: str, input: InputKind, scratch: Path | None, modified_ns: int) -> FileSource:
    # The time of change is there to tell a file from a former one of its name.
    return open_source(path, layer, input, scratch)


def choose_matrix(file: SourceFile, layer: str | None, input: InputKind) -> str:
    """Name of the matrix to read; see `open_source`."""
    if layer is not None:
        for name in (layer, f"layers/{layer}"):
            if name in file.matrix_names:
                return _unless_counts(file, name, input)
        known = ", ".join(file.matrix_names) or "none"
        raise UsageError(f"{file.path}: --layer {layer!r} is not there; it has: {known}")
    if file.format.startswith("10x"):
        if len(file.matrix_names) > 1:
            raise UsageError(f"{file.path}: holds genomes {', '.join(file.matrix_names)}; choose by --layer NAME")
        return _unless_counts(file, file.matrix_names[0], input)
    wanted = HELD[input]
    held: dict[str, Content] = {}
    for name in _IN_ORDER:
        if name in file.matrix_names and not (name == "layers/counts" and input == "lognorm"):
            with reading(file.path, name):
                held[name] = content_of(file.matrix(name).sample())
            if held[name] == wanted:
                return name
    holdings = ", ".join(f"{name} holds {content}" for name, content in held.items()) or "it has no X and no raw"
    others = [name.removeprefix("layers/") for name in file.matrix_names if name not in held]
    ways = ["--layer NAME" + (f" (one of {', '.join(others)})" if others else "")]
    if input == "counts" and "log-normalized values" in held.values():
        ways.append("ingest with --input lognorm if it is log1p of normalized counts, or a reference of such")
    if input == "lognorm" and "counts" in held.values():
        ways.append(_OF_COUNTS)
    raise DataError(f"{file.path}: no {wanted}: {holdings}; {' or '.join(ways)}")


def _unless_counts(file: SourceFile, name: str, input: InputKind) -> str:
    """The matrix that was named; DataError if it holds counts and log-normalized values are wanted."""
    with reading(file.path, name):
        sample = file.matrix(name).sample() if input == "lognorm" else np.zeros(0)
    if len(sample) and content_of(sample) == "counts":
        raise DataError(f"{file.path}: no log-normalized values: {name} holds counts; --layer NAME or {_OF_COUNTS}")
    return name
