"""The stages that chaos disturbs, on a small simulated atlas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

CUT_OFF, FLIPPED = "cut off", "flipped"


def cut_off(rng: np.random.Generator, content: bytes) -> bytes:
    """A part from the start."""
    return content[: int(rng.integers(1, len(content)))]


def flip(rng: np.random.Generator, content: bytes) -> bytes:
    """One byte is another."""
    place = int(rng.integers(len(content)))
    return content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :]


DAMAGE = {CUT_OFF: cut_off, FLIPPED: flip}


@dataclass(frozen=True)
class Damaged:
    """A file that a stage reads, and the ways in which it can be damaged so that it must be noticed."""

    path: str
    ways: tuple[str, ...] = (CUT_OFF, FLIPPED)


@dataclass(frozen=True)
class Stage:
    """A command, what it makes, and what it reads that can be damaged."""

    name: str
    words: tuple[str, ...]
    made: tuple[str, ...]
    damaged: tuple[Damaged, ...] = ()


def train_words() -> tuple[str, ...]:
    """A run of a few seconds with checkpoints."""
    settings = ("train.epochs=3", "train.batch_size=64", "train.checkpoint_every_steps=3", "model.hidden=[32,16]")
    settings += ("data.min_cells=1", 'train.trackers=["tensorboard"]')
    settings += ("latent.diffusion=2",)  # so that it reads the graph, too, and keeps a table of latents
    settings += ("train.precision=fp32",)  # which one is faster, a busy machine would say now so and now so
    words = ("train", "near.zarr", "--out", "run", "--discrete", "cell_type", "--continuous", "gradient_1")
    words += ("--no-report",)  # a stage of its own; that of a run shows times
    return words + tuple(word for setting in settings for word in ("--set", setting))


def stages() -> list[Stage]:
    """In order; paths are within the working directory."""
    sizes = ("--min-genes", "3", "--null-draws", "60", "--null-cells", "200", "--trees", "16", "--p", "1", "--top", "9")
    counts, weights = (Damaged(path) for path in ("atlas.zarr/X/data/c/1", "run/model/model.safetensors"))
    near_counts, sizes_of_cells = (Damaged(f"near.zarr/{name}") for name in ("X/data/c/1", "obs/size_factor/c/0"))
    organ = Damaged("cells/adipose.h5ad", (CUT_OFF,))  # HDF5 has no checksums: of another byte nobody can know
    return [
        Stage(
            "simulate", ("simulate", "--cells", "700", "--genes", "900", "--organs", "4", "--out", "cells"), ("cells",)
        ),
        Stage(
            "ingest",
            ("ingest", "cells", "--label", "cell_type,seq_tech", "--out", "atlas.zarr"),
            ("atlas.zarr",),
            (organ,),
        ),
        Stage("build-graph", ("build-graph", "atlas.zarr"), ("atlas.zarr",), (counts,)),
        Stage("reorder", ("reorder", "atlas.zarr", "--out", "near.zarr"), ("near.zarr",), (counts,)),
        Stage(
            "select-gene-sets",
            ("select-gene-sets", "near.zarr", "--gmt", "sets.gmt", "--label", "cell_type", *sizes),
            ("near.zarr", "near.gene-sets"),
            (near_counts,),
        ),
        Stage("train", train_words(), ("run",), (near_counts, sizes_of_cells)),
        Stage(
            "export-latents",
            ("export-latents", "near.zarr", "--run", "run", "--out", "latents.zarr"),
            ("latents.zarr",),
            (near_counts,),
        ),
        Stage(
            "export-reference", ("export-reference", "--run", "run", "--out", "reference"), ("reference",), (weights,)
        ),
        Stage(
            "map-query",
            ("map-query", "cells/adipose.h5ad", "--reference", "reference", "--out", "mapped.zarr"),
            ("mapped.zarr",),
            (Damaged("reference/model.safetensors"), organ),
        ),
        Stage(
            "report",
            ("report", "run", "--atlas", "near.zarr", "--latents", "latents.zarr", "--out", "report.html"),
            ("report.html",),
            (Damaged("latents.zarr/obsm/X_unicoord/c/0/0"),),
        ),
    ]


def write_sets(path: Path) -> None:
    """Gene sets of the simulated genes."""
    rng = np.random.default_rng(0)
    genes = [rng.choice(900, 12, replace=False) + 1 for _ in range(24)]
    lines = ("\t".join([f"SET_{i}", "-", *(f"GENE{g}" for g in some)]) for i, some in enumerate(genes))
    path.write_text("\n".join(lines) + "\n")
