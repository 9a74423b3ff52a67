"""The stages that chaos disturbs, on a small simulated atlas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """A command, what it makes, and what it reads that can be damaged so that it must be noticed."""

    name: str
    words: tuple[str, ...]
    made: tuple[str, ...]
    damaged: str | None = None


def stages() -> list[Stage]:
    """In order; paths are within the working directory."""
    settings = ("train.epochs=3", "train.batch_size=64", "train.checkpoint_every_steps=3", "model.hidden=[32,16]")
    settings += ("data.min_cells=1", 'train.trackers=["tensorboard"]')
    settings += ("train.precision=fp32",)  # which one is faster, a busy machine would say now so and now so
    sizes = ("--min-genes", "3", "--null-draws", "60", "--null-cells", "200", "--trees", "16", "--p", "1", "--top", "9")
    shard, weights = "near.zarr/X/data/c/1", "run/model/model.safetensors"
    return [
        Stage(
            "simulate", ("simulate", "--cells", "700", "--genes", "900", "--organs", "4", "--out", "cells"), ("cells",)
        ),
        Stage("ingest", ("ingest", "cells", "--label", "cell_type,seq_tech", "--out", "atlas.zarr"), ("atlas.zarr",)),
        Stage("build-graph", ("build-graph", "atlas.zarr"), ("atlas.zarr",), "atlas.zarr/X/data/c/1"),
        Stage("reorder", ("reorder", "atlas.zarr", "--out", "near.zarr"), ("near.zarr",), "atlas.zarr/X/data/c/1"),
        Stage(
            "select-gene-sets",
            ("select-gene-sets", "near.zarr", "--gmt", "sets.gmt", "--label", "cell_type", *sizes),
            ("near.zarr", "near.gene-sets"),
            shard,
        ),
        Stage(
            "train",
            (
                *("train", "near.zarr", "--out", "run", "--discrete", "cell_type", "--continuous", "gradient_1"),
                "--no-report",  # a stage of its own; that of a run shows times
                *(word for setting in settings for word in ("--set", setting)),
            ),
            ("run",),
            shard,
        ),
        Stage(
            "export-latents",
            ("export-latents", "near.zarr", "--run", "run", "--out", "latents.zarr"),
            ("latents.zarr",),
            shard,
        ),
        Stage("export-reference", ("export-reference", "--run", "run", "--out", "reference"), ("reference",), weights),
        Stage(
            "map-query",
            ("map-query", "cells/adipose.h5ad", "--reference", "reference", "--out", "mapped.zarr"),
            ("mapped.zarr",),
            "reference/model.safetensors",
        ),
        Stage(
            "report",
            ("report", "run", "--atlas", "near.zarr", "--latents", "latents.zarr", "--out", "report.html"),
            ("report.html",),
        ),
    ]


def write_sets(path: Path) -> None:
    """Gene sets of the simulated genes."""
    rng = np.random.default_rng(0)
    genes = [rng.choice(900, 12, replace=False) + 1 for _ in range(24)]
    lines = ("\t".join([f"SET_{i}", "-", *(f"GENE{g}" for g in some)]) for i, some in enumerate(genes))
    path.write_text("\n".join(lines) + "\n")
