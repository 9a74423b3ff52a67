"""The cells that are bundled with a reference: their coordinates and labels, and an index of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd

from unicoord_atlas.checksums import require_unchanged
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.loaders.reading import reading
from unicoord_atlas.loaders.store_files import open_output
from unicoord_atlas.neighbors.knn import Trial, choose_probes
from unicoord_atlas.neighbors.lists import ListSearch, build_lists, load_lists, save_lists
from unicoord_atlas.neighbors.query_knn import search_all

from .workdir import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.neighbors.knn import Search

LATENTS = "latents.zarr"
INDEX, INDEX_FACTS = "neighbors.faiss", "neighbors.json"
_CHECKED = 500
RECALL = 0.99


@dataclass(frozen=True)
class ReferenceCells:
    """Bundled cells of a reference."""

    folder: Path
    group: Any
    points_nb: NDArray[np.float32]
    """Biological coordinates."""
    labels: list[str]
    """Labels of the reference that the cells carry."""

    @classmethod
    def open(cls, reference: Path, labels: Sequence[str]) -> ReferenceCells:
        """The cells of a reference directory; DataError if none are bundled."""
        folder = reference / LATENTS
        if not folder.exists():
            raise DataError(
                f"{reference}: no cells are bundled; export it with `unicoord-atlas export-reference --latents LATENTS`"
            )
        with reading(folder, "the cells"):
            group: Any = open_output(folder)
            known = set(group["obs"].attrs["column-order"])
            points_nb = np.asarray(group["obsm/X_unicoord_bio"][:], np.float32)
        return cls(reference, group, points_nb, [name for name in labels if name in known])

    def columns(self, names: Sequence[str]) -> pd.DataFrame:
        """Obs columns; UsageError names one that is not there."""
        with reading(self.folder / LATENTS, "obs"):
            group = self.group["obs"]
            for name in names:
                if name not in group.attrs["column-order"]:
                    known = ", ".join(group.attrs["column-order"])
                    raise UsageError(f"{self.folder}: its cells have no column {name!r}; they have: {known}")
            index = anndata.io.read_elem(group[group.attrs["_index"]])
            return pd.DataFrame({name: anndata.io.read_elem(group[name]) for name in names}, index=pd.Index(index))

    def search(self, num_queries: int) -> Search:
        """By the index that was exported, or by comparing with all cells."""
        if not (self.folder / INDEX).exists():
            return search_all(self.points_nb, num_queries)
        require_unchanged(self.folder, (INDEX, INDEX_FACTS))
        facts = read_json(self.folder / INDEX_FACTS) or {}
        if facts.get("cells") != len(self.points_nb):
            raise DataError(f"{self.folder / INDEX_FACTS}: not of the cells in {LATENTS}; export the reference anew")
        probes = facts.get("probes")
        if not (isinstance(probes, int) and probes > 0):
            raise DataError(f"{self.folder / INDEX_FACTS}: probes = {probes!r} is no number; export the reference anew")
        with reading(self.folder / INDEX, "the index"):
            index = load_lists(self.folder / INDEX, shared=True)
            if (index.ntotal, index.d) != self.points_nb.shape:
                raise DataError(f"{self.folder / INDEX}: not of the cells in {LATENTS}; export the reference anew")
        return ListSearch(index, probes)


def copy_cells(reference: Path, out: Path) -> None:
    """Bundle the cells of a reference, if it has any, and their index with another of the same coordinates."""
    if (reference / LATENTS).exists():
        shutil.copytree(reference / LATENTS, out / LATENTS)
    for name in (INDEX, INDEX_FACTS):
        if (reference / name).exists():
            shutil.copyfile(reference / name, out / name)


def write_index(folder: Path, k: int = 15, seed: int = 0) -> None:
    """Index the cells bundled in a reference directory; the recall on a sample decides in how many lists is looked."""
    points_nb = ReferenceCells.open(folder, ()).points_nb
    index = build_lists(points_nb, seed)
    sample = np.sort(np.random.default_rng(seed).choice(len(points_nb), min(_CHECKED, len(points_nb)), replace=False))
    probes = choose_probes(Trial.of(points_nb, sample, None, k, RECALL), index)
    save_lists(index, folder / INDEX)
    write_json(folder / INDEX_FACTS, {"cells": len(points_nb), "probes": probes, "recall": RECALL})
