"""What a training run with the diffusion loss has beside another: the atlas's graph and the latent table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unicoord_atlas.loaders.graph_store import Neighbors
from unicoord_atlas.loaders.neighbor_stream import NeighborSettings, NeighborStream
from unicoord_atlas.loaders.plan import ALONE, Partition
from unicoord_atlas.training.latent_table import LatentTable, fill_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from accelerate import Accelerator

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.loaders.store import CellStore
    from unicoord_atlas.loaders.stream import CellStream
    from unicoord_atlas.model.joint_vae import JointVAE
    from unicoord_atlas.training.preparation import Preparation


def graph_of(store: CellStore, config: RunConfig) -> Neighbors | None:
    """The atlas's graph, where the diffusion loss is on; UsageError if the atlas has none."""
    return Neighbors(store) if config.needs_graph else None


def latent_table(
    out: Path,
    num_cells: int,
    model: JointVAE,
    accelerator: Accelerator,
    batches: Callable[[Partition], Iterable[MiniBatch]],
) -> LatentTable:
    """The latent table of a run; filled by one pass over the training cells where the run begins.

    Parameters
    ----------
    batches
        The training cells of one share of them: the ranks of a node, which have one table, fill it together.
    """
    path, dims = out / "latent_table.bin", model.spec.latent.diffusion_dims
    if accelerator.is_main_process:
        LatentTable(path, num_cells, dims)  # makes the file
    accelerator.wait_for_everyone()  # or a late rank would empty a file that others have mapped
    table = LatentTable(path, num_cells, dims)
    if not (out / "checkpoints" / "latest.json").exists():
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun says; else each fills all of it
        share = Partition(accelerator.local_process_index, ranks) if ranks > 1 else ALONE
        fill_table(table, model, batches(share), model.output_layer.weight.device)
    accelerator.wait_for_everyone()  # no rank may fill the table while another trains on it
    return table


def with_neighbors(
    stream: CellStream,
    store: CellStore,
    prepared: Preparation,
    graph: Neighbors,
    table: LatentTable,
    config: RunConfig,
) -> NeighborStream:
    """The stream, its minibatches with the neighbours that the loss needs."""
    drawn = NeighborSettings(config.loss.diffusion_share, config.loss.diffusion_live, config.train.seed)
    return NeighborStream(stream, store, prepared.columns, graph, table, prepared.trained(), drawn)
