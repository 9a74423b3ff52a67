"""Program: the organ files of an invented atlas of exactly so many cells, and a query of cells held out of them.

What `simulate` draws, of so many cells as both have together; in each organ cells chosen at random go to the query,
so that it has the same types, donors and platforms.  Genes are those of a list.  One file an organ in DIR/organs, and
DIR/query.h5ad.  Files that are there are not made again.

    python benchmarks/heca_inputs.py --genes FILE --cells 10000 --query-cells 521 --out DIR
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import h5py
import numpy as np
import pandas as pd

from unicoord_atlas.blueprint import ORGANS, invent_means, make_blueprint, split_cells
from unicoord_atlas.gene_names import read_gene_columns
from unicoord_atlas.genes import listed_space
from unicoord_atlas.jobs.ingest_write import atlas_var
from unicoord_atlas.jobs.simulate import MEDIAN_GENES
from unicoord_atlas.jobs.workdir import finished_file
from unicoord_atlas.loaders.h5ad_writer import CsrWriter
from unicoord_atlas.simulate import Organ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Block = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]

QUERY = "query.h5ad"


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=Path, required=True)
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--query-cells", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for name in ("organs", "held_out"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([args.seed, 0])
    space = listed_space(args.genes, next(iter(read_gene_columns(args.genes))))
    total = args.cells + args.query_cells
    sizes = split_cells(total, len(ORGANS), rng)
    blueprint = make_blueprint(invent_means(len(space.genes), rng), total, rng)
    held_out = np.zeros(total, np.bool_)
    held_out[np.random.default_rng([args.seed, len(ORGANS) + 1]).choice(total, args.query_cells, replace=False)] = True
    masks = np.split(held_out, np.cumsum(sizes)[:-1])
    var = atlas_var(space)

    def write(number: int) -> None:
        path = args.out / "organs" / f"{ORGANS[number].replace(' ', '_')}.h5ad"
        if not path.exists():
            organ = Organ(blueprint, args.seed, number, len(sizes), sizes[number], MEDIAN_GENES)
            write_organ(path, args.out / "held_out" / path.name, organ, masks[number], var)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write, sorted(range(len(sizes)), key=lambda number: -sizes[number])))
    if not (args.out / QUERY).exists():
        join(sorted((args.out / "held_out").glob("*.h5ad")), args.out / QUERY, var)


def write_organ(path: Path, aside: Path, organ: Organ, held_out_n: NDArray[np.bool_], var: pd.DataFrame) -> None:
    """An organ's cells in two files; that of the atlas is renamed last."""
    obs = organ.obs()
    with (
        finished_file(path) as kept,
        finished_file(aside) as other,
        h5py.File(kept, "w") as a,
        h5py.File(other, "w") as b,
    ):
        writers = [start(file, obs[chosen_n], var) for file, chosen_n in ((a, ~held_out_n), (b, held_out_n))]
        row = 0
        for lengths, indices, data in organ.blocks():
            rows = slice(row, row + len(lengths))
            row = rows.stop
            for writer, chosen_n in zip(writers, (~held_out_n[rows], held_out_n[rows]), strict=True):
                entries = np.repeat(chosen_n, lengths)
                writer.append(lengths[chosen_n], indices[entries], data[entries])
        for writer in writers:
            writer.finish()


def start(file: h5py.File, obs: pd.DataFrame, var: pd.DataFrame) -> CsrWriter:
    """All of an AnnData but X, which the writer appends to."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    anndata.io.write_elem(file, "obs", obs)
    anndata.io.write_elem(file, "var", var)
    for key in ("uns", "obsm", "obsp", "varm", "varp", "layers"):
        anndata.io.write_elem(file, key, {})
    return CsrWriter(file.create_group("X"), len(var))


def join(parts: list[Path], out: Path, var: pd.DataFrame) -> None:
    """One file of the cells of all."""
    tables = [anndata.io.read_elem(h5py.File(path)["obs"]) for path in parts]
    obs = pd.concat([table.astype({c: str for c in table if table[c].dtype == "category"}) for table in tables])
    with finished_file(out) as partial, h5py.File(partial, "w") as file:
        writer = start(file, obs, var)
        for path in parts:
            for block in blocks(path):
                writer.append(*block)
        writer.finish()


def blocks(path: Path) -> Iterator[Block]:
    """The one block of a small file."""
    with h5py.File(path) as file:
        yield np.diff(file["X/indptr"][:]), file["X/indices"][:], file["X/data"][:]


if __name__ == "__main__":
    main()
