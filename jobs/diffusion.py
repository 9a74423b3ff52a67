"""What a training run with the diffusion loss has beside another: the atlas's graph and the latent table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicoord_atlas.loaders.graph_store import Neighbors
from unicoord_atlas.loaders.neighbor_stream import NeighborSettings, NeighborStream
from unicoord_atlas.training.latent_table import LatentTable, fill_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.config import RunConfig
    from unicoord_atlas.loaders.store import CellStore
    from unicoord_atlas.loaders.stream import CellStream
    from unicoord_atlas.model.joint_vae import JointVAE
    from unicoord_atlas.training.preparation import Preparation


def graph_of(store: CellStore, config: RunConfig) -> Neighbors | None:
    """The atlas's graph, where the diffusion loss is on; UsageError if the atlas has none."""
    return Neighbors(store) if config.needs_graph else None


def latent_table(out: Path, num_cells: int, model: JointVAE, batches: Iterable[MiniBatch]) -> LatentTable:
    """The latent table of a run; filled by one pass over the training cells where the run begins."""
    table = LatentTable(out / "latent_table.bin", num_cells, model.spec.latent.diffusion_dims)
    if not (out / "checkpoints" / "latest.json").exists():
        fill_table(table, model, batches, model.output_layer.weight.device)
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
