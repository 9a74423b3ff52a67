"""info: what lies in a store or in any input file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from unicoord_atlas.gene_names import KEY_WORDS, gene_names
from unicoord_atlas.loaders.labels import UNLABELLED_WORDS, as_texts
from unicoord_atlas.loaders.manifest import read_manifest
from unicoord_atlas.loaders.object_address import object_address
from unicoord_atlas.loaders.reading import reading
from unicoord_atlas.loaders.soma_address import is_soma
from unicoord_atlas.loaders.source_files import SourceFile, is_zarr, open_file
from unicoord_atlas.loaders.sources import content_of
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.store_files import open_files
from unicoord_atlas.loaders.zarr_layout import MANIFEST, SCHEMA, UNS
from unicoord_atlas.normalization import HELD

from .console_text import plain_console

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from rich.console import Console

    from unicoord_atlas.schema import LabelColumn

_MOST_CATEGORIES = 1000
"""A text column with more values names cells, not classes."""
_MOST_INTEGERS = 100
"""A column of whole numbers with more values is a measurement."""


def run(path: Path, console: Console | None = None) -> dict[str, Any]:
    """Show what a store or an input file holds, and return it as JSON types.

    Raises
    ------
    DataError
        If it is neither, or is damaged.
    """
    is_file = object_address(path) is None and not is_soma(path) and (_is_made(path) or not (path / MANIFEST).exists())
    found = _file(path) if is_file else _store(path)
    _show(found, console or plain_console())
    return found


def _is_made(path: Path) -> bool:
    """Whether these are cells that `generate`, `export-latents` or `map-query` wrote: finished, but no atlas."""
    if not (is_zarr(path) and (path / MANIFEST).exists()):
        return False
    return f"uns/{UNS}/{SCHEMA}/zarr.json" not in read_manifest(open_files(path))["files"]


def _store(path: Path) -> dict[str, Any]:
    store = open_store(path)
    labels = {column.name: column for column in store.schema.labels}
    return {
        "path": store.uri,
        "format": "SOMA Experiment" if is_soma(path) else "unicoord-atlas store",
        "cells": store.n_obs,
        "genes": store.n_vars,
        "gene_key": store.schema.gene_key,
        "entries": int(store.indptr[-1]),
        "matrices": {"X": HELD[store.normalization.input]},
        "sources": {source.name: source.num_cells for source in store.schema.sources},
        "genes_left_out_of_size_factors": int(store.normalization.highly_expressed_g.sum()),
        "labels": {name: _label(column) for name, column in labels.items()},
        "obs": [str(column) for column in store.obs().columns],
    }


def _label(column: LabelColumn) -> dict[str, int]:
    return {"categories": len(column.categories), "unlabelled": column.num_unlabelled}


def _file(path: Path) -> dict[str, Any]:
    file = open_file(path)
    try:
        matrices = {name: _matrix(file, name) for name in file.matrix_names}
        first = file.matrix_names[0] if file.matrix_names else "X"
        obs, names = file.obs(first), gene_names(file.var(first))
        return {
            "path": str(path),
            "format": file.format,
            "cells": len(obs),
            "genes": len(names.symbol),
            "gene_key": names.own,
            "gene_keys_known": [key for key in KEY_WORDS if names.knows(key)],
            "matrices": matrices,
            "labels": {str(name): found for name in obs if (found := _candidate(obs[name])) is not None},
            "obs": [str(column) for column in obs.columns],
        }
    finally:
        file.close()


def _matrix(file: SourceFile, name: str) -> str:
    matrix = file.matrix(name)
    with reading(file.path, name):
        content = content_of(matrix.sample())
    return f"{content} ({matrix.encoding}, {matrix.dtype}, {matrix.shape[0]} x {matrix.shape[1]})"


def _candidate(values: pd.Series) -> dict[str, int] | None:
    """How the column would look as a label; None if it is no class of cells."""
    if values.dtype.kind in "iu":
        limit = _MOST_INTEGERS
    elif values.dtype.kind in "Ob":
        limit = _MOST_CATEGORIES
    else:
        return None
    texts = as_texts(values)
    labelled = [text.strip().lower() not in UNLABELLED_WORDS for text in texts.categories]
    codes = texts.codes
    unlabelled = int((codes < 0).sum()) + sum(int((codes == i).sum()) for i, yes in enumerate(labelled) if not yes)
    return {"categories": sum(labelled), "unlabelled": unlabelled} if 0 < sum(labelled) <= limit else None


def _show(found: dict[str, Any], console: Console) -> None:
    also = [key for key in found.get("gene_keys_known", []) if key != found["gene_key"]]
    named = KEY_WORDS[found["gene_key"]] + (f", {KEY_WORDS[also[0]]} known too" if also else "")
    console.print(
        f"{found['path']}: {found['format']}, {found['cells']:,} cells x {found['genes']:,} genes (by {named})",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    for name, content in found["matrices"].items():
        console.print(f"  {name}: {content}", highlight=False, soft_wrap=True, markup=False)
    if "sources" in found:
        sources = ", ".join(f"{name} {cells:,}" for name, cells in found["sources"].items())
        console.print(f"  sources (cells): {sources}", highlight=False, soft_wrap=True, markup=False)
    if found["labels"]:
        table = Table("label column" if "sources" in found else "could be a label")
        table.add_column("categories", justify="right")
        table.add_column("unlabelled cells", justify="right")
        for name, label in found["labels"].items():
            table.add_row(name, f"{label['categories']:,}", f"{label['unlabelled']:,}")
        console.print(table)
    console.print(f"  obs columns: {', '.join(found['obs']) or 'none'}", highlight=False, soft_wrap=True, markup=False)
