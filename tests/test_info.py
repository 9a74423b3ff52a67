import io

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from rich.console import Console

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import DataError
from unicoord_atlas.jobs import info
from unicoord_atlas.jobs.ingest import IngestOptions
from unicoord_atlas.jobs.ingest import run as ingest
from unicoord_atlas.jobs.workdir import finished_directory
from unicoord_atlas.jobs.write_coordinates import write_output
from unicoord_atlas.loaders.growing_writer import growing_writer
from unicoord_atlas.loaders.row_file import RowFile
from unicoord_atlas.loaders.store import open_store


def shown(path):
    """What `info` finds, and what it prints."""
    out = io.StringIO()
    return info.run(path, Console(file=out, width=100)), out.getvalue()


def cells():
    obs = {"type": ["B", "T", "NA", None], "cluster": [1, 1, 2, 3], "depth": [0.5, 1, 2, 3], "good": [True, False] * 2}
    counts = sp.csr_matrix(np.arange(12, dtype=np.float32).reshape(4, 3))
    table = anndata.AnnData(counts, obs=pd.DataFrame(obs, index=list("abcd")))
    table.var_names, table.var["gene_ids"] = ["A", "B", "C"], [f"ENSG{i:011d}" for i in range(3)]
    table.layers["log"] = np.log1p(counts.toarray())
    table.layers["scaled"] = np.log1p(counts.toarray()) - 1
    return table


def test_info_tells_what_a_file_holds(tmp_path):
    path = tmp_path / "some.h5ad"
    cells().write_h5ad(path)
    found, text = shown(path)
    assert (found["format"], found["cells"], found["genes"], found["gene_key"]) == ("AnnData HDF5", 4, 3, "symbol")
    assert found["gene_keys_known"] == ["symbol", "ensembl"]
    assert found["matrices"] == {
        "X": "counts (csr, float32, 4 x 3)",
        "layers/log": "log-normalized values (dense, float32, 4 x 3)",
        "layers/scaled": "scaled values (dense, float32, 4 x 3)",
    }
    assert found["labels"] == {
        "type": {"categories": 2, "unlabelled": 2},
        "cluster": {"categories": 3, "unlabelled": 0},
        "good": {"categories": 2, "unlabelled": 0},
    }
    assert "4 cells x 3 genes (by gene symbol, Ensembl id known too)" in text


def test_info_tells_what_a_store_holds(tmp_path):
    path = tmp_path / "some.h5ad"
    cells().write_h5ad(path)
    ingest(IngestOptions([str(path)], tmp_path / "atlas.zarr", labels=("type",)))
    found, text = shown(tmp_path / "atlas.zarr")
    assert (found["format"], found["cells"], found["genes"], found["entries"]) == ("unicoord-atlas store", 4, 3, 11)
    assert found["sources"] == {"some": 4}
    assert found["labels"] == {"type": {"categories": 2, "unlabelled": 2}}
    assert found["matrices"] == {"X": "counts"}
    assert "sources (cells): some 4" in text


def test_cells_that_a_job_has_made_are_shown_as_a_file_and_are_no_atlas(tmp_path):
    path = tmp_path / "made.zarr"
    with finished_directory(path, [], {}) as partial, growing_writer(partial, 3) as writer:
        writer.append(CsrBlock(np.array([0, 2, 3]), np.array([0, 2, 1]), np.ones(3, np.float32)))
        obs, var = (pd.DataFrame(index=list(names)) for names in ("ab", "ABC"))
        writer.finish(obs, var, {"unicoord": {"reference": "some"}})
    found, text = shown(path)
    assert (found["format"], found["cells"], found["genes"]) == ("AnnData Zarr", 2, 3)
    assert found["matrices"] == {"X": "counts (csr, float32, 2 x 3)"}
    assert "2 cells x 3 genes" in text
    with pytest.raises(DataError, match=r"made\.zarr is an output of unicoord-atlas, but no atlas store"):
        open_store(path)


def test_coordinates_without_counts_are_shown_as_a_file(tmp_path):
    obs = pd.DataFrame({"type": ["B", "T"]}, index=["a", "b"])
    table = RowFile(tmp_path / "table.f32", 2, 1, np.float32)
    table.append(np.ones((2, 1), np.float32))
    uns = {"unicoord": {"dims": np.array(["x"], object)}}
    write_output(tmp_path / "latents.zarr", [], {}, obs, {}, {"X_unicoord": table}, uns)
    found, _ = shown(tmp_path / "latents.zarr")
    assert (found["format"], found["cells"], found["genes"], found["matrices"]) == ("AnnData Zarr", 2, 0, {})
    assert found["labels"] == {"type": {"categories": 2, "unlabelled": 0}}


def test_info_refuses_what_is_neither(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["weights"] = 1
    with pytest.raises(DataError, match="is no AnnData"):
        info.run(tmp_path / "x.h5")
