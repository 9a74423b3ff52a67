"""Reconfiguration: set coordinates of encoded cells and decode.  Source: the paper, Methods, "Cell generation".

Shapes: n cells, g genes, d continuous dimensions, k categories, w width of a decoder input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .encode import Encoded, own_units
from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from unicoord_atlas.model.joint_vae import JointVAE

    from .reference import ReferenceModel


def mode_latents(
    model: JointVAE,
    encoded: Encoded,
    codes: Mapping[str, int | NDArray[np.integer]] | None = None,
    values: Mapping[str, float | NDArray[np.floating]] | None = None,
) -> NDArray[np.float32]:
    """(n, w) decoder inputs: arg-max categories one-hot and means, but for the coordinates that are set.

    Parameters
    ----------
    codes
        Category of a discrete dimension, for all cells or one each.
    values
        Value of a continuous dimension in the units of its label, for all cells or one each.
    """
    codes, values = codes or {}, values or {}
    n = len(encoded.rows)
    parts = []
    for latent, logits in zip(model.spec.latent.discrete, encoded.logits, strict=True):
        chosen = np.broadcast_to(np.asarray(codes.get(latent.name, logits.argmax(axis=1))), (n,))
        parts.append(np.eye(latent.num_categories, dtype=np.float32)[chosen])
    offset, scale = own_units(model)
    continuous = encoded.mean.copy()
    for number, dimension in enumerate(model.spec.latent.continuous):
        if dimension.name in values:
            continuous[:, number] = values[dimension.name]
    return np.concatenate([*parts, (continuous - offset) / scale], axis=1, dtype=np.float32)


def resolve_settings(
    reference: ReferenceModel, labels: Mapping[str, str], values: Mapping[str, float]
) -> tuple[dict[str, int], dict[str, float]]:
    """Codes and values of the coordinates to set; UsageError lists what can be set."""
    names = {label.name for label in reference.config.labels}
    continuous = [latent.name for latent in reference.config.network.latent.continuous]
    for name in labels:
        if name not in names:
            raise UsageError(
                f"--set-label {name}=...: no such label; it can be one of: {', '.join(sorted(names)) or 'none'}"
            )
    for name in values:
        if name not in continuous:
            raise UsageError(
                f"--set-value {name}=...: no such continuous dimension; "
                f"it can be one of: {', '.join(continuous) or 'none'}"
            )
    return {name: reference.label(name).code(category) for name, category in labels.items()}, dict(values)


@torch.no_grad()
def decode_rows(model: JointVAE, latents_nw: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, g) log-normalized cells over the model's genes."""
    device = model.output_layer.weight.device
    result: NDArray[np.float32] = model.decode(torch.from_numpy(latents_nw).to(device)).float().cpu().numpy()
    return result
