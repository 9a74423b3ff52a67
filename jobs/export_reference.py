"""export-reference: a run's finished model as a directory to share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.zarr_layout import MANIFEST
from unicoord_atlas.reference import ReferenceModel

from .workdir import finished_directory

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ExportReferenceOptions:
    """What `unicoord-atlas export-reference` is asked to do."""

    run: Path
    out: Path
    latents: Path | None = None
    """Bundle these coordinates of the atlas's cells."""


def model_of_run(run: Path) -> Path:
    """The finished model of a run; DataError says how to get one."""
    folder = run / "model"
    if not (folder / MANIFEST).exists():
        raise DataError(
            f"{run}: has no finished model; give the same `unicoord-atlas train` command again to go on training"
        )
    return folder


def run(options: ExportReferenceOptions) -> dict[str, Any]:
    """Copy the model, with the latents if asked for; nothing is computed."""
    folder = model_of_run(options.run)
    if options.latents and not (options.latents / "obsm" / "X_unicoord").exists():
        raise DataError(
            f"--latents {options.latents}: holds no coordinates; make them with `unicoord-atlas export-latents`"
        )
    reference = ReferenceModel.load(folder)
    inputs = [folder, *([options.latents] if options.latents else [])]
    with finished_directory(options.out, inputs, {"latents": options.latents is not None}) as partial:
        reference.save(partial)
        if options.latents:
            shutil.copytree(options.latents, partial / "latents.zarr")
    return {"reference": str(options.out), "metrics": dict(reference.config.metrics)}
