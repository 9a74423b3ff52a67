"""One loader in a process of its own: epochs by the clock, mixing, and for ours the first batch and resuming.

    python benchmarks/loader_child.py NAME INPUT --batch-size 512

Prints one JSON object.  Under the peer's Python only `annbatch` runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from loader_measure import mixing, time_epochs

Batches = Callable[[], Iterable[np.ndarray]]
Loader = tuple[Batches, Callable[[np.ndarray], np.ndarray], Callable[[], np.ndarray]]
"""Rows of each batch of an epoch, batch by batch; what makes codes of a batch's rows; codes of all cells."""
LABEL = "organ"


def main() -> None:
    """Run one loader and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*LOADERS, "start"])
    parser.add_argument("input", type=Path)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="of an epoch")
    parser.add_argument("--block", type=int, default=256, help="consecutive rows read together")
    parser.add_argument("--window", type=int, default=16_384, help="rows in memory together")
    parser.add_argument("--subset", choices=["all", "donors", "random"], default="all", help="ours: a tenth of rows")
    parser.add_argument("--no-mixing", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.name == "start":
        print(json.dumps(start_times(args)))
        return
    batches, code_rows, all_codes = LOADERS[args.name](args)
    epochs, seen = time_epochs(batches, args.epochs, args.max_seconds, FACTS.get("fetch_cells", 1))
    result: dict[str, Any] = {"epochs": epochs, **FACTS}
    if not args.no_mixing:
        result["mixing"] = mixing([code_rows(rows) for rows in seen], all_codes())
    print(json.dumps(result))


FACTS: dict[str, Any] = {}
"""What else a loader wants to tell."""


def ours(args: argparse.Namespace, wide: bool = False) -> Loader:
    """CellStream, in the form that the training step takes; or as float32 and int32, like annbatch's."""
    from unicoord_atlas.loaders import open_store

    store = open_store(args.input)
    stream = new_stream(store, args)

    def batches() -> Iterable[np.ndarray]:
        before, cells = store.entries_decoded, 0
        for batch in stream:
            if wide:
                batch.counts.to_scipy()
            cells += len(batch)
            yield batch.rows_n.numpy()
        mean_entries = store.indptr[-1] / store.n_obs
        FACTS["cells_decoded_per_cell"] = (store.entries_decoded - before) / mean_entries / cells

    def codes() -> np.ndarray:
        return store.obs([LABEL])[LABEL].cat.codes.to_numpy()

    return batches, lambda rows: codes()[rows] if len(rows) else rows, codes


def new_stream(store: Any, args: argparse.Namespace, **settings: Any) -> Any:
    """A stream of the store with the sizes asked for."""
    from unicoord_atlas.batch import CellColumns
    from unicoord_atlas.loaders import CellStream

    columns = CellColumns(
        store.size_factors.astype(np.float32),
        np.zeros(store.n_obs, np.int32),
        np.zeros((store.n_obs, 1), np.int32),
        np.zeros((store.n_obs, 0), np.float32),
    )
    rng, rows = np.random.default_rng(0), None
    if args.subset == "random":
        rows = np.flatnonzero(rng.random(store.n_obs) < 0.1)
    elif args.subset == "donors":  # in runs of 500 cells
        rows = np.flatnonzero(np.repeat(rng.random(store.n_obs // 500 + 1) < 0.1, 500)[: store.n_obs])
    return CellStream(
        store,
        columns,
        batch_size=args.batch_size,
        window_cells=args.window,
        block_cells=args.block,
        rows=rows,
        **settings,
    )


def limit(args: argparse.Namespace) -> Loader:
    """Plain decoding of the same arrays in stored order, into a buffer that is used again."""
    from unicoord_atlas.loaders import open_store
    from unicoord_atlas.loaders.store import CsrBuffer

    store, buffer = open_store(args.input), CsrBuffer()

    def batches() -> Iterable[np.ndarray]:
        for start in range(0, store.n_obs, args.window):
            stop = min(start + args.window, store.n_obs)
            store.read_ranges(np.array([[start, stop]]), buffer)
            yield np.arange(start, stop)

    return batches, lambda rows: rows, lambda: np.arange(1)


def start_times(args: argparse.Namespace) -> dict[str, float]:
    """Seconds from an opened store to a first batch: of an epoch, resumed in its middle, also as one of three ranks."""
    import torch  # noqa: F401 - the stream would import it, which takes a second that is not meant here

    from unicoord_atlas.loaders import Partition, open_store

    def opened() -> Any:
        store = open_store(args.input)
        assert len(store.size_factors) == store.n_obs
        return store

    def first(store: Any, state: str | None, **settings: Any) -> tuple[float, Any]:
        start = time.perf_counter()
        stream = new_stream(store, args, **settings)
        if state is not None:
            stream.load_state_dict(json.loads(state))
        iterator = iter(stream)
        next(iterator)
        return time.perf_counter() - start, (stream, iterator)

    seconds, (stream, iterator) = first(opened(), None)
    for _ in islice(iterator, (len(stream) - 1) // 2):
        pass
    state = json.dumps(stream.state_dict())
    iterator.close()
    return {
        "first_batch": seconds,
        "resume": first(opened(), state)[0],
        "resume_other_ranks": first(opened(), state, partition=Partition(1, 3))[0],
    }


def annbatch(args: argparse.Namespace) -> Loader:
    """Annbatch on a collection of its own making, zarrs decoding."""
    import annbatch as peer
    import anndata
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    collection = peer.DatasetCollection(zarr.open_group(args.input, mode="r"))
    groups = list(collection)
    loader = peer.Loader(
        chunk_size=args.block,
        preload_nchunks=args.window // args.block,
        batch_size=args.batch_size,
        shuffle=True,
        preload_to_gpu=False,
        return_index=True,
    )
    loader.add_datasets([anndata.io.sparse_dataset(group["X"]) for group in groups])
    obs = [anndata.io.read_elem(group["obs"])[LABEL].astype(str) for group in groups]
    codes = np.unique(np.concatenate(obs), return_inverse=True)[1]
    FACTS["version"] = peer.__version__
    return lambda: (batch["index"] for batch in loader), lambda rows: codes[rows], lambda: codes


def annloader(args: argparse.Namespace) -> Loader:
    """AnnData's AnnLoader on a backed .h5ad; it makes batches dense."""
    import anndata
    from anndata.experimental import AnnLoader

    adata = anndata.read_h5ad(args.input, backed="r")
    codes = adata.obs[LABEL].cat.codes.to_numpy()
    position = {name: row for row, name in enumerate(adata.obs_names)}
    loader = AnnLoader(adata, batch_size=args.batch_size, shuffle=True)

    def batches() -> Iterable[np.ndarray]:
        for batch in loader:
            assert batch.X.shape[1] == adata.n_vars
            yield np.array([position[name] for name in batch.obs_names])

    return batches, lambda rows: codes[rows], lambda: codes


def scdataset(args: argparse.Namespace) -> Loader:
    """ScDataset on a backed .h5ad."""
    import anndata
    from scdataset import BlockShuffling, scDataset

    adata = anndata.read_h5ad(args.input, backed="r")
    codes = adata.obs[LABEL].cat.codes.to_numpy()
    fetch_batches = args.window // args.batch_size
    FACTS["fetch_cells"] = fetch_batches * args.batch_size
    dataset = scDataset(
        adata,
        BlockShuffling(block_size=args.block),
        batch_size=args.batch_size,
        fetch_factor=fetch_batches,
        fetch_callback=lambda cells, rows: (cells.X[rows], rows),
        batch_callback=lambda fetched, picks: (fetched[0][picks], fetched[1][picks]),
    )
    return lambda: (np.asarray(rows) for _, rows in dataset), lambda rows: codes[rows], lambda: codes


LOADERS: dict[str, Callable[[argparse.Namespace], Loader]] = {
    "ours": ours,
    "ours_wide": lambda args: ours(args, wide=True),
    "limit": limit,
    "annbatch": annbatch,
    "annloader": annloader,
    "scdataset": scdataset,
}

if __name__ == "__main__":
    main()
