"""What a file of coordinates says of them: which model made them, and what their columns are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .checksums import checksum
from .errors import DataError
from .version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .reference import ReferenceModel


def identity_of(reference: ReferenceModel) -> str:
    """What tells coordinates of one model from those of another: a checksum of the layer that makes the means."""
    weights = (part.detach().cpu().contiguous().numpy().tobytes() for part in reference.model.mean.parameters())
    return checksum(weights)


def require_coordinates_of(reference: ReferenceModel, facts: Mapping[str, object], path: Path) -> None:
    """DataError if uns["unicoord"] says that another model made the coordinates; older files do not say it."""
    if facts.get("model", identity_of(reference)) != identity_of(reference):
        raise DataError(f"{path}: was mapped onto another reference; map its cells onto this one")


def facts_of(reference: ReferenceModel) -> dict[str, object]:
    """What uns["unicoord"] says of the coordinates."""
    parents = {
        tree.child: {
            "level": tree.parent,
            "children": list(reference.label(tree.child).categories),
            "parents": [
                reference.label(tree.parent).categories[int(np.argmax(row))] if any(row) else "" for row in tree.shares
            ],
            # Codes of each child and each of its parents: `parents`, which older versions read, has one a child.
            "pairs": np.argwhere(np.array(tree.shares) > 0),
        }
        for tree in reference.config.parent_shares
    }
    return {
        "model": identity_of(reference),
        "dims": list(reference.dims),
        "supervised": [each.name for each in reference.config.network.latent.continuous if each.supervised],
        "categories": {label.name: list(label.categories) for label in reference.config.labels},
        "folded": {label.name: list(label.folded) for label in reference.config.labels},
        "parents": parents,
        "technical": list(reference.config.technical),
        "version": __version__,
    }
