"""Inputs of bench_train, made once in a working directory: simulated atlases, and a real one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loader_inputs import GENES, repeat_cells

from unicoord_atlas.loaders import open_store

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("cell_type", "seq_tech")
"""Supervised in every run: the paper's cell type and platform."""
PAPER_CELLS = 56_721
"""Of the paper's cost case."""
REAL, REAL_LABEL = "pbmc8k_raw_labelled", "cell_type_scvi"


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `--quick` is enough to see that everything works."""

    cells: int = PAPER_CELLS
    genes: int = GENES
    many_cells: int = 1_000_000
    memory_steps: int = 1000
    rounds: int = 3
    paper_epochs: int = 15
    """Of the paper's loop on real data; ours has as long as it takes to be as good."""
    cost_epochs: str = "auto"
    seconds: float = 5.0
    """Of a program whose steps are timed by themselves."""


FULL = Sizes()
QUICK = Sizes(2_000, 2_000, 4_000, 150, 1, 1, "1", 0.5)


def simulated(work: Path, sizes: Sizes) -> Path:
    """The store of the paper's number of cells, in sorted order."""
    source, out = work / f"source-{sizes.cells}", work / f"atlas-{sizes.cells}.zarr"
    if not out.exists():
        command("simulate", "--cells", sizes.cells, "--genes", sizes.genes, "--out", source)
        command("ingest", source, "--out", out, "--label", ",".join(LABELS))
    return out


def repeated(work: Path, sizes: Sizes) -> Path:
    """A store of many cells: the simulated ones again and again."""
    out = work / f"many-{sizes.many_cells}.zarr"
    if not out.exists():
        repeat_cells(open_store(simulated(work, sizes)), sizes.many_cells, out, LABELS)
    return out


def real(work: Path, data: Path) -> Path:
    """The store of the real cells."""
    out = work / f"{REAL}.zarr"
    if not out.exists():
        command("ingest", data / REAL / f"{REAL}.h5ad", "--out", out, "--label", REAL_LABEL)
    return out


def command(*words: object) -> None:
    """Run a command of ours to its end; its progress is shown."""
    subprocess.run(ours(*words), check=True, stdout=subprocess.DEVNULL)


def ours(*words: object) -> list[str]:
    """A command of ours as a process takes it."""
    return [sys.executable, "-m", "unicoord_atlas.jobs.cli", *map(str, words)]


def settings(**sections: object) -> list[str]:
    """``--set`` options of a run: section__key=value."""
    return [w for key, value in sections.items() for w in ("--set", f"{key.replace('__', '.')}={value}")]
