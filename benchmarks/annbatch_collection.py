"""Make annbatch's own store of the same files, its rows in the same order: `annbatch_collection.py OUT FILE...`.

Runs under the peer's Python.  annbatch would shuffle while it writes; here it must show how its loader mixes cells
that lie organ after organ, like the other loaders.
"""

from __future__ import annotations

import sys
import warnings

import annbatch
import anndata
import zarr


def load(path: str) -> anndata.AnnData:
    """A file as annbatch's documentation opens it: X stays on disk, obs and var do not."""
    lazy = anndata.experimental.read_lazy(path)
    return anndata.AnnData(X=lazy.X, obs=lazy.obs.to_memory()[["organ"]], var=lazy.var.to_memory()[[]])


def main() -> None:
    """Write the collection."""
    out, *files = sys.argv[1:]
    warnings.simplefilter("ignore")
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    annbatch.DatasetCollection(zarr.open_group(out, mode="w")).add_adatas(files, load_adata=load, shuffle=False)


if __name__ == "__main__":
    main()
