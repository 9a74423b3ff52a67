"""A SOMA Experiment in an object store, against the same cells on disk."""

import traceback
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cells import counts_of_types
from servers import KEYS, moto, proxy, upload
from stores import killed_after_a_table

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import AlreadyDone, ConfigError, DataError, UnreachableError, UsageError
from unicoord_atlas.jobs import convert, export_latents, info, ingest, train
from unicoord_atlas.loaders import object_open, soma_open
from unicoord_atlas.loaders.object_open import Patience
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.training.metrics import read_metrics

pytest.importorskip("tiledbsoma")
pytest.importorskip("obstore")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the library's own
ADDRESS = "s3://cells/some/cells.soma"
NUM_CELLS, NUM_GENES = 300, 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """atlas.zarr and cells.soma of it."""
    folder = tmp_path_factory.mktemp("soma")
    counts, types = counts_of_types(NUM_CELLS, NUM_GENES)
    tissue = np.where(np.arange(NUM_CELLS) % 4 < 2, "lung", "blood")
    obs = pd.DataFrame(
        {"cell_type": np.array(["B", "T", "NK"])[types], "tissue": tissue}, index=[f"cell{i}" for i in range(NUM_CELLS)]
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(NUM_GENES)])
    anndata.AnnData(sp.csr_matrix(counts), obs, var).write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    convert.run(convert.ConvertOptions(folder / "atlas.zarr", folder / "cells.soma"))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with pytest.MonkeyPatch.context() as patch, moto() as endpoint:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        upload(endpoint, folder / "cells.soma", "cells", "some/cells.soma")
        yield endpoint


def assert_same_rows(one, other):
    for part in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("query", ['?layer=data&filter=tissue == "lung"', pytest.param("", marks=pytest.mark.slow)])
def test_store_is_that_on_disk(server, folder, query):
    far, near = open_store(Path(ADDRESS + query)), open_store(f"{folder}/cells.soma{query}")
    assert far.uri.startswith(f"{ADDRESS}?measurement=RNA&layer=data")
    assert (far.n_obs, far.fingerprint, far.schema) == (near.n_obs, near.fingerprint, near.schema)
    for ranges in ([[0, near.n_obs]], [[100, 140], [0, 20], [105, 110]]):
        assert_same_rows(far.read_ranges(np.array(ranges)), near.read_ranges(np.array(ranges)))
    pd.testing.assert_frame_equal(far.obs(), near.obs())
    np.testing.assert_array_equal(far.size_factors, near.size_factors)
    assert info.run(Path(ADDRESS + query))["cells"] == near.n_obs


@pytest.mark.slow
def test_training_converting_and_adding_latents(server, folder, tmp_path, monkeypatch):
    settings = ['latent.discrete=["cell_type"]', "model.hidden=[16]", "train.epochs=2", "train.batch_size=32"]
    config = RunConfig.load(None, [*settings, "train.precision=fp32"])
    losses = []
    for name, store in (("near", folder / "atlas.zarr"), ("far", Path(ADDRESS))):
        train.run(train.TrainOptions(store, tmp_path / name, config))
        metrics = list(read_metrics(tmp_path / name / "metrics.jsonl"))
        losses.append([{key: value for key, value in line.items() if "loss" in key} for line in metrics])
    assert losses[0] == losses[1] and losses[0][0]

    convert.run(convert.ConvertOptions(Path(ADDRESS), tmp_path / "back.zarr"))
    assert open_store(tmp_path / "back.zarr").fingerprint == open_store(folder / "atlas.zarr").fingerprint
    latents = tmp_path / "latents.zarr"
    export_latents.run(export_latents.ExportLatentsOptions(Path(ADDRESS), tmp_path / "far", latents))
    options = convert.AddLatentsOptions(latents, Path(ADDRESS))
    with killed_after_a_table(monkeypatch):
        convert.add_latents(options)
    convert.add_latents(options)
    with pytest.raises(AlreadyDone):
        convert.add_latents(options)
    np.testing.assert_array_equal(
        open_store(ADDRESS).obsm("X_unicoord"), np.asarray(anndata.read_zarr(latents).obsm["X_unicoord"], np.float32)
    )


@pytest.mark.slow
def test_each_refusal_is_one_clear_error(server, monkeypatch):
    def refused(address, error, match):
        with pytest.raises(error, match=match) as caught:
            open_store(address)
        told = "".join(traceback.format_exception(caught.value))
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in told and "Credential" not in told

    monkeypatch.setattr(object_open, "OPENING", Patience(0.5))
    refused("s3://nothing/cells.soma", DataError, "there is no bucket 'nothing'")
    refused("s3://nothing/cells.soma?layer=raw", DataError, "there is no bucket 'nothing'")
    refused(
        "s3://cells/other.soma?layer=raw", DataError, r"cannot be opened as a SOMA Experiment \(DoesNotExistError\)"
    )
    refused("s3://cells/atlas.zarr?layer=raw", UsageError, "only a SOMA does")
    refused(f"{ADDRESS}?layer=other", UsageError, "layer other: it has data; write s3://cells")
    with proxy(server) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.address)
        between.fault = lambda number, path: "expired"
        refused(ADDRESS, ConfigError, "have expired")
        between.fault = lambda number, path: None
        monkeypatch.setattr(soma_open, "_TRIES", 2)
        store = open_store(ADDRESS)
        for fault, error, match in (
            ("reset", UnreachableError, "could not be reached"),
            ("denied", ConfigError, r"access to .* is denied \(AccessDenied\)"),
        ):
            between.fault = lambda number, path, fault=fault: fault
            with pytest.raises(error, match=match):
                store.read_ranges(np.array([[0, NUM_CELLS]]))
