"""HDF5 files to be written, so that a full disk is an error: the library itself ends the process with a signal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import anndata
import h5py

if TYPE_CHECKING:
    from pathlib import Path


class Hdf5Output:
    """An HDF5 file, made or opened to be changed; `check` tells of a failed write, and so does the end."""

    def __init__(self, path: Path, fresh: bool = True) -> None:
        self._bytes = _PatientFile(path, fresh)
        self.file = h5py.File(self._bytes, "w" if fresh else "r+")

    def check(self) -> None:
        """OSError if a write has failed."""
        if self._bytes.error is not None:
            raise self._bytes.error

    def close(self) -> None:
        """Close the file; OSError if a write has failed, now or before."""
        try:
            self.file.close()
        finally:
            self._bytes.close()
            self.check()

    def __enter__(self) -> h5py.File:
        return self.file

    def __exit__(self, *error: object) -> None:
        self.close()  # whatever came first: that a write has failed is why


def write_h5ad(adata: anndata.AnnData, path: Path, compression: str | None = None) -> None:
    """What `adata.write_h5ad` does."""
    adata.strings_to_categoricals()
    with Hdf5Output(path) as file:
        anndata.io.write_elem(file, "/", adata, dataset_kwargs={"compression": compression})
        if adata.raw is None:
            del file["raw"]  # said to be null, which anndata's own file does not do and older readers do not know


class _PatientFile(io.RawIOBase):
    """A file that remembers a failed write and does not tell: HDF5 would trip over it again as it closes."""

    def __init__(self, path: Path, fresh: bool) -> None:
        super().__init__()
        self._file = path.open("w+b" if fresh else "r+b", buffering=0)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """All of it, or nothing once a write has failed."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest) and self.error is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self.error = error
        return size

    def readinto(self, buffer: Any) -> int:
        """Zeros behind the end, as HDF5 expects of files."""
        rest = memoryview(buffer).cast("B")
        size = len(rest)
        while len(rest) and (count := self._file.readinto(rest)):
            rest = rest[count:]
        rest[:] = bytes(len(rest))
        return size

    def truncate(self, size: int | None = None) -> int:
        """Cut off, or grow; a failure is remembered."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See io.RawIOBase."""
        return self._file.tell()

    def close(self) -> None:
        """See io.RawIOBase."""
        self._file.close()
        super().close()
