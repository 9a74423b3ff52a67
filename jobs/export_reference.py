"""export-reference: a run's finished model as a directory to share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.loaders.zarr_layout import DATA, MANIFEST
from unicoord_atlas.reference import ReferenceModel

from .reference_cells import LATENTS, write_index
from .workdir import describe_input, finished_directory, read_json

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ExportReferenceOptions:
    """What `unicoord-atlas export-reference` is asked to do."""

    run: Path
    out: Path
    latents: Path | None = None
    """Bundle these coordinates of the atlas's cells."""
    index: bool = False
    """Also a faiss index of them."""


def model_of_run(run: Path) -> Path:
    """The finished model of a run; DataError says how to get one."""
    folder = run / "model"
    if not (folder / MANIFEST).exists():
        raise DataError(
            f"{run}: has no finished model; give the same `unicoord-atlas train` command again to go on training"
        )
    return folder


def run(options: ExportReferenceOptions) -> dict[str, Any]:
    """Copy the model, with the latents if asked for: a reference that holds coordinates in place of counts."""
    folder = model_of_run(options.run)
    if options.index and not options.latents:
        raise UsageError("--index: there is nothing to index without --latents")
    if options.latents:
        require_latents(options.latents, folder)
        if (options.latents / DATA).exists():
            raise DataError(
                f"--latents {options.latents}: holds counts, which a reference is shared without; "
                "export them again without --with-counts"
            )
    reference = ReferenceModel.load(folder)
    inputs = [folder, *([options.latents] if options.latents else [])]
    config = {"latents": options.latents is not None, "index": options.index}
    with finished_directory(options.out, inputs, config) as partial:
        reference.save(partial)
        if options.latents:
            shutil.copytree(options.latents, partial / LATENTS)
        if options.index:
            write_index(partial)
    return {"reference": str(options.out), "metrics": dict(reference.config.metrics)}


def require_latents(latents: Path, model: Path) -> None:
    """DataError unless these are coordinates by this very model."""
    way = "make them with `unicoord-atlas export-latents`"
    if not (latents / "obsm" / "X_unicoord").exists():
        raise DataError(f"--latents {latents}: holds no coordinates; {way}")
    made_from = (read_json(latents / MANIFEST) or {}).get("inputs", [])
    if describe_input(model) not in made_from:
        raise DataError(f"--latents {latents}: coordinates by another model than that of {model.parent}; {way}")
