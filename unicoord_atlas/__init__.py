"""Learn a coordinate system of cells from whole atlases.

    from unicoord_atlas import Changes, Generation, JointVAE, ReferenceModel, AtlasSchema, RunConfig, fit

Each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from unicoord_atlas.jobs.fit import fit  # the public face names what lies on every floor
    from unicoord_atlas.model.joint_vae import JointVAE

    from .config import RunConfig
    from .coordinate_changes import Changes
    from .generate import Generation
    from .reference import ReferenceModel
    from .schema import AtlasSchema

__all__ = ["AtlasSchema", "Changes", "Generation", "JointVAE", "ReferenceModel", "RunConfig", "__version__", "fit"]

_HOMES = {
    "AtlasSchema": "schema",
    "Changes": "coordinate_changes",
    "Generation": "generate",
    "JointVAE": "model.joint_vae",
    "ReferenceModel": "reference",
    "RunConfig": "config",
    "fit": "jobs.fit",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch alone takes over a second, and `unicoord-atlas --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
