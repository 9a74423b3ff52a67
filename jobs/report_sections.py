"""The sections of a report that need the run alone, and the graph of its atlas."""

from __future__ import annotations

import json
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from unicoord_atlas.loaders.graph_store import graph_entries, graph_facts
from unicoord_atlas.loaders.zarr_layout import CONNECTIVITIES, DISTANCES, MANIFEST
from unicoord_atlas.report.page import Section, Table
from unicoord_atlas.training.checkpoint import read_json
from unicoord_atlas.training.metrics import SPEED

from .report_figures import draw_counts, draw_curves

if TYPE_CHECKING:
    from .report_album import Album
    from .report_inputs import Inputs

Numbers = dict[str, Any]
_VALIDATION = "validation_"
_PACKAGES = ("matplotlib", "umap-learn")


def trained_on_section(inputs: Inputs, album: Album) -> tuple[Section, Numbers]:
    """Cells by source and by every label column of the atlas; how many of each a run's label was trained on."""
    config, schema = inputs.reference.config, inputs.reference.schema
    atlas = {"source": {source.name: source.num_cells for source in schema.sources}}
    atlas |= {label.name: dict(zip(label.categories, label.counts, strict=True)) for label in schema.labels}
    trained = {label.name: dict(zip(label.categories, label.counts, strict=True)) for label in config.labels}
    cells = {key: int(config.atlas[key]) for key in ("training_cells", "validation_cells")}
    lines = [
        f"{cells['training_cells']:,} training and {cells['validation_cells']:,} validation cells, "
        f"{config.network.num_genes:,} genes."
    ]
    lines += [
        f"{label.name}: {len(label.folded)} rare classes are folded into 'other'."
        for label in config.labels
        if label.folded
    ]
    tables, pictures = [], []
    for name in dict.fromkeys([*atlas, *trained]):
        both = atlas.get(name, {}), trained.get(name, {})
        rows = [(each, both[0].get(each), both[1].get(each)) for each in dict.fromkeys([*both[0], *both[1]])]
        tables.append(Table(f"cells by {name}", (name, "in the atlas", "trained on with this label"), rows))
        counts = both[0] or both[1]
        pictures.append(album.picture(f"cells by {name}", partial(draw_counts, counts, f"by {name}")))
    numbers = {**cells, "genes": config.network.num_genes, "atlas": atlas, "labels": trained}
    return Section("trained-on", "Trained on", lines, tables, pictures), numbers


def losses_section(inputs: Inputs, album: Album) -> tuple[Section, Numbers]:
    """Every term of the loss by epoch, training and validation."""
    names = [key for entry in inputs.entries for key in entry if key not in ("epoch", "step", *SPEED)]
    panels: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(names):
        title = key.removeprefix(_VALIDATION)
        panels.setdefault(title, {})[key] = "validation" if key.startswith(_VALIDATION) else "training"
    rows = [(title, *(inputs.best.get(key) for key in (title, _VALIDATION + title))) for title in panels]
    metrics = inputs.reference.config.metrics
    return (
        Section(
            "losses",
            "Losses",
            [f"Epoch {inputs.best_epoch} of {len(inputs.entries)} is exported."],
            [
                Table(f"epoch {inputs.best_epoch}", ("", "training", "validation"), rows),
                Table("the exported model on validation cells", ("metric", "value"), list(metrics.items())),
            ],
            [album.picture("losses by epoch", partial(draw_curves, inputs.entries, panels))],
        ),
        {"best_epoch": inputs.best_epoch, "epochs": inputs.entries, "model": metrics},
    )


def reconstruction_section(inputs: Inputs) -> tuple[Section, Numbers]:
    """Squared error of the exported epoch, and the share of the cells' variance that this leaves explained."""
    reference = inputs.reference
    numbers: Numbers = {
        key: float(inputs.best[key]) for key in ("reconstruction", "validation_reconstruction") if key in inputs.best
    }
    place = {gene: number for number, gene in enumerate(reference.schema.genes)}
    own = np.array([place[gene] for gene in reference.own_genes])
    lines = ["Squared error a cell, summed over genes, of log-normalized values."]
    if "validation_reconstruction" in numbers and reference.schema.measured_sg()[:, own].all():
        variance = float(reference.normalization.variance_g[own].sum())
        numbers |= {"mean_profile": variance, "explained": 1 - numbers["validation_reconstruction"] / variance}
        lines.append("mean_profile: the error of predicting the mean of all cells; explained: what is less than that.")
    if "genes_never_predicted" in reference.config.metrics:
        numbers["genes_never_predicted"] = reference.config.metrics["genes_never_predicted"]
        lines.append("genes_never_predicted: decoded as 0 for every one of up to 2,000 training cells.")
    table = Table("reconstruction", ("", "value"), list(numbers.items()))
    return Section("reconstruction", "Reconstruction", lines, [table]), numbers


def graph_section(inputs: Inputs) -> tuple[Section, Numbers]:
    """The graph that build-graph added to the atlas, and how many of its edges the diffusion loss kept alive."""
    title = "Graph"
    if inputs.store is None:
        return Section("graph", title, left_out="Left out: --atlas ATLAS gives the facts of its graph."), {}
    facts = graph_facts(inputs.store)
    if facts is None:
        line = "Left out: the atlas given by --atlas has no graph; `unicoord-atlas build-graph` adds one."
        return Section("graph", title, left_out=line), {}
    edges, weights = (graph_entries(inputs.store, key) for key in (DISTANCES, CONNECTIVITIES))
    numbers = {
        "recall": float(facts["recall"]),
        "neighbours": edges,
        "edges": weights,
        "edges_a_cell": weights / inputs.store.n_obs,
        **{key: float(value) for key, value in inputs.best.items() if key.startswith("diffusion")},
    }
    settings = json.loads(str(facts["settings"]))
    tables = [
        Table("graph", ("", "value"), list(numbers.items())),
        Table("made with", ("", ""), list(settings.items())),
    ]
    return Section("graph", title, tables=tables), {**numbers, "settings": settings}


def throughput_section(inputs: Inputs, album: Album) -> tuple[Section, Numbers]:
    """Cells a second, by epoch and on the whole."""
    entries = inputs.entries
    seconds = sum(entry["seconds"] for entry in entries)
    cells = sum(entry["seconds"] * entry["cells_per_second"] for entry in entries)
    waited = sum(entry["seconds"] * entry["data_wait"] for entry in entries)
    numbers = {
        "seconds": seconds,
        "steps": entries[-1]["step"],
        "cells": round(cells),
        "cells_per_second": cells / seconds,
        "data_wait": waited / seconds,
    }
    panels = {"cells/s": {"cells_per_second": ""}, "share of time waiting for cells": {"data_wait": ""}}
    picture = album.picture("throughput by epoch", partial(draw_curves, entries, panels))
    table = Table("whole run", ("", "value"), list(numbers.items()))
    return Section("throughput", "Throughput", tables=[table], pictures=[picture]), numbers


def configuration_section(inputs: Inputs) -> tuple[Section, Numbers]:
    """All settings, and the versions that the model and this page were made with."""
    versions = dict(read_json(inputs.run / "model" / MANIFEST).get("versions", {}))
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    settings = inputs.config.model_dump(mode="json")
    table = Table("versions", ("package", "version"), list(versions.items()))
    text = inputs.config.to_toml()
    return Section("configuration", "Configuration", [], [table], text=text), {
        "settings": settings,
        "versions": versions,
    }
