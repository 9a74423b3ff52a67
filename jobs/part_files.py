"""What a part of export-latents or map-query leaves for the join: obs columns as parquet, tables of obsm as .npy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unicoord_atlas.coordinates import with_free_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.coordinates import Table

_COLUMNS = "columns.parquet"


class PartTable:
    """(n, width) float32 in a .npy file, filled from the first row on; written, not mapped: a disk may be full."""

    def __init__(self, path: Path, num_rows: int, width: int) -> None:
        self._path = path
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)

    def append(self, values: NDArray[np.float32]) -> None:
        """Put the next rows."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(values, "<f4").data)


def table_maker(folder: Path) -> Callable[[str, int, int], PartTable]:
    """Makes tables in a part's directory; see `coordinates.annotated`."""
    return lambda key, num_rows, width: PartTable(folder / f"{key}.npy", num_rows, width)


def write_columns(folder: Path, columns: pd.DataFrame) -> None:
    """Leave the obs columns of a part's cells."""
    columns.to_parquet(folder / _COLUMNS)


def with_columns(obs: pd.DataFrame, folders: Sequence[Path], ours: Sequence[str] = ()) -> pd.DataFrame:
    """Obs of all cells with the columns of all parts, which have the same categories; names need not be unique.

    `ours` are further names that obs's own columns must not have.
    """
    tables = [pd.read_parquet(folder / _COLUMNS) for folder in folders]
    columns = pd.concat([table for table in tables if len(table)])  # one without cells has lost its categories
    return beside(obs, columns, ours)


def beside(obs: pd.DataFrame, columns: pd.DataFrame, ours: Sequence[str] = ()) -> pd.DataFrame:
    """Obs with further columns of the same cells, whatever these call them; its own are shared with the given one."""
    table = with_free_names(obs, [*columns, *ours])
    for name in columns:
        table[name] = columns[name].array
    return table


def copy_tables(folders: Sequence[Path], make_table: Callable[[str, int, int], Table]) -> None:
    """Put the tables of all parts one below the other."""
    filled = [folder for folder in folders if any(folder.glob("*.npy"))]  # a part may have no cells
    for path in sorted(filled[0].glob("*.npy")):
        lengths = [_mapped(folder / path.name).shape for folder in filled]
        table = make_table(path.stem, sum(length for length, _ in lengths), lengths[0][1])
        for folder in filled:
            table.append(_mapped(folder / path.name))


def _mapped(path: Path) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return values
