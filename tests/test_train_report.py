"""The page that `train` ends with: written by itself, and never at the cost of the training."""

import json
import resource
from pathlib import Path

import anndata
import pandas as pd
import pytest
import scipy.sparse as sp
from cells import counts_of_types
from typer.testing import CliRunner

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import DataError
from unicoord_atlas.jobs import cli, ingest, train, train_report
from unicoord_atlas.loaders.zarr_layout import MANIFEST
from unicoord_atlas.training.metrics import read_metrics

SETTINGS = [
    'latent.discrete=["cell_type"]',
    "latent.unsupervised_continuous=2",
    "model.hidden=[16,8]",
    "train.epochs=1",
    "train.batch_size=32",
    "train.warmup_steps=0",
    "train.precision=fp32",
]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train_report")
    counts, types = counts_of_types(120, 40, 3, num_markers=10, seed=0)
    obs = pd.DataFrame({"cell_type": [f"type {each}" for each in types]}, [f"cell{i}" for i in range(120)])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(40)])
    anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var).write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    return folder / "atlas.zarr"


def trained(atlas: Path, out: Path) -> dict:
    return train.run(train.TrainOptions(atlas, out, RunConfig.load(None, SETTINGS), report=True))


def complaints(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("no report")]


def test_training_ends_with_a_page_about_itself(atlas, tmp_path, capsys):
    page = tmp_path / "run" / "report.html"
    assert trained(atlas, tmp_path / "run")["report"] == str(page)
    data = page.read_text().split('id="report-data">')[1].split("</script>")[0]
    assert json.loads(data)["losses"]["epochs"] == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert complaints(capsys.readouterr().err) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's writer
@pytest.mark.parametrize("room", [10, 2_500])
def test_a_disk_that_is_full_at_once_is_told_and_the_run_goes_on_later(atlas, tmp_path, room):
    """Files may have `room` bytes: too few for the settings, or for what TensorBoard writes."""
    options = train.TrainOptions(atlas, tmp_path / "run", RunConfig.load(None, SETTINGS))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(DataError, match=r"run.*(may not be so large here|cannot be saved)"):
            train.run(options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert train.run(options)["epochs"] == 1


def test_a_report_that_a_kill_prevented_is_made_by_the_same_command(atlas, tmp_path, monkeypatch):
    def killed(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "write_report", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(atlas, tmp_path / "run")
    made = []
    monkeypatch.setattr(train, "write_report", lambda run, store: made.append((run, store)))
    trained(atlas, tmp_path / "run")
    assert made == [(tmp_path / "run", atlas)]
    (tmp_path / "run" / "report.html").write_text("made")
    trained(atlas, tmp_path / "run")
    assert len(made) == 1


def test_a_report_that_fails_costs_one_line_and_not_the_training(atlas, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    taken = run / "report.html"
    summary = train._summary
    monkeypatch.setattr(train, "_summary", lambda *given: taken.write_text("mine") and summary(*given))
    assert "report" not in trained(atlas, run)
    (line,) = complaints(capsys.readouterr().err)
    assert "report.html exists already" in line
    assert f"unicoord-atlas report {run} --atlas {atlas} --out {taken}" in line
    assert taken.read_text() == "mine"
    assert (run / "model" / MANIFEST).exists()


def test_a_report_that_is_killed_or_cannot_start_is_named(atlas, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_report.sys, "executable", "/bin/false")
    assert train_report.write_report(tmp_path, atlas) is None
    monkeypatch.setattr(train_report.sys, "executable", str(tmp_path / "absent"))
    assert train_report.write_report(tmp_path, atlas) is None
    ended, absent = complaints(capsys.readouterr().err)
    assert "it ended with 1" in ended
    assert "no process could be started" in absent


def test_without_the_extra_one_line_says_what_is_missing(atlas, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_report, "find_spec", lambda name: None if name == "umap" else name)
    assert train_report.write_report(tmp_path, atlas) is None
    (line,) = complaints(capsys.readouterr().err)
    assert "umap-learn is not installed; pip install 'unicoord-atlas[report]'" in line
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_makes_it_again_names_a_far_atlas_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_report, "find_spec", lambda _: None)
    train_report.write_report(tmp_path, Path("s3://bucket/atlas.zarr"))
    (far,) = complaints(capsys.readouterr().err)
    assert " --atlas s3://bucket/atlas.zarr " in far


@pytest.mark.parametrize(("words", "wanted"), [([], True), (["--no-report"], False)])
def test_the_command_asks_for_a_report_unless_told_not_to(words, wanted, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "run", lambda options: asked.append(options.report) or {})
    done = CliRunner().invoke(cli.app, ["train", str(tmp_path), "--out", str(tmp_path / "run"), *words])
    assert done.exit_code == 0
    assert asked == [wanted]
