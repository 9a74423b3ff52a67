"""Unsupervised discrete dimensions: what the encoder says of them is written, and their classes are set by number."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
from cells import write_cells
from references import random_cells, random_reference

from unicoord_atlas.config import RunConfig
from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.decoded import decode_rows
from unicoord_atlas.encode import encode_batches
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.generate import Generation
from unicoord_atlas.jobs import export_latents, ingest, map_query, train
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.points import encode_points, one_hot
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel

REFERENCE = random_reference(0, clusters=4)
NAME = "unsupervised_discrete_0"


def batches() -> QueryBatches:
    return QueryBatches(AnnDataCells(random_cells()), REFERENCE.schema, REFERENCE.normalization)


def decoded_as(codes: np.ndarray) -> np.ndarray:
    """The cells decoded from their means, in these classes."""
    (points,) = encode_points(REFERENCE.model, batches(), REFERENCE.device)
    points = replace(points, discrete=(*points.discrete[:2], one_hot(codes, 4)))
    return decode_rows(REFERENCE.model, points.decoder_input(REFERENCE.model))


def test_what_the_encoder_says_of_them_is_written(tmp_path):
    REFERENCE.save(tmp_path / "reference")
    random_cells().write_h5ad(tmp_path / "cells.h5ad")
    options = map_query.MapQueryOptions(
        tmp_path / "cells.h5ad", tmp_path / "reference", tmp_path / "mapped.h5ad", probabilities=True
    )
    map_query.run(options)
    (encoded,) = encode_batches(REFERENCE.model, batches(), REFERENCE.device)
    powers = np.exp(encoded.logits[2].astype(np.float64))
    for mapped in (anndata.read_h5ad(tmp_path / "mapped.h5ad"), REFERENCE.map(random_cells(), probabilities=True)):
        probabilities = mapped.obsm[f"X_unicoord_{NAME}"]
        np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)
        predicted = mapped.obs[f"{NAME}_predicted"]
        assert list(predicted.cat.categories) == ["0", "1", "2", "3"]
        assert [int(name) for name in predicted] == probabilities.argmax(axis=1).tolist()
    map_query.run(replace(options, probabilities=False, out=tmp_path / "bare.h5ad"))
    assert f"X_unicoord_{NAME}" not in anndata.read_h5ad(tmp_path / "bare.h5ad").obsm


def test_trained_ones_come_with_the_coordinates_of_an_atlas(tmp_path):
    write_cells(tmp_path / "cells.h5ad", 1)
    atlas, run, out = (tmp_path / name for name in ("atlas.zarr", "run", "latents.zarr"))
    ingest.run(ingest.IngestOptions([str(tmp_path / "cells.h5ad")], atlas, labels=["cell_type"]))
    settings = [
        'latent.discrete=["cell_type"]',
        "latent.unsupervised_discrete=[10]",
        "latent.unsupervised_continuous=2",
        "model.hidden=[16]",
        "train.epochs=1",
        "train.batch_size=32",
        "train.precision=fp32",
    ]
    train.run(train.TrainOptions(atlas, run, RunConfig.load(None, settings)))
    export_latents.run(export_latents.ExportLatentsOptions(atlas, run, out))
    latents = anndata.read_zarr(out)
    probabilities = latents.obsm[f"X_unicoord_{NAME}"]
    assert probabilities.shape == (800, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert [int(name) for name in latents.obs[f"{NAME}_predicted"]] == probabilities.argmax(axis=1).tolist()
    how = Generation(Changes({NAME: "9"}))
    made = ReferenceModel.load(run / "model").generate(like={"cell_type": "B"}, num=3, how=how)
    assert made.obs[f"{NAME}_generated"].tolist() == ["9"] * 3


def test_their_classes_are_set_by_number():
    how = Generation(Changes({NAME: "2"}), sample="mode", min_value=0)
    made = REFERENCE.generate(random_cells(), how)
    assert made.obs[f"{NAME}_generated"].tolist() == ["2"] * 30
    np.testing.assert_allclose(made.X.toarray(), decoded_as(np.full(30, 2)), rtol=1e-4, atol=1e-5)
    cells = random_cells()
    cells.obs["cluster"] = np.arange(30) % 4
    made = REFERENCE.generate(cells, replace(how, changes=Changes({NAME: "@cluster"})))
    np.testing.assert_allclose(made.X.toarray(), decoded_as(np.arange(30) % 4), rtol=1e-4, atol=1e-5)
    swept = REFERENCE.generate(cells, replace(how, changes=Changes(sweeps={NAME: "0:3:2"})))
    np.testing.assert_allclose(swept.X.toarray()[::2], decoded_as(np.zeros(30, int)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(swept.X.toarray()[1::2], decoded_as(np.full(30, 3)), rtol=1e-4, atol=1e-5)
    assert swept.obs[f"{NAME}_generated"].tolist() == ["0:3:0", "0:3:1"] * 30


def test_a_class_or_a_dimension_that_is_not_there_is_refused():
    for changes, words in (
        (Changes({NAME: "4"}), f"{NAME}='4' is unknown; it can be one of: 0, 1, 2, 3"),
        (Changes(sweeps={NAME: "0:x:3"}), "can be one of: 0, 1, 2, 3"),
        (Changes({"organ": "lung"}), f"cell_type, platform, {NAME}"),
    ):
        with pytest.raises(UsageError, match=words):
            REFERENCE.generate(random_cells(), Generation(changes))
    cells = random_cells()
    cells.obs["cluster"] = 7
    with pytest.raises(DataError, match=r"cell0: .*'7' is unknown"):
        REFERENCE.generate(cells, Generation(Changes({NAME: "@cluster"})))


def test_the_card_of_a_reference_names_them(tmp_path):
    REFERENCE.save(tmp_path / "with")
    random_reference(0).save(tmp_path / "without")
    assert f"unsupervised discrete: {NAME} (classes 0 to 3)" in (tmp_path / "with" / "README.md").read_text()
    assert "unsupervised discrete: none" in (tmp_path / "without" / "README.md").read_text()
