"""Runs that a signal, or another process, comes into: what is kept, what is refused, and how they end."""

import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
from cells import write_cells
from safetensors.numpy import load_file

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import ConfigError, DataError
from unicoord_atlas.jobs import ingest, train
from unicoord_atlas.jobs.run_identity import alone
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training import loop, optimizer
from unicoord_atlas.training.finish import with_folded
from unicoord_atlas.training.preparation import split_rows
from unicoord_atlas.training.signals import Stopped

SETTINGS = [
    'latent.discrete=["cell_type"]',
    "model.hidden=[16,8]",
    "train.epochs=2",
    "train.batch_size=64",
    "train.trackers=[]",
    "train.precision=fp32",
]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    write_cells(folder / "cells.h5ad", 1)
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    return folder / "atlas.zarr"


def options(atlas, out, *more):
    return train.TrainOptions(atlas, out, RunConfig.load(None, [*SETTINGS, *more]))


@pytest.fixture(scope="module")
def undisturbed(atlas, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train.run(options(atlas, out))
    return (out / "model" / "model.safetensors").read_bytes()


def test_ctrl_c_in_the_first_epoch_leaves_a_model_and_a_run_that_goes_on(atlas, tmp_path, monkeypatch, undisturbed):
    out, real = tmp_path / "run", loop._step

    def step(run, state, batches):
        if state.progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, state, batches)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", step)
        with pytest.raises(Stopped, match="SIGINT after step 4"):
            train.run(options(atlas, out))
    assert ReferenceModel.load(out / "model").config.atlas["training_cells"] > 0
    assert (out / "model" / "model.safetensors").read_bytes() != undisturbed
    assert train.run(options(atlas, out))["epochs"] == 2
    assert (out / "model" / "model.safetensors").read_bytes() == undisturbed


def test_tiny_moments_are_forgotten_while_a_run_trains(atlas, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer, "_TINY", 1e30)
    monkeypatch.setattr(loop, "FORGET_EVERY", 1)
    train.run(options(atlas, tmp_path / "run"))
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*/optimizer.safetensors")
    moments = {name: values for name, values in load_file(saved).items() if "exp_avg" in name}
    assert moments
    assert not any(values.any() for values in moments.values())


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_signal_while_cells_are_validated_is_heard(atlas, tmp_path, monkeypatch, undisturbed, epoch):
    out, real = tmp_path / "run", loop.validate

    def validate(run, told):
        if len((run.folder / "metrics.jsonl").read_text().splitlines()) == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, told)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "validate", validate)
        with pytest.raises(Stopped, match="SIGTERM"):
            train.run(options(atlas, out))
    assert not (out / "model").exists()
    assert train.run(options(atlas, out))["epochs"] == 2
    assert (out / "model" / "model.safetensors").read_bytes() == undisturbed
    epochs = [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [0, 1]


def test_two_processes_do_not_train_into_one_run(atlas, tmp_path):
    with alone(tmp_path / "run"), pytest.raises(DataError, match="being written by another process"):
        train.run(options(atlas, tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_of_few_donors_one_is_held_out_and_never_all(atlas):
    obs = open_store(atlas).obs()
    donors = obs.assign(donor=np.arange(len(obs)) * 4 // len(obs), one="same")

    def sides(fraction, by="donor"):
        chosen = RunConfig.load(None, [*SETTINGS, f"data.validation_by={by}", f"data.validation_fraction={fraction}"])
        return [set(donors["donor"].iloc[rows]) for rows in split_rows(chosen, donors)]

    for fraction, held_out in ((0.0, 0), (1e-6, 1), (0.999, 3)):
        training, validation = sides(fraction)
        assert len(validation) == held_out
        assert training == {0, 1, 2, 3} - validation
    with pytest.raises(ConfigError, match=r"validation_by = 'one': all cells have one value"):
        sides(0.1, "one")


def test_the_schema_of_a_reference_names_what_was_folded(atlas):
    schema = open_store(atlas).schema
    trained = schema.label("cell_type").model_copy(update={"folded": {"NK": 3}})
    (label,) = with_folded(schema, [trained]).labels
    assert label.folded == {"NK": 3}
    assert label.categories == schema.label("cell_type").categories
    assert pd.Series(schema.label("cell_type").folded).empty
