"""What ingest found, as one JSON object and as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from unicoord_atlas.gene_names import KEY_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from .ingest import Atlas
    from .ingest_options import IngestOptions

_COLUMNS = {
    "cells": "cells", "empty_cells": "empty cells", "genes": "genes", "genes_added": "new genes",
    "genes_summed": "genes summed", "genes_lost": "genes lost", "genes_not_measured": "genes lacked",
    "counts": "counts", "counts_lost": "counts lost",
}  # fmt: skip
_ALWAYS = ("cells", "genes", "genes_added", "counts")
_SHOWN = 12
"""Categories and genes that a table names; the JSON has all."""


def report(atlas: Atlas, options: IngestOptions) -> dict[str, Any]:
    """All facts as JSON types."""
    total = atlas.total()
    order = np.argsort(-total.dominated_g, kind="stable")
    highly = [int(i) for i in order[: int((total.dominated_g >= options.min_cells).sum())]]
    return {
        "out": None if options.out is None or options.dry_run else str(options.out),
        "already_done": False,
        "input": options.input,
        "cells": len(total.entries_n),
        "genes": len(atlas.space.genes),
        "entries": int(total.entries_n.sum()),
        "gene_key": atlas.space.key,
        "gene_key_guessed": options.gene_key is None,
        "largest_value": total.largest,
        "empty_cells": total.num_empty,
        "sources": _sources(atlas),
        "labels": [
            {
                "name": column.name,
                "categories": dict(zip(column.categories, column.counts, strict=True)),
                "unlabelled": column.num_unlabelled,
            }
            for column in atlas.labels
        ],
        "label_map_values_not_found": list(atlas.unseen),
        "min_cells": options.min_cells,
        "highly_expressed": {atlas.space.genes[i]: int(total.dominated_g[i]) for i in highly},
    }


def _sources(atlas: Atlas) -> list[dict[str, Any]]:
    rows = []
    seen_g = np.zeros(len(atlas.space.genes), np.bool_)
    for source, gene_map, facts in zip(atlas.sources, atlas.maps, atlas.facts, strict=True):
        rows.append(
            {
                "name": source.name,
                "path": str(source.path),
                "matrix": source.matrix,
                "cells": source.n_obs,
                "empty_cells": facts.num_empty,
                "genes": len(gene_map.new_index),
                "genes_added": int((gene_map.measured_g & ~seen_g).sum()),
                "genes_summed": gene_map.num_summed,
                "genes_lost": gene_map.num_lost,
                "genes_not_measured": gene_map.num_lacking,
                "counts": facts.total,
                "counts_lost": facts.lost,
            }
        )
        seen_g |= gene_map.measured_g
    return rows


def show_report(result: dict[str, Any], console: Console) -> None:
    """Print the facts."""
    guessed = " (guessed)" if result["gene_key_guessed"] else ""
    console.print(
        f"{result['cells']:,} cells x {result['genes']:,} genes by {KEY_WORDS[result['gene_key']]}{guessed}, "
        f"{result['entries']:,} values up to {result['largest_value']:g}; {result['empty_cells']:,} cells are empty",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_source_table(result["sources"]))

    if result["labels"]:
        table = Table("label", "categories (cells)", title="Labels")
        table.add_column("unlabelled cells", justify="right")
        for label in result["labels"]:
            table.add_row(label["name"], _some(label["categories"]), f"{label['unlabelled']:,}")
        console.print(table)
    if result["label_map_values_not_found"]:
        values = ", ".join(result["label_map_values_not_found"])
        console.print(
            f"The label map lists values that no cell has: {values}", highlight=False, soft_wrap=True, markup=False
        )
    if result["input"] == "counts":
        least = f"in at least {result['min_cells']:,} cell{'s' if result['min_cells'] > 1 else ''}"
        console.print(
            f"{len(result['highly_expressed'])} genes are left out of size factors (over 5 % of the counts {least}): "
            f"{_some(result['highly_expressed'])}",
            highlight=False,
            soft_wrap=True,
        )


def _source_table(sources: Sequence[dict[str, Any]]) -> Table:
    """Columns that say nothing of any source are left out."""
    table = Table("source", title="What each source adds to the atlas")
    rows: list[list[str]] = [[str(source["name"])] for source in sources]
    if any(source["matrix"] != "X" for source in sources):
        table.add_column("matrix")
        rows = [[*row, str(source["matrix"])] for row, source in zip(rows, sources, strict=True)]
    for key, title in _COLUMNS.items():
        if key in _ALWAYS or any(source[key] for source in sources):
            table.add_column(title, justify="right")
            rows = [[*row, f"{source[key]:,.0f}"] for row, source in zip(rows, sources, strict=True)]
    for row in rows:
        table.add_row(*row)
    return table


def _some(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN])
    return shown + (f", ... {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "") if counts else "none"
