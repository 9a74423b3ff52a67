"""The plane that the browser shows: made once, and kept in a file of its own beside the cells.

`latents.zarr` gets `latents.umap.safetensors`, a reference on the hub one in our own cache; the cells themselves are
never written to.  The file names what it was made of: a map of other cells is made anew.  Shapes: n cells.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from unicoord_atlas.report.plane import umap_of_many

from .workdir import describe_input, json_text

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from .browse_cells import BrowsedCells

_KEY, _MADE_OF = "X_umap", "made_of"


def map_file(path: Path, maps: Path | None = None) -> Path:
    """Where the map of a file or directory of cells is kept: in the folder `maps`, or beside them."""
    return (maps or path.parent) / f"{path.name.removesuffix(path.suffix)}.umap.safetensors"


def places_of(path: Path, cells: BrowsedCells, maps: Path | None = None) -> NDArray[np.float32]:
    """(n, 2) the map that came with the cells, or that `map_file` names, or a new one."""
    if cells.places is not None:
        return cells.places
    made_of = json_text(describe_input(path))
    file = map_file(path, maps)
    kept = _kept(file, made_of)
    if kept is not None and len(kept) == len(cells.obs):
        return kept
    print(f"making a map of {len(cells.obs):,} cells (UMAP); it is kept in {file}", file=sys.stderr)
    places = umap_of_many(cells.bio())
    _keep(file, places, made_of)
    return places


def _kept(path: Path, made_of: str) -> NDArray[np.float32] | None:
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get(_MADE_OF) == made_of:
                places: NDArray[np.float32] = file.get_tensor(_KEY)
                return places
    except (FileNotFoundError, SafetensorError):
        return None
    return None


def _keep(path: Path, places: NDArray[np.float32], made_of: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({_KEY: places}, partial, metadata={_MADE_OF: made_of})
        partial.chmod(0o644)  # safetensors makes it private, and the cells beside it are not
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        print(f"the map could not be kept ({error}); it will be made again the next time", file=sys.stderr)
        partial.unlink(missing_ok=True)
