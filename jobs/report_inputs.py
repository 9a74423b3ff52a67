"""What a report is made from, opened and checked to be of one run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from unicoord_atlas.allocator import give_back_freed_memory
from unicoord_atlas.config import RunConfig
from unicoord_atlas.coordinate_facts import require_coordinates_of
from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.cell_names import read_frame
from unicoord_atlas.loaders.reading import reading
from unicoord_atlas.loaders.store import CellStore, open_store
from unicoord_atlas.loaders.store_files import open_output
from unicoord_atlas.loaders.zarr_store import ZarrStore
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training.checkpoint import latest_progress, read_json
from unicoord_atlas.training.metrics import read_metrics
from unicoord_atlas.training.preparation import Preparation, prepare

from .export_reference import model_of_run, require_latents
from .label_tables import columns_of_table
from .mapped_file import read_mapped

if TYPE_CHECKING:
    from pathlib import Path

    import anndata
    from numpy.typing import NDArray

    from unicoord_atlas.schema import LabelColumn

OBSM = "obsm:"
_STRETCH = 65_536
"""Rows of a table that are in memory together."""


class Latents:
    """What export-latents wrote: obs in memory, tables read for the cells that are asked for."""

    def __init__(self, path: Path) -> None:
        with reading(path, "the latents"):
            self._group: Any = open_output(path)
            self.obs = read_frame(self._group["obs"])

    def table(self, key: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(rows, width) of a table of obsm."""
        return self.rows_of(key)[rows]

    def rows_of(self, key: str) -> RowsOfTable:
        """The same, read as it is indexed."""
        return RowsOfTable(self._group[f"obsm/{key}"])

    def frame(self, key: str, rows: NDArray[np.int64]) -> pd.DataFrame | None:
        """The same of a table with named columns; None if there is none."""
        if key not in self._group["obsm"]:
            return None
        return frame_rows(self._group[f"obsm/{key}"], rows)


def frame_rows(table: Any, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Some rows of a table of numbers as AnnData wrote it to Zarr, read a column at a time."""
    if "column-order" not in table.attrs:
        return pd.DataFrame(np.asarray(table[:])[rows])
    return pd.DataFrame({name: np.asarray(table[name][:])[rows] for name in table.attrs["column-order"]})


def store_frame_rows(store: CellStore, key: str, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Some rows of a table in obsm of a store."""
    if isinstance(store, ZarrStore):
        return frame_rows(store.group[f"obsm/{key}"], rows)
    return pd.DataFrame(store.obsm(key)).iloc[rows].reset_index(drop=True)


@dataclass(frozen=True)
class RowsOfTable:
    """A table of obsm in its file: of a million cells it would be a gigabyte."""

    _table: Any

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._table.shape[0])

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """These rows, ascending, cut out of the stretches of the table that hold them."""
        parts = np.split(rows, np.flatnonzero(np.diff(rows // _STRETCH)) + 1)
        return np.concatenate([self._cut_out(part) for part in parts])

    def _cut_out(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        first, stop = int(rows[0]), int(rows[-1]) + 1
        return np.asarray(self._table[first:stop], np.float32)[rows - first]


@dataclass(frozen=True)
class Inputs:
    """A finished run, and whatever else was given."""

    run: Path
    reference: ReferenceModel
    config: RunConfig
    entries: list[dict[str, Any]]
    """Of metrics.jsonl: one an epoch."""
    best_epoch: int
    """The one that is exported, counted from 1."""
    store: CellStore | None
    latents: Latents | None
    mapped: anndata.AnnData | None

    @property
    def best(self) -> dict[str, Any]:
        """The metrics of the epoch that is exported."""
        return next(entry for entry in self.entries if entry["epoch"] == self.best_epoch - 1)

    @property
    def labels(self) -> list[str]:
        """Supervised labels, the coarse levels of a tree included."""
        return [label.name for label in self.reference.config.labels]

    @property
    def supervised(self) -> list[str]:
        """Supervised continuous dimensions."""
        return [each.name for each in self.reference.config.network.latent.continuous if each.supervised]

    @cached_property
    def held_out(self) -> HeldOut:
        """Validation cells and their truth, as the run had them; without the atlas, of obs columns only."""
        assert self.latents is not None
        latent = self.config.latent
        names = [name for name in latent.continuous if self.store is not None or not name.startswith(OBSM)]
        keys = [name.removeprefix(OBSM) for name in names if name.startswith(OBSM)]
        tables = {key: columns_of_table(self.store, key) for key in keys} if self.store is not None else {}
        config = self.config.model_copy(update={"latent": latent.model_copy(update={"continuous": tuple(names)})})
        sizes = self.latents.obs["size_factor"].to_numpy(np.float64)
        found = HeldOut.of(prepare(config, self.reference.schema, self.latents.obs, sizes, tables))
        give_back_freed_memory()  # what it took for all cells
        return found


@dataclass(frozen=True)
class HeldOut:
    """What a run knew of its validation cells.  Shapes: v cells, l labels, c continuous columns."""

    rows: NDArray[np.int64]
    """Of the latents."""
    labels: tuple[LabelColumn, ...]
    continuous: tuple[str, ...]
    codes_vl: NDArray[np.int32]
    values_vc: NDArray[np.float32]

    @classmethod
    def of(cls, prepared: Preparation) -> HeldOut:
        """Of all cells those that were held out."""
        rows, columns = prepared.validation_rows, prepared.columns
        names = tuple(each.name for each in prepared.latent.continuous if each.supervised)
        return cls(rows, prepared.labels, names, columns.codes[rows], columns.values[rows])


def open_inputs(run: Path, atlas: Path | None, latents: Path | None, mapped: Path | None) -> Inputs:
    """Open all; DataError names what is missing, or is not of this run."""
    model = model_of_run(run)
    facts = read_json(run / "run.json")
    entries = read_metrics(run / "metrics.jsonl")
    best_epoch = latest_progress(run / "checkpoints").best_epoch
    if best_epoch - 1 not in [entry["epoch"] for entry in entries]:
        raise DataError(f"{run / 'metrics.jsonl'}: has no line of epoch {best_epoch}; restore it, or train again")
    store = open_store(atlas) if atlas else None
    if store is not None and store.fingerprint != facts.get("fingerprint"):
        raise DataError(f"--atlas {atlas}: {run} was trained on another atlas ({facts.get('atlas')})")
    if latents:
        require_latents(latents, model)
    reference = ReferenceModel.load(model)
    return Inputs(
        run,
        reference,
        _config(run, facts),
        entries,
        best_epoch,
        store,
        Latents(latents) if latents else None,
        _mapped(mapped, reference) if mapped else None,
    )


def _config(run: Path, facts: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(facts.get("settings"))
    except ValidationError as error:
        raise DataError(f"{run / 'run.json'}: settings of another version of this program ({error})") from error


def _mapped(path: Path, reference: ReferenceModel) -> anndata.AnnData:
    adata = read_mapped(path)
    facts = adata.uns.get("unicoord")
    if facts is None or "categories" not in facts:
        raise DataError(f"--mapped {path}: map-query did not write it; give the file that it wrote")
    known = {label.name: list(label.categories) for label in reference.config.labels}
    if {name: list(map(str, names)) for name, names in facts["categories"].items()} != known:
        raise DataError(f"--mapped {path}: mapped onto a reference with other labels than this run's")
    require_coordinates_of(reference, facts, path)
    return adata
