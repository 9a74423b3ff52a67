"""What `ingest` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unicoord_atlas.cores import usable_cores
from unicoord_atlas.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unicoord_atlas.loaders.sources import InputKind
    from unicoord_atlas.schema import GeneKey

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
    shuffle: bool = False
    """Write the cells of all sources in random order."""
    seed: int = 0
    """Of the random order."""
    dask: str | None = None
    """local:N or a scheduler's address; None = threads of this process."""
    format: Literal["zarr", "soma"] = "zarr"
    """Of the store: an AnnData Zarr, or a TileDB-SOMA Experiment."""
    dry_run: bool = False
    rows_per_block: int = 8192
    threads: int = 0
    """0 = as many as there are cores, up to 4; one in each worker of a cluster."""

    def __post_init__(self) -> None:
        for name in ("min_cells", "rows_per_block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.out is None and not self.dry_run:
            raise UsageError("--out is missing; name the store to write, or give --dry-run")
        if self.out is not None and self.format == "soma" and self.out.suffix == ".zarr":
            raise UsageError(f"--out {self.out}: it becomes a SOMA; give it another ending than .zarr")
        if self.dry_run and self.dask == "k8s":
            raise UsageError("--dry-run is for one process; leave out --dask k8s")

    def settings(self) -> dict[str, Any]:
        """What changes the result, for the manifest."""
        left_out = ["sources", "out", "dry_run", "threads", "dask"]
        left_out += ["seed"] if not self.shuffle else []
        left_out += (
            ["format"] if self.format == "zarr" else []
        )  # what was made before there was a choice stays the same
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        paths = {name: Path(value).name for name, value in values.items() if isinstance(value, Path)}
        return {**values, **paths, "genes": Path(self.genes).name}

    def files(self) -> list[Path]:
        """Inputs beside the sources."""
        genes = [] if self.genes in ("union", "intersection") else [Path(self.genes)]
        return [path for path in (self.label_map, self.gene_table, *genes) if path is not None]

    def num_threads(self) -> int:
        """Threads that work on one source or shard."""
        if self.threads or self.dask is not None:
            return self.threads or 1
        return min(_MOST_THREADS, usable_cores())
