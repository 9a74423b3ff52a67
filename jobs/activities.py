"""activities: which gene sets are active in which types of an atlas, or of a mapped query."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.table import Table

from unicoord_atlas.columns import require_column
from unicoord_atlas.errors import ConfigError, DataError, UsageError
from unicoord_atlas.gene_sets.activities import activity_table
from unicoord_atlas.loaders.fingerprints import table_fingerprint
from unicoord_atlas.loaders.object_address import object_address
from unicoord_atlas.loaders.soma_address import is_soma
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.zarr_layout import SCHEMA, UNS

from .console_text import one_line, plain_console
from .mapped_file import read_mapped
from .workdir import finished_directory

if TYPE_CHECKING:
    from pathlib import Path

SHOWN = 3
"""Sets of each type that are printed."""


@dataclass(frozen=True)
class ActivitiesOptions:
    """What `unicoord-atlas activities` is asked to do."""

    cells: Path
    label: str
    out: Path
    key: str = "X_gene_sets"


def run(options: ActivitiesOptions) -> dict[str, Any]:
    """Write OUT/activities.csv and OUT/activities.png."""
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "activities needs matplotlib, which is not installed: pip install 'unicoord-atlas[gene-sets]'"
        )
    scores, types, made_from = _scores_and_types(options)
    with finished_directory(options.out, [options.cells], made_from) as partial:
        from .gene_set_figures import draw_activities

        table = activity_table(scores, types)
        table.to_csv(partial / "activities.csv", index=False)
        draw_activities(table, partial / "activities.png")
    top = {str(name): part["set"].head(SHOWN).tolist() for name, part in table.groupby("type", sort=False)}
    _show(top, options.label)
    print(f"wrote {options.out}", file=sys.stderr)
    return {"activities": str(options.out), "top": top}


def _scores_and_types(options: ActivitiesOptions) -> tuple[pd.DataFrame, pd.Series, dict[str, str]]:
    """Both, and what tells them from others of the same cells: of a store, whose scores may be replaced, their sum."""
    made_from = {"label": options.label, "key": options.key}
    is_local = (options.cells / "uns" / UNS / SCHEMA).exists()
    if is_local or is_soma(options.cells) or object_address(options.cells) is not None:
        store = open_store(options.cells)
        table, obs = store.obsm(options.key), store.obs([options.label])
        made_from["table"] = table_fingerprint(store, options.key)
    else:
        table, obs = _of_anndata(options)
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"{options.cells}: obsm/{options.key} has no names of columns; select-gene-sets writes one")
    return table, require_column(obs, options.label), made_from


def _of_anndata(options: ActivitiesOptions) -> tuple[Any, pd.DataFrame]:
    cells = read_mapped(options.cells)
    if options.key not in cells.obsm:
        raise UsageError(
            f"{options.cells}: obsm has no {options.key!r}; it has: {', '.join(cells.obsm) or 'nothing'}. "
            "A mapped query has one if its reference was trained with --continuous obsm:X_gene_sets"
        )
    return cells.obsm[options.key], cells.obs


def _show(top: dict[str, list[str]], label: str) -> None:
    table = Table(label, "most active sets")
    for name, sets in top.items():
        table.add_row(one_line(name), one_line("; ".join(sets)))
    plain_console().print(table)
