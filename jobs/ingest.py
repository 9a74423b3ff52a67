"""ingest: files of cells -> atlas.zarr, in two streamed passes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from tqdm import tqdm

from unicoord_atlas.errors import AlreadyDone, ConfigError, DataError, UsageError
from unicoord_atlas.gene_names import guess_gene_key, other_key
from unicoord_atlas.genes import GeneMap, GeneSpace, gene_names, gene_space, map_names, read_gene_table
from unicoord_atlas.loaders.facts import SourceFacts, collect_facts, join_facts
from unicoord_atlas.loaders.labels import LabelRules, join_labels, labels_of, unseen_values
from unicoord_atlas.loaders.obs_table import join_obs, rename_ours, require_unique_names
from unicoord_atlas.loaders.sources import FileSource, InputKind, find_sources, open_source
from unicoord_atlas.loaders.tally import unfinished_normalization
from unicoord_atlas.loaders.write_pass import write_counts
from unicoord_atlas.loaders.zarr_layout import SIZE_FACTOR, SOURCE, MatrixLayout, count_dtype
from unicoord_atlas.loaders.zarr_writer import finish_store
from unicoord_atlas.normalization import MAX_FRACTION
from unicoord_atlas.schema import AtlasSchema, GeneKey, LabelColumn, Source

from .ingest_report import report, show_report
from .workdir import check_output, finished_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_THREADS = 4


@dataclass(frozen=True)
class IngestOptions:
    """What `unicoord-atlas ingest` takes."""

    sources: Sequence[str]
    """Files, folders, globs."""
    out: Path | None
    """The store to write; None is enough for a dry run."""
    labels: Sequence[str] = ()
    label_map: Path | None = None
    unlabelled: Sequence[str] = ()
    """Words that mean no label, beside the usual ones."""
    allow_missing_labels: bool = False
    genes: str = "union"
    """union, intersection, or a file of genes."""
    gene_key: GeneKey | None = None
    """Guessed if None."""
    gene_table: Path | None = None
    input: InputKind = "counts"
    layer: str | None = None
    min_cells: int = 1
    """A gene is highly expressed if it is so in that many cells; 1 = scanpy."""
    dry_run: bool = False
    rows_per_block: int = 8192
    threads: int = 0
    """0 = as many as there are cores, up to 4."""

    def __post_init__(self) -> None:
        for name in ("min_cells", "rows_per_block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.out is None and not self.dry_run:
            raise UsageError("--out is missing; name the store to write, or give --dry-run")

    def settings(self) -> dict[str, Any]:
        """What changes the result, for the manifest."""
        left_out = ("sources", "out", "dry_run", "threads")
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        paths = {name: Path(value).name for name, value in values.items() if isinstance(value, Path)}
        return {**values, **paths, "genes": Path(self.genes).name}

    def files(self) -> list[Path]:
        """Inputs beside the sources."""
        genes = [] if self.genes in ("union", "intersection") else [Path(self.genes)]
        return [path for path in (self.label_map, self.gene_table, *genes) if path is not None]


@dataclass(frozen=True)
class Atlas:
    """All that is known before a cell is written."""

    sources: Sequence[FileSource]
    space: GeneSpace
    maps: Sequence[GeneMap]
    facts: Sequence[SourceFacts]
    obs: pd.DataFrame
    labels: Sequence[LabelColumn]
    unseen: Sequence[str]
    """source:column=value that the label map lists and no cell has."""

    def total(self) -> SourceFacts:
        """Facts of all sources together."""
        return join_facts(self.facts, len(self.space.genes))

    def schema(self) -> AtlasSchema:
        """Genes, labels and what each source measured."""
        sources = [
            Source.of(source.name, source.n_obs, gene_map.measured_g)
            for source, gene_map in zip(self.sources, self.maps, strict=True)
        ]
        return AtlasSchema(
            gene_key=self.space.key,
            genes=self.space.genes,
            aliases=self.space.aliases,
            labels=tuple(self.labels),
            sources=tuple(sources),
        )


def run(options: IngestOptions, console: Console | None = None) -> dict[str, Any]:
    """Ingest, and return the facts that the report shows; nothing is written unless all sources are sound.

    Raises
    ------
    UnicoordError
        Naming the file, the value and the way out.
    """
    console = console or Console(stderr=True)
    rules = LabelRules.of(options.labels, options.label_map, options.unlabelled, options.allow_missing_labels)
    paths = find_sources(options.sources)
    inputs, settings = [*paths, *options.files()], options.settings()
    try:
        if options.out is not None and not options.dry_run:
            check_output(options.out, inputs, settings)
        with ExitStack() as stack:
            scratch = options.out.parent if options.out is not None and options.out.parent.is_dir() else None
            sources = [stack.enter_context(open_source(path, options.layer, options.input, scratch)) for path in paths]
            atlas = look_through(sources, rules, options)
            result = report(atlas, options)
            show_report(result, console)
            if options.out is not None and not options.dry_run:
                counts = {"cells": result["cells"], "genes": result["genes"], "entries": result["entries"]}
                with finished_directory(options.out, inputs, settings, resume=True, counts=counts) as partial:
                    write(partial, atlas, options)
    except AlreadyDone as done:
        console.print(str(done), highlight=False, soft_wrap=True)
        return {"out": str(options.out), "already_done": True}
    return result


def look_through(sources: Sequence[FileSource], rules: LabelRules, options: IngestOptions) -> Atlas:
    """The first pass: gene space, labels, and the facts of all counts."""
    table = None if options.gene_table is None else read_gene_table(options.gene_table)
    names = {source.path: gene_names(source.var, table) for source in sources}
    space = gene_space(names, options.genes, options.gene_key, table)
    maps = [map_names(names[source.path], space, str(source.path)) for source in sources]

    obs, columns, unseen = join_cells(sources, rules)
    num_cells = sum(source.n_obs for source in sources)
    if num_cells == 0:
        raise DataError(f"{sources[0].path}: no cells here or in any other source")
    with tqdm(total=num_cells, desc="facts", unit=" cells", unit_scale=True, disable=None) as bar:
        facts = [
            collect_facts(source, gene_map, MAX_FRACTION, options.rows_per_block, _threads(options), bar.update)
            for source, gene_map in zip(sources, maps, strict=True)
        ]
    return Atlas(sources, space, maps, facts, obs, columns, unseen)


def join_cells(sources: Sequence[FileSource], rules: LabelRules) -> tuple[pd.DataFrame, list[LabelColumn], list[str]]:
    """Obs of all sources with the labels first, the label columns, and `Atlas.unseen`."""
    tables, parts, unseen = [], [], []
    for source in sources:
        obs = rename_ours(source.obs)
        require_unique_names(source.path, obs)
        obs.insert(0, SOURCE, pd.Categorical([source.name]).repeat(len(obs)))
        found = labels_of(source.name, source.path, obs, rules)
        unseen += [f"{source.name}:{value}" for value in unseen_values(source.name, obs, rules)]
        parts.append(found)
        tables.append(obs[[SOURCE, *(column for column in obs if column != SOURCE and column not in found)]])
    obs = join_obs(tables, [source.name for source in sources])
    columns = []
    for place, name in enumerate(rules.columns, start=1):
        values, column = join_labels(name, [found[name] for found in parts])
        columns.append(column)
        if name == SOURCE:
            obs[name] = values
        else:
            obs.insert(min(place, obs.shape[1]), name, values)
    return obs, columns, unseen


def write(partial: Path, atlas: Atlas, options: IngestOptions) -> None:
    """The second pass: counts, then obs, var and uns."""
    facts = atlas.total()
    log_input = options.input == "lognorm"
    layout = MatrixLayout(
        np.concatenate([[0], np.cumsum(facts.entries_n)]),
        len(atlas.space.genes),
        np.dtype(np.float32) if log_input else count_dtype(facts.largest),
    )
    frozen = unfinished_normalization(facts.dominated_g >= options.min_cells, options.min_cells, log_input)
    pairs = list(zip(atlas.sources, atlas.maps, strict=True))
    with tqdm(total=layout.num_rows, desc="write", unit=" cells", unit_scale=True, disable=None) as bar:
        normalization, size_factors_n = write_counts(
            partial, layout, pairs, frozen, options.rows_per_block, _threads(options), bar.update
        )
    obs = atlas.obs.assign(**{SIZE_FACTOR: size_factors_n})
    finish_store(partial, layout, obs, atlas_var(atlas.space), atlas.schema(), normalization)


def atlas_var(space: GeneSpace) -> pd.DataFrame:
    """The genes, with their name by the other key where one is known."""
    other = other_key(space.key)
    names = [""] * len(space.genes)
    for alias, index in space.aliases.items():
        if not names[index] and guess_gene_key([alias]) == other:
            names[index] = alias
    columns = {other: names} if any(names) else {}
    return pd.DataFrame(columns, index=pd.Index(space.genes, dtype=object))


def _threads(options: IngestOptions) -> int:
    return options.threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
