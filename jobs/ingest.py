"""ingest: files of cells -> atlas.zarr, in two streamed passes."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm import tqdm

from unicoord_atlas.allocator import give_back_freed_memory
from unicoord_atlas.errors import AlreadyDone, DataError
from unicoord_atlas.genes import GeneMap, GeneSpace, gene_names, gene_space, map_names, read_gene_table
from unicoord_atlas.loaders.cell_names import FrameColumns, arrow_index, put_aside
from unicoord_atlas.loaders.facts import SourceFacts, collect_facts, join_facts
from unicoord_atlas.loaders.labels import LabelRules, join_labels, labels_of, unseen_values
from unicoord_atlas.loaders.obs_table import join_obs, rename_ours, require_unique_names
from unicoord_atlas.loaders.soma_open import tiledbsoma
from unicoord_atlas.loaders.sources import FileSource, find_sources, open_source
from unicoord_atlas.loaders.zarr_layout import SOURCE
from unicoord_atlas.normalization import MAX_FRACTION
from unicoord_atlas.schema import AtlasSchema, LabelColumn, Source

from .console_text import plain_console
from .dask_client import dask_client, in_order_on
from .dask_job import is_worker, work_until_done
from .ingest_options import IngestOptions
from .ingest_report import report, show_report
from .ingest_write import remove_siblings, write_atlas
from .workdir import check_output, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from unicoord_atlas.loaders.write_pass import RunEach

__all__ = ["Atlas", "FactsTask", "IngestOptions", "run"]


@dataclass(frozen=True)
class Atlas:
    """All that is known before a cell is written."""

    sources: Sequence[FileSource]
    space: GeneSpace
    maps: Sequence[GeneMap]
    facts: Sequence[SourceFacts]
    obs: FrameColumns
    """Of all cells, in a folder that is there as long as the job runs."""
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


@dataclass(frozen=True, slots=True)
class FactsTask:
    """All that a process needs to look through one source, which pickles as its address."""

    source: FileSource
    gene_map: GeneMap
    rows_per_block: int
    threads: int

    def collect(self, progress: Callable[[int], object] = lambda num_cells: None) -> SourceFacts:
        """The facts of the source."""
        return collect_facts(self.source, self.gene_map, MAX_FRACTION, self.rows_per_block, self.threads, progress)


def run(options: IngestOptions, console: Console | None = None) -> dict[str, Any]:
    """Ingest, and return the facts that the report shows; nothing is written unless all sources are sound.

    Raises
    ------
    UnicoordError
        Naming the file, the value and the way out.
    """
    console = console or plain_console()
    if options.format == "soma":
        tiledbsoma()  # said before hours of reading if it is not installed
    rules = LabelRules.of(options.labels, options.label_map, options.unlabelled, options.allow_missing_labels)
    paths = find_sources(options.sources, options.out)
    inputs = [*paths, *options.files()]
    try:
        if options.out is not None and not options.dry_run:
            check = partial(check_output, options.out, inputs, options.settings())
            check()
            if is_worker(options.dask):
                work_until_done(check)
        with ExitStack() as stack:
            run_each = stack.enter_context(parallel(options.dask))
            scratch = options.out.parent if options.out is not None and options.out.parent.is_dir() else None
            aside = stack.enter_context(_folder_aside(options.out if scratch and not options.dry_run else None))
            sources = [stack.enter_context(open_source(path, options.layer, options.input, scratch)) for path in paths]
            atlas = look_through(sources, rules, options, aside, run_each)
            result = report(atlas, options)
            show_report(result, console)
            if options.out is not None and not options.dry_run:
                write_atlas(options.out, inputs, atlas, options, run_each)
    except AlreadyDone as done:
        console.print(str(done), highlight=False, soft_wrap=True)
        result = {"out": str(options.out), "already_done": True}
    if options.out is not None and not options.dry_run:
        remove_siblings(options.out)
    return result


@contextmanager
def _folder_aside(out: Path | None) -> Iterator[Path]:
    """A folder for obs: beside the output, or among the system's temporary files where no folder is there yet."""
    if out is None:
        with TemporaryDirectory(prefix="unicoord-atlas-") as name:
            yield Path(name)
    else:
        with scratch_folder(out) as folder:
            yield folder


@contextmanager
def parallel(dask: str | None) -> Iterator[RunEach]:
    """How tasks are done: one after the other, or on a cluster."""
    if dask is None:
        yield map
        return
    with dask_client(dask) as client:
        yield partial(in_order_on, client)


def look_through(
    sources: Sequence[FileSource], rules: LabelRules, options: IngestOptions, aside: Path, run_each: RunEach = map
) -> Atlas:
    """The first pass: gene space, labels, and the facts of all counts; obs goes to the folder `aside`."""
    table = None if options.gene_table is None else read_gene_table(options.gene_table)
    names = {source.path: gene_names(source.var, table) for source in sources}
    space = gene_space(names, options.genes, options.gene_key, table)
    maps = [map_names(names[source.path], space, str(source.path)) for source in sources]

    obs, columns, unseen = join_cells(sources, rules)
    kept_obs = put_aside(aside / "obs", obs)
    del obs
    give_back_freed_memory()
    num_cells = sum(source.n_obs for source in sources)
    if num_cells == 0:
        raise DataError(f"{sources[0].path}: no cells here or in any other source")
    tasks = [
        FactsTask(source, gene_map, options.rows_per_block, options.num_threads())
        for source, gene_map in zip(sources, maps, strict=True)
    ]
    facts = []
    with tqdm(total=num_cells, desc="facts", unit=" cells", unit_scale=True, disable=None) as bar:
        if options.dask is None:
            facts = [task.collect(bar.update) for task in tasks]
        else:
            for of_source in run_each(FactsTask.collect, tasks):
                facts.append(of_source)
                bar.update(len(of_source.entries_n))
    give_back_freed_memory()
    return Atlas(sources, space, maps, facts, kept_obs, columns, unseen)


def join_cells(sources: Sequence[FileSource], rules: LabelRules) -> tuple[pd.DataFrame, list[LabelColumn], list[str]]:
    """Obs of all sources with the labels first, the label columns, and `Atlas.unseen`."""
    tables, parts, unseen = [], [], []
    for source in sources:
        obs = rename_ours(source.obs)
        require_unique_names(source.path, obs)
        obs.index = arrow_index([obs.index])
        obs.insert(0, SOURCE, pd.Categorical([source.name]).repeat(len(obs)))
        found = labels_of(source.name, source.path, obs, rules)
        unseen += [f"{source.name}:{value}" for value in unseen_values(source.name, obs, rules)]
        parts.append(found)
        tables.append(obs[[SOURCE, *(column for column in obs if column != SOURCE and column not in found)]])
    give_back_freed_memory()
    obs = join_obs(tables, [source.name for source in sources])
    columns = []
    for place, name in enumerate(rules.columns, start=1):
        values, column = join_labels(name, [found.pop(name) for found in parts])
        columns.append(column)
        if name == SOURCE:
            obs[name] = values
        else:
            obs.insert(min(place, obs.shape[1]), name, values)
    return obs, columns, unseen
