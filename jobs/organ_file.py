"""One organ of an invented atlas as an .h5ad file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata

from unicoord_atlas.loaders.h5ad_writer import CsrWriter
from unicoord_atlas.loaders.hdf5_file import Hdf5Output

from .workdir import finished_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

    from unicoord_atlas.simulate import Organ


def write_organ(path: Path, organ: Organ, var: pd.DataFrame, compress: bool, advance: Callable[[int], None]) -> None:
    """Write the file as anndata would, cells drawn as they are written; `advance` is told of them."""
    with finished_file(path) as partial, (output := Hdf5Output(partial)) as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        anndata.io.write_elem(file, "obs", organ.obs())
        anndata.io.write_elem(file, "var", var)
        for key in ("uns", "obsm", "obsp", "varm", "varp", "layers"):
            anndata.io.write_elem(file, key, {})
        writer = CsrWriter(file.create_group("X"), len(var), compress)
        for lengths, indices, data in organ.blocks():
            writer.append(lengths, indices, data)
            output.check()
            advance(len(lengths))
        writer.finish()
