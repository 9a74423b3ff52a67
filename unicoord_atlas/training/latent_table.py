"""The latent table: the latest posterior of every cell on the diffusion dimensions, for neighbours not encoded anew.

One file beside the run, memory-mapped, so that the ranks of a node share it: float16 means and variances, and the step
at which each was written.  A checkpoint keeps a copy, so that a resumed run reads what an uninterrupted one would.
Shapes: N cells of the store, n cells, d diffusion dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from unicoord_atlas.batch import MiniBatch
    from unicoord_atlas.model.joint_vae import JointVAE

_LARGEST = float(np.finfo(np.float16).max)
_BLOCK = 2**20


class LatentTable:
    """Means and variances of all cells of a store."""

    def __init__(self, path: Path, num_cells: int, dims: slice) -> None:
        """Make or open the file; `dims` are the diffusion dimensions among the continuous ones."""
        self.dims = dims
        width = dims.stop - dims.start
        record = np.dtype([("mean", np.float16, (width,)), ("variance", np.float16, (width,)), ("step", np.int64)])
        size = num_cells * record.itemsize
        if not path.exists() or path.stat().st_size != size:
            with path.open("wb") as file:  # no hole: a full disk is an error now, no signal in a later step
                for start in range(0, size, _BLOCK):
                    file.write(bytes(min(_BLOCK, size - start)))
        self._table: NDArray[np.void] = np.memmap(path, record, mode="r+", shape=(num_cells,))
        self._step = 0

    def write(self, rows_n: Tensor, mean_nd: Tensor, variance_nd: Tensor, step: int) -> None:
        """Remember what these cells' posterior is at this step; all continuous dimensions are given."""
        rows = rows_n.cpu().numpy()
        for name, values_nd in (("mean", mean_nd), ("variance", variance_nd)):
            kept = values_nd[:, self.dims].detach().float().clamp(-_LARGEST, _LARGEST)
            self._table[name][rows] = kept.cpu().numpy()
        self._table["step"][rows] = self._step = step

    def sums(self, rows: NDArray[np.int64], owners: NDArray[np.int64], num_owners: int) -> tuple[Tensor, Tensor]:
        """(m, d) sums of the means, and of the variances, of the rows that belong to each owner; float32."""
        sums = []
        for name in ("mean", "variance"):
            total = torch.zeros((num_owners, self.dims.stop - self.dims.start))
            values = torch.from_numpy(self._table[name][rows].astype(np.float32))
            sums.append(total.index_add(0, torch.from_numpy(owners), values))
        return sums[0], sums[1]

    def median_age(self, rows: NDArray[np.int64]) -> float:
        """Steps since these rows were written, the median, as of the last step that wrote any."""
        return float(np.median(self._step - self._table["step"][rows]))

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, as tensors."""
        return {name: torch.from_numpy(np.ascontiguousarray(self._table[name])) for name in self._names()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        for name in self._names():
            self._table[name] = state[name].cpu().numpy()
        self._step = int(self._table["step"].max())

    def _names(self) -> tuple[str, ...]:
        return ("mean", "variance", "step")


@torch.no_grad()
def fill_table(table: LatentTable, model: JointVAE, batches: Iterable[MiniBatch], device: torch.device) -> None:
    """What an untrained model says of all cells: one encoding pass before the first step."""
    model.eval()
    for batch in batches:
        on_device = batch.to(device)
        posterior = model.encode(model.normalized(on_device), model.center(on_device))
        table.write(batch.rows_n, posterior.mean_nd, posterior.logvar_nd.exp(), step=0)
