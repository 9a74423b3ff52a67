"""figure: the paper's pictures of generated cells, each made from cells and a reference by one command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unicoord_atlas.errors import UsageError
from unicoord_atlas.loaders.cell_names import with_python_names
from unicoord_atlas.loaders.picked_rows import PickedRows
from unicoord_atlas.loaders.query_cells import open_query
from unicoord_atlas.query import MIN_COVERAGE, QueryBatches, require_coverage
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.scene import every_gene, gene_columns, make_scene, plane, these_genes

from .map_query import require_cells
from .workdir import finished_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scipy.sparse import csr_matrix

    from unicoord_atlas.generate import Generation
    from unicoord_atlas.scene import View

Kind = Literal["nearest", "markers", "trajectory", "sweep-gif"]
SWEPT = ("trajectory", "sweep-gif")
_FEWEST = 4
"""Cells on a plane: umap takes no fewer, and two components need three."""


@dataclass(frozen=True)
class FigureOptions:
    """What `unicoord-atlas figure` is asked to draw."""

    kind: Kind
    cells: Path
    reference: Path
    out: Path
    how: Generation
    by: str
    """obs column that colours or groups cells."""
    genes: list[str]
    """Of markers, by the reference's names or their aliases."""
    max_cells: int = 2000
    layer: str | None = None
    min_coverage: float = MIN_COVERAGE
    """Cells whose genes carry less of the reference's mean profile are refused."""


def run(options: FigureOptions) -> dict[str, Any]:
    """Take cells at random, generate, draw."""
    from . import figure_panels  # matplotlib is an extra

    suffix = ".gif" if options.kind == "sweep-gif" else ".png"
    if options.out.suffix != suffix:
        raise UsageError(f"--out {options.out}: give it a name that ends in {suffix}")
    if (options.kind in SWEPT) != bool(options.how.changes.sweeps):
        raise UsageError(f"figure {options.kind}: {'say' if options.kind in SWEPT else 'it takes no'} --sweep")
    reference = ReferenceModel.load(options.reference)
    with open_query(options.cells, options.layer, reference.normalization.input) as source:
        require_cells(source.n_obs, options.cells)
        obs = with_python_names(source.obs)
        if options.by not in obs:
            raise UsageError(f"--by {options.by}: obs has no such column; it has: {', '.join(map(str, obs.columns))}")
        whole = QueryBatches(source, reference.schema, reference.normalization)
        require_coverage(whole.coverage, options.cells, options.min_coverage)
        size = min(options.max_cells, source.n_obs)
        if options.kind != "markers" and size < _FEWEST:
            few = f"{options.cells} has {source.n_obs} cells and --max-cells is {options.max_cells}"
            raise UsageError(f"figure {options.kind}: {few}; a plane is laid through {_FEWEST} or more")
        rows = np.sort(np.random.default_rng(options.how.seed).choice(source.n_obs, size, replace=False))
        picked = PickedRows(source, rows.tolist())
        scene = make_scene(reference, picked, obs.iloc[rows], options.how, _view_of(options, reference))
    with finished_file(options.out) as partial:
        if options.kind == "nearest":
            figure_panels.draw_nearest(scene, options.by, partial)
        elif options.kind == "markers":
            figure_panels.draw_markers(scene, options.by, options.genes, partial)
        elif options.kind == "trajectory":
            figure_panels.draw_trajectory(scene, options.by, partial)
        else:
            figure_panels.draw_film(scene, partial)
    return {"figure": str(options.out), "cells": size}


def _view_of(options: FigureOptions, reference: ReferenceModel) -> Callable[[csr_matrix], View]:
    """What the drawing needs of each cell."""
    if options.kind in SWEPT:
        return plane
    return these_genes(gene_columns(reference, options.genes)) if options.kind == "markers" else every_gene
