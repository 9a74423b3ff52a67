"""Cell type: all blood cells that are no T cells set to "CD8 T", as the paper's figure 2d."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from reconfigure_bars import Bar, dense, movable, nearest, quiet_fit, real, reconstructed

from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.generate import Generation

if TYPE_CHECKING:
    from pathlib import Path

NAME = "pbmc4k_soupx"
TARGET = "CD8 T"
T_CELLS = ["CD8 T", "CD4 T"]
UP = ["PTPRC", "CD3E", "TRAC"]
OFF = ["LYZ", "S100A8", "S100A9", "CD14", "FCN1"]
MONOCYTES = ["CD14 Mono", "FCGR3A Mono"]


def measure(data: Path, settings: list[str]) -> tuple[dict[str, object], list[Bar]]:
    """Figures and bars."""
    cells = anndata.read_h5ad(data / NAME / f"{NAME}.h5ad")
    names = pd.read_csv(data / "pbmc_labels.csv").query("source == @NAME")
    cells.obs["cell_type"] = (
        cells.obs["cell_type_scvi"].astype(str).map(dict(zip(names["label"], names["cell_type"], strict=True)))
    )
    cells = cells[cells.obs["cell_type"].notna()].copy()
    cells.obs_names_make_unique()
    reference = quiet_fit(cells, ["cell_type"], ["train.epochs=40", *movable(["cell_type"]), *settings])
    others = cells[~cells.obs["cell_type"].isin(T_CELLS)].copy()
    target = (cells.obs["cell_type"] == TARGET).to_numpy()
    expressed, before = real(reference, cells), reconstructed(reference, others)
    made = dense(reference, others, Generation(Changes({"cell_type": TARGET}), sample="mode", min_value=0))
    genes, goal = np.array(reference.own_genes), expressed[target].mean(axis=0)
    table = {}
    is_monocyte = others.obs["cell_type"].isin(MONOCYTES).to_numpy()
    for gene in [*UP, *OFF]:
        column, rows = genes == gene, slice(None) if gene in UP else is_monocyte
        levels = (float(before[rows][:, column].mean()), float(made[rows][:, column].mean()), float(goal[column][0]))
        table[gene] = dict(zip(("before", "after", "real CD8 T"), levels, strict=True))
    found = cells.obs["cell_type"].to_numpy(str)[nearest(made, expressed)]
    figures: dict[str, object] = {
        "markers": table,
        "nearest_is_target": float((found == TARGET).mean()),
        "nearest_is_T": float(np.isin(found, T_CELLS).mean()),
    }
    up = min(table[gene]["after"] - table[gene]["before"] for gene in UP)
    off = max(table[gene]["after"] / table[gene]["before"] for gene in OFF)
    return figures, [
        Bar("type_T_markers_up_least", up, 0.05),
        Bar("type_monocyte_markers_left_most", off, 0.25, at_least=False),
    ]
