"""Training by classes: a rare one is seen as often as the others, in training and nowhere else."""

import re
from collections import Counter
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cells import counts_of_types

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.jobs import ingest, train
from unicoord_atlas.jobs.run_identity import refuse_differing
from unicoord_atlas.jobs.train_cells import shuffled
from unicoord_atlas.loaders import Partition, open_store
from unicoord_atlas.loaders.balance import with_balance

API = Path(__file__).resolve().parents[1] / "docs" / "api.md"
SETTINGS = [
    'latent.discrete=["cell_type"]',
    "latent.unsupervised_continuous=2",
    "data.min_cells=1",
    "model.hidden=[16,8]",
    "train.epochs=1",
    "train.batch_size=32",
    "train.warmup_steps=0",
    "train.precision=fp32",
    "train.trackers=[]",
]
BALANCED = "stream.balance=cell_type"


def config(*more: str) -> RunConfig:
    return RunConfig.load(None, [*SETTINGS, *more])


@pytest.fixture(scope="module")
def atlas(tmp_path_factory) -> Path:
    """400 cells: one in twenty is of a rare type, one in ten of none that is known, one in four of another donor."""
    folder = tmp_path_factory.mktemp("balance")
    number = np.arange(400)
    types = np.where(number % 20 == 3, "rare", "common").astype(object)
    types[number % 10 == 0] = "unknown"
    donors = np.where(number % 4 == 1, "second", "first")
    obs = pd.DataFrame({"cell_type": types, "donor": donors}, index=[f"cell{i}" for i in number])
    counts = sp.csr_matrix(counts_of_types(400, 400, 3, num_markers=30)[0])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(counts.shape[1])])
    anndata.AnnData(counts, obs=obs, var=var).write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    return folder / "atlas.zarr"


@pytest.fixture(scope="module")
def store(atlas):
    return open_store(atlas)


def rows_of_an_epoch(store, settings: RunConfig, world_size: int = 1) -> np.ndarray:
    """All cells that the minibatches of all ranks hold."""
    prepared = train.prepare_store(store, settings)
    ranks = [Partition(rank, world_size) for rank in range(world_size)]
    streams = [shuffled(store, prepared, settings, 16 // world_size, rank, balanced=True) for rank in ranks]
    return np.concatenate([batch.rows_n.numpy() for stream in streams for batch in stream])


def shares(store, column: str, rows: np.ndarray) -> dict[str, float]:
    classes = store.obs()[column].astype(str).to_numpy()[rows]
    return {name: count / len(rows) for name, count in Counter(classes.tolist()).items()}


@pytest.mark.parametrize(
    ("column", "names"), [("cell_type", {"common", "rare"}), ("donor", {"first", "second"})], ids=["label", "obs"]
)
def test_classes_are_drawn_alike(store, column, names):
    found = shares(store, column, rows_of_an_epoch(store, config(f"stream.balance={column}")))
    assert set(found) == names  # none without a class
    assert list(found.values()) == pytest.approx([0.5, 0.5], abs=0.06)


@pytest.mark.parametrize(("temperature", "rare"), [(0.0, 0.056), (0.5, 0.195), (1.0, 0.5)])
def test_temperature_goes_from_the_cells_to_the_classes(store, temperature, rare):
    """20 rare cells to 340: the roots of these are as 0.195 to 0.805."""
    settings = config(BALANCED, f"stream.balance_temperature={temperature}")
    rows = rows_of_an_epoch(store, settings)
    assert shares(store, "cell_type", rows)["rare"] == pytest.approx(rare, abs=0.06)
    assert temperature or len(np.unique(rows)) == len(rows)


def test_ranks_draw_the_same_cells_together(store):
    one, two = (Counter(rows_of_an_epoch(store, config(BALANCED), ranks).tolist()) for ranks in (1, 2))
    assert abs(one.total() - two.total()) <= 16 and (one - two).total() <= 16  # but for each rank's last, smaller batch


def test_only_training_is_balanced(store):
    plain, balanced = (train.prepare_store(store, config(*more)) for more in ([], [BALANCED]))
    assert plain.weights is None and plain.num_drawn == len(plain.training_rows)
    for name in ("training_rows", "validation_rows"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(balanced, name))
    assert plain.labels == balanced.labels and plain.latent == balanced.latent
    labelled = np.intersect1d(balanced.training_rows, np.flatnonzero(balanced.columns.codes[:, 0] >= 0))
    np.testing.assert_array_equal(np.flatnonzero(balanced.weights), labelled)
    assert balanced.num_drawn == len(labelled) < plain.num_drawn
    assert plain.facts.labelled_shares[0] == pytest.approx(0.9, abs=0.05)
    assert balanced.facts.labelled_shares[0] == pytest.approx(1.0)  # of the cells that are drawn


def test_a_balanced_run_trains_and_says_what_it_draws(atlas, tmp_path, capsys, monkeypatch):
    options = train.TrainOptions(atlas, tmp_path / "run", config(BALANCED, "train.accumulate_steps=2"))
    result = train.run(options)
    said = capsys.readouterr().err
    assert re.search(r"stream\.balance = 'cell_type': \d+ draws an epoch from 2 classes; \d+ training cells with", said)
    assert f"for 1 epochs of {result['steps']} steps" in said  # a step is of two parts
    assert 0 <= result["metrics"]["cell_type_accuracy"] <= 1
    monkeypatch.setenv("RANK", "1")  # of a run that is finished already the first process alone speaks
    assert train.run(options) == {}
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("RANK")
    assert train.run(options)["steps"] == result["steps"]


def test_a_run_from_before_these_settings_goes_on(store):
    settings = config().model_dump(mode="json")
    for name in ("balance", "balance_temperature"):
        del settings["stream"][name]
    before = {"atlas": Path(store.uri).name, "fingerprint": store.fingerprint, "settings": settings}
    refuse_differing("run", before, store, config())
    with pytest.raises(DataError, match=r"\(stream\.balance differ\)"):
        refuse_differing("run", before, store, config(BALANCED))


def test_a_balance_that_cannot_be_is_told(store):
    with pytest.raises(UsageError, match=r"stream\.balance = 'donr': obs has no such column; it has: .*donor"):
        train.prepare_store(store, config("stream.balance=donr"))
    prepared = train.prepare_store(store, config())
    with pytest.raises(DataError, match=r"stream\.balance = 'empty': none of the \d+ training cells is labelled"):
        with_balance(prepared, config("stream.balance=empty").stream, store.obs().assign(empty=None))


def test_the_loop_of_the_documentation_runs(atlas, monkeypatch):
    (program,) = re.findall(r"^```python\n(.*?)^```$", API.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(atlas.parent)
    seen: dict = {}
    exec(program, seen)
    types = seen["type_n"].numpy()
    assert seen["x_ng"].shape == (len(types), 400) and set(types) == {0, 1}
