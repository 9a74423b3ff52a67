"""HDF5 files to be written: what is in them, and what a full disk does."""

import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from unicoord_atlas.loaders.hdf5_file import Hdf5Output, write_h5ad

FILL = """
import resource, sys
import numpy as np
from pathlib import Path
from unicoord_atlas.loaders.hdf5_file import Hdf5Output

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
with Hdf5Output(Path(sys.argv[1])) as file:
    data = file.create_dataset("x", (0,), np.int32, maxshape=(None,), chunks=(1000,), compression="gzip", shuffle=True)
    for start in range(0, 200_000, 5_000):
        data.resize((start + 5_000,))
        data[start:] = np.random.default_rng(start).integers(0, 10**9, 5_000)
    file.create_group("y").attrs["z"] = "a" * 1000
"""


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    names = [f"cell{number}" for number in range(50)]
    obs = pd.DataFrame({"type": rng.choice(["B", "T"], 50), "depth": rng.random(50)}, index=names)
    counts = sp.random(50, 20, 0.2, "csr", np.float32, rng=rng)
    return anndata.AnnData(counts, obs=obs, obsm={"X_pca": rng.random((50, 3))})


def _described(file):
    """Name, attributes, type and compression of all in a file."""
    found = {"": dict(file.attrs)}
    file.visititems(
        lambda name, item: found.update(
            {name: (dict(item.attrs), str(getattr(item, "dtype", "")), getattr(item, "compression", None))}
        )
    )
    return {name: str(facts) for name, facts in found.items()}


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_is_what_anndata_writes(tmp_path, adata, compression):
    write_h5ad(adata.copy(), tmp_path / "ours.h5ad", compression)
    adata.write_h5ad(tmp_path / "theirs.h5ad", compression=compression)
    ours, theirs = anndata.read_h5ad(tmp_path / "ours.h5ad"), anndata.read_h5ad(tmp_path / "theirs.h5ad")
    assert (ours.X != theirs.X).nnz == 0
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)
    pd.testing.assert_frame_equal(ours.var, theirs.var)
    np.testing.assert_array_equal(ours.obsm["X_pca"], theirs.obsm["X_pca"])
    with h5py.File(tmp_path / "ours.h5ad") as one, h5py.File(tmp_path / "theirs.h5ad") as other:
        assert _described(one) == _described(other)


def test_a_file_is_changed_in_place(tmp_path, adata):
    write_h5ad(adata, tmp_path / "cells.h5ad")
    with Hdf5Output(tmp_path / "cells.h5ad", fresh=False) as file:
        file["obsm/X_pca"][:10] = 7
    assert (anndata.read_h5ad(tmp_path / "cells.h5ad").obsm["X_pca"][:12] == 7).sum() == 30


@pytest.mark.parametrize("room", [1, 3_000, 40_000, 300_000])
def test_a_disk_that_becomes_full_is_an_error_and_no_signal(tmp_path, room):
    """In a process of its own, for h5py itself ends it: SIGSEGV, as the objects of the broken file are let go."""
    ended = subprocess.run(
        [sys.executable, "-c", FILL, tmp_path / "x.h5", str(room)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("File too large")


def test_an_error_of_the_caller_is_not_hidden(tmp_path):
    with pytest.raises(KeyError, match="mine"), Hdf5Output(tmp_path / "x.h5"):
        raise KeyError("mine")
