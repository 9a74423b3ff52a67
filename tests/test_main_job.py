"""The main job on a small made-up atlas, by the functions that the commands call."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from cells import counts_of_types, write_cells

from unicoord_atlas.config import RunConfig
from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.errors import AlreadyDone, ConfigError, DataError, UsageError
from unicoord_atlas.generate import Generation
from unicoord_atlas.jobs import (
    build_graph,
    dask_parts,
    export_latents,
    export_reference,
    generate,
    ingest,
    map_query,
    train,
)
from unicoord_atlas.jobs.cli import run_command
from unicoord_atlas.jobs.demo import recover_counts
from unicoord_atlas.jobs.fit import fit
from unicoord_atlas.jobs.parts import Part
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training import loop, preparation
from unicoord_atlas.training.metrics import SPEED, read_metrics

SETTINGS = [
    'latent.discrete=["cell_type"]',
    'latent.continuous=["time"]',
    "latent.unsupervised_continuous=0",  # else it tells the type, too: reconfiguration is tested here
    "model.hidden=[32,16]",
    "train.epochs=20",
    "train.batch_size=32",
    "train.learning_rate=3e-3",
    "train.warmup_steps=0",
    "train.precision=fp32",
]
DIFFUSION = ["latent.unsupervised_continuous=4", "latent.diffusion=2"]


def config(*more: str) -> RunConfig:
    return RunConfig.load(None, [*SETTINGS, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a trained run, latents, a reference and a mapped query."""
    folder = tmp_path_factory.mktemp("main_job")
    write_cells(folder / "cells.h5ad", 1)
    write_cells(folder / "query.h5ad", 2, 150)
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    train.run(train.TrainOptions(folder / "atlas.zarr", folder / "run", config()))
    export_latents.run(
        export_latents.ExportLatentsOptions(folder / "atlas.zarr", folder / "run", folder / "latents.zarr")
    )
    export_reference.run(export_reference.ExportReferenceOptions(folder / "run", folder / "reference"))
    map_query.run(
        map_query.MapQueryOptions(
            folder / "query.h5ad", folder / "reference", folder / "mapped.h5ad", True, folder / "obs.csv"
        )
    )
    return folder


def test_held_out_cells_are_annotated(folder):
    mapped = anndata.read_h5ad(folder / "mapped.h5ad")
    truth = np.array(["B", "T", "NK"])[mapped.obs["truth"]]
    assert (mapped.obs["cell_type_predicted"].astype(str) == truth).mean() > 0.95
    assert mapped.obs["cell_type_confidence"].between(1 / 3, 1).all()
    assert np.corrcoef(mapped.obsm["X_unicoord"][:, 0], mapped.obs["time"])[0, 1] > 0.8


def test_mapped_keeps_the_query_s_own_cells_and_columns(folder):
    mapped, query = anndata.read_h5ad(folder / "mapped.h5ad"), anndata.read_h5ad(folder / "query.h5ad")
    assert mapped.X is None
    assert list(mapped.obs_names) == list(query.obs_names)
    assert mapped.obs["time"].tolist() == query.obs["time"].tolist()
    np.testing.assert_allclose(mapped.obsm["X_unicoord_cell_type"].sum(axis=1), 1, rtol=1e-5)
    assert list(mapped.uns["unicoord"]["dims"]) == ["time"]
    assert (
        pd.read_csv(folder / "obs.csv", index_col=0)["cell_type_predicted"].tolist()
        == mapped.obs["cell_type_predicted"].tolist()
    )


def test_workers_of_a_cluster_export_and_map_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_parts, "CELLS", 64)
    out = {name: tmp_path / name for name in ("latents.zarr", "mapped.h5ad")}
    export = export_latents.ExportLatentsOptions(
        folder / "atlas.zarr", folder / "run", out["latents.zarr"], dask="local:2"
    )
    query = map_query.MapQueryOptions(
        folder / "query.h5ad", folder / "reference", out["mapped.h5ad"], probabilities=True, dask="local:2"
    )
    assert export_latents.run(export)["cells"] == 800
    assert map_query.run(query)["cells"] == 150
    for name, read in (("latents.zarr", anndata.read_zarr), ("mapped.h5ad", anndata.read_h5ad)):
        ours, theirs = read(out[name]), read(folder / name)
        # Not to the bit: products of matrices depend on how many cells are encoded together.
        pd.testing.assert_frame_equal(ours.obs, theirs.obs, rtol=1e-4, atol=1e-3)
        for key in theirs.obsm:
            np.testing.assert_allclose(ours.obsm[key], theirs.obsm[key], rtol=1e-5, atol=1e-5)
    with pytest.raises(AlreadyDone):
        export_latents.run(export)
    for message, changes in (
        ("each pod does its own --part", {"dask": "k8s"}),
        ("leave out --part", {"part": Part(0, 2)}),
    ):
        with pytest.raises(UsageError, match=message):
            map_query.run(replace(query, out=tmp_path / "other.h5ad", **changes))


def test_latents_are_those_of_the_mapped_cells(folder):
    """The atlas mapped as a query gives the coordinates that export-latents gives: one inference path."""
    latents = anndata.read_zarr(folder / "latents.zarr")
    out = folder / "again.zarr"
    map_query.run(map_query.MapQueryOptions(folder / "cells.h5ad", folder / "reference", out))
    again = anndata.read_zarr(out)
    np.testing.assert_allclose(latents.obsm["X_unicoord"], again.obsm["X_unicoord"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(latents.obsm["X_unicoord_bio"], again.obsm["X_unicoord_bio"], rtol=1e-3, atol=1e-3)
    table = pd.read_parquet(folder / "latents.zarr" / "latents.parquet")
    assert list(table.index) == list(latents.obs_names)
    np.testing.assert_array_equal(table["unicoord_time"], latents.obsm["X_unicoord"][:, 0])


def test_a_finished_run_is_not_trained_again(folder):
    before = (folder / "run" / "metrics.jsonl").read_text()
    train.run(train.TrainOptions(folder / "atlas.zarr", folder / "run", config()))
    assert (folder / "run" / "metrics.jsonl").read_text() == before
    with pytest.raises(DataError, match=r"loss\.beta differ"):
        train.run(train.TrainOptions(folder / "atlas.zarr", folder / "run", config("loss.beta=0.7")))


KILLER = """
import os, signal, sys
from pathlib import Path
from unicoord_atlas.config import RunConfig
from unicoord_atlas.jobs import train
from unicoord_atlas.training import checkpoint, loop

owner, name, count = {"loop": loop, "checkpoint": checkpoint}[sys.argv[3]], sys.argv[4], int(sys.argv[5])
real, calls = getattr(owner, name), [0]

def deadly(*given, **named):
    calls[0] += 1
    if calls[0] == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given, **named)

setattr(owner, name, deadly)
train.run(train.TrainOptions(Path(sys.argv[1]), Path(sys.argv[2]), RunConfig.load(None, sys.argv[6:])))
"""
MOMENTS = [
    ("loop", "_step", 40),  # within an epoch, steps after a checkpoint
    ("checkpoint", "save_file", 5),  # a checkpoint is half written
    ("checkpoint", "_prune", 9),  # it is written, older ones are still there
    ("checkpoint", "_sync", 9),  # it is written, but nothing points to it
    ("loop", "_save", 5),  # after the line of an epoch, before its checkpoint
]


def loss_curve(run: Path) -> list[dict]:
    """All that a run said of its steps and epochs, but for the time they took."""
    entries = [*read_metrics(run / "steps.jsonl"), *read_metrics(run / "metrics.jsonl")]
    return [{name: value for name, value in entry.items() if name not in SPEED} for entry in entries]


def test_a_run_killed_again_and_again_goes_on_as_if_nothing_had_happened(folder, tmp_path):
    """kill -9 at several moments; at the end losses and weights are those of the undisturbed run, to the last bit."""
    settings, out, reached = [*SETTINGS, "train.checkpoint_every_steps=7"], tmp_path / "killed", []
    for owner, name, count in MOMENTS:
        words = [str(folder / "atlas.zarr"), str(out), owner, name, str(count), *settings]
        ended = subprocess.run([sys.executable, "-c", KILLER, *words], capture_output=True, timeout=120)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        latest = json.loads((out / "checkpoints" / "latest.json").read_text())["checkpoint"]
        reached.append(int(latest.removeprefix("step-")))
    assert reached[0] == 35 and reached == sorted(reached) and len(set(reached)) > 2
    train.run(train.TrainOptions(folder / "atlas.zarr", out, RunConfig.load(None, settings)))
    curve = loss_curve(out)
    assert curve == loss_curve(folder / "run") and len(curve) > 25
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (out, folder / "run")]
    assert weights[0] == weights[1]


def test_tensorboard_shows_the_losses_of_metrics(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # The settings lie in a folder of their own below the losses.
    events = min((folder / "run").rglob("events.out.tfevents.*"), key=lambda path: len(path.parts))
    shown = EventAccumulator(str(events.parent), size_guidance={"scalars": 0}).Reload()
    entries = read_metrics(folder / "run" / "metrics.jsonl")
    for name in ("loss", "validation_loss", "validation_accuracy_cell_type"):
        scalars = [(scalar.step, scalar.value) for scalar in shown.Scalars(name)]
        assert [step for step, _ in scalars] == [entry["step"] for entry in entries]
        assert [value for _, value in scalars] == pytest.approx([entry[name] for entry in entries], rel=1e-6)
    steps = [entry["step"] for entry in read_metrics(folder / "run" / "steps.jsonl")]
    assert [scalar.step for scalar in shown.Scalars("step_reconstruction")] == steps


def test_a_terminated_run_is_saved_and_says_so(folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "unicoord_atlas.jobs.cli",
        "train",
        str(folder / "atlas.zarr"),
        "--out",
        str(tmp_path / "run"),
        "--set",
    ]
    command += [*" --set ".join([*SETTINGS, "train.epochs=4000"]).split(" ")]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not metrics.exists() or not metrics.read_text():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        assert "the same command goes on" in process.stderr.read()
    assert (tmp_path / "run" / "checkpoints" / "latest.json").exists()


def test_a_signal_that_is_lost_in_a_callback_still_ends_in_143(capsys):
    """Python drops what is raised within finalizers and callbacks of C: the job went on and ended with 0."""
    before = signal.getsignal(signal.SIGTERM)

    def job() -> None:
        with suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        assert run_command(job) == 143
        assert run_command(lambda: None) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "terminated" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, less, genes",
    [
        (({"cell_type": "B"}, {}), ({"cell_type": "NK"}, {}), slice(0, 30)),
        (({"cell_type": "NK"}, {}), ({"cell_type": "T"}, {}), slice(60, 90)),
        (({}, {"time": "9"}), ({}, {"time": "1"}), slice(100, 140)),
    ],
)
def test_generate_sets_the_coordinates_it_is_told(folder, tmp_path, more, less, genes):
    made = []
    for number, (labels, values) in enumerate((more, less)):
        out = tmp_path / f"{number}.h5ad"
        how = Generation(Changes(labels, values))
        generate.run(generate.GenerateOptions(folder / "query.h5ad", folder / "reference", out, how))
        made.append(anndata.read_h5ad(out))
    levels = [np.asarray(adata[:, genes].X.mean(axis=1)) for adata in made]
    assert (levels[0] > levels[1]).mean() > 0.95
    assert made[0].X.data.min() >= 0.01
    assert dict(made[0].uns["unicoord"]["set_label"]) == more[0]


def test_generate_lists_what_can_be_set(folder, tmp_path):
    for labels, values, words in (
        ({"cell_type": "Z"}, {}, "B, NK, T"),
        ({"organ": "lung"}, {}, "cell_type"),
        ({}, {"day": "1"}, "time"),
        ({}, {"time": "soon"}, "soon"),
    ):
        how = Generation(Changes(labels, values))
        with pytest.raises(UsageError, match=words):
            generate.run(
                generate.GenerateOptions(folder / "query.h5ad", folder / "reference", tmp_path / "x.h5ad", how)
            )
    assert not (tmp_path / "x.h5ad").exists()


@pytest.mark.parametrize("name", ["config.json", "schema.json", "normalization.safetensors", "model.safetensors"])
def test_a_damaged_reference_is_refused_by_name(folder, tmp_path, name):
    shutil.copytree(folder / "reference", tmp_path / "reference")
    path = tmp_path / "reference" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=name):
        ReferenceModel.load(tmp_path / "reference")


def test_the_diffusion_loss_needs_a_graph(folder, tmp_path):
    with pytest.raises(UsageError, match="unicoord-atlas build-graph"):
        train.run(
            train.TrainOptions(
                folder / "atlas.zarr",
                tmp_path / "run",
                config("latent.unsupervised_continuous=4", "latent.diffusion=2"),
            )
        )
    assert not (tmp_path / "run").exists()


def test_a_run_with_the_diffusion_loss_goes_on_to_the_bit(folder, tmp_path, monkeypatch):
    """Interrupted in an epoch, it remembers its neighbours as an undisturbed run does."""
    atlas = tmp_path / "atlas.zarr"
    shutil.copytree(folder / "atlas.zarr", atlas)
    build_graph.run(build_graph.BuildGraphOptions(atlas, k=8, num_pcs=5))
    settings = config(
        "latent.unsupervised_continuous=4",
        "latent.diffusion=2",
        "train.epochs=3",
        "train.checkpoint_every_steps=3",
        "train.precision=fp32",
    )
    train.run(train.TrainOptions(atlas, tmp_path / "undisturbed", settings))
    real, steps = loop._step, []

    def stopping(*given):
        steps.append(None)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.run(train.TrainOptions(atlas, tmp_path / "stopped", settings))
    monkeypatch.setattr(loop, "_step", real)
    train.run(train.TrainOptions(atlas, tmp_path / "stopped", settings))
    runs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("undisturbed", "stopped")]
    assert [entry["diffusion"] for entry in runs[0]] == [entry["diffusion"] for entry in runs[1]]
    assert runs[0][-1]["diffusion"] > 0
    assert runs[0][-1]["diffusion_rows_read"] > 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("undisturbed", "stopped")]
    assert weights[0] == weights[1]


def test_missing_labels_of_a_whole_column_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="organ"):
        train.run(
            train.TrainOptions(
                folder / "atlas.zarr", tmp_path / "run", RunConfig.load(None, ['latent.discrete=["organ"]'])
            )
        )


def test_recover_counts_finds_the_integers():
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (20, 50))
    counts[0] *= 2
    counts[1, :] = np.where(counts[1] == 1, 0, counts[1])
    units = rng.uniform(0.3, 5, (20, 1))
    recovered, worst = recover_counts(sp.csr_matrix(np.log1p(counts * units).astype(np.float32)))
    assert worst < 0.01
    np.testing.assert_array_equal(recovered.toarray()[1:], counts[1:])


def test_a_refused_run_leaves_nothing_behind(folder, tmp_path):
    for wrong, error in (("latent.discrete", UsageError), ("loss.independent_of", ConfigError)):
        with pytest.raises(error, match="organ"):
            train.run(train.TrainOptions(folder / "atlas.zarr", tmp_path / "run", config(f'{wrong}=["organ"]')))
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="no run"):
        train.run(train.TrainOptions(folder / "atlas.zarr", tmp_path / "file", config()))


@pytest.mark.parametrize("bad", ["negative", "empty", "suffix"])
def test_a_bad_query_is_refused(folder, tmp_path, bad):
    query, out, error = anndata.read_h5ad(folder / "query.h5ad"), tmp_path / "mapped.h5ad", DataError
    if bad == "negative":
        query.X.data[5] = -1
    elif bad == "empty":
        query = query[:0].copy()
    else:
        out, error = tmp_path / "mapped.csv", UsageError
    query.write_h5ad(tmp_path / "query.h5ad")
    with pytest.raises(error):
        map_query.run(map_query.MapQueryOptions(tmp_path / "query.h5ad", folder / "reference", out))
    assert not out.exists()


def test_only_coordinates_are_bundled(folder, tmp_path):
    options = export_reference.ExportReferenceOptions(folder / "run", tmp_path / "reference", folder / "atlas.zarr")
    with pytest.raises(DataError, match="export-latents"):
        export_reference.run(options)


def test_info_on_a_reference_says_what_it_is_not(folder):
    from unicoord_atlas.jobs import info

    with pytest.raises(DataError, match="no atlas store"):
        info.run(folder / "reference")


def test_the_summary_shows_the_exported_epoch_and_the_whole_run():
    from rich.console import Console

    from unicoord_atlas.jobs.train_summary import summary_table

    losses = [{"loss": 5.0, "validation_loss": 4.0}, {"loss": 3.5, "validation_loss": 4.25}]
    speeds = [
        {"seconds": 60.0, "cells_per_second": 100.0, "data_wait": 0.02},
        {"seconds": 180.0, "cells_per_second": 200.0, "data_wait": 0.06},
    ]
    entries = [{"epoch": i, "step": 10 * (i + 1), **losses[i], **speeds[i]} for i in range(2)]
    entries[1]["device_bytes"] = 3 * 2**29  # begun on a CPU, it went on on a GPU
    console = Console(width=100)
    with console.capture() as shown:
        console.print(summary_table(entries, 1, {"macro_f1_cell_type": 0.9}))
    words = " ".join(shown.get().split())
    assert "epoch 1 of 2" in words and "20 steps in 4.0 min: 175 cells/s, data wait 5.0%" in words
    assert "at most 1.50 GiB of the GPU's memory" in words
    assert "5.0000" in words and "4.0000" in words and "3.5" not in words and "0.9000" in words


def test_a_reference_of_log_normalized_cells_maps_such_and_no_counts(folder, tmp_path):
    cells, counts = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in ("cells", "query"))
    query = counts.copy()
    for adata in (cells, query):
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        del adata.uns["log1p"]
    reference = fit(cells, ["cell_type"], input="lognorm", settings=["train.epochs=8", "model.hidden=[32,16]"])
    reference.save(tmp_path / "reference")
    query.write_h5ad(tmp_path / "query.h5ad")
    counts.write_h5ad(tmp_path / "counts.h5ad")
    options = map_query.MapQueryOptions(tmp_path / "query.h5ad", tmp_path / "reference", tmp_path / "mapped.h5ad")
    map_query.run(options)
    obs = anndata.read_h5ad(tmp_path / "mapped.h5ad").obs
    assert (obs["cell_type_predicted"].astype(str) == np.array(["B", "T", "NK"])[obs["truth"]]).mean() > 0.9
    assert obs["cell_type_predicted"].tolist() == reference.map(query).obs["cell_type_predicted"].tolist()
    with pytest.raises(DataError, match="no log-normalized values: X holds counts"):
        map_query.run(replace(options, query=tmp_path / "counts.h5ad", out=tmp_path / "other.h5ad"))
    with pytest.raises(DataError, match="no log-normalized values: layers/raw_counts holds counts"):
        query.layers["raw_counts"] = counts.X
        query.write_h5ad(tmp_path / "both.h5ad")
        map_query.run(replace(options, query=tmp_path / "both.h5ad", layer="raw_counts", out=tmp_path / "other.h5ad"))
    with pytest.raises(DataError, match="holds counts, and the reference was learned from log-normalized values"):
        map_query.run(replace(options, query=folder / "atlas.zarr", out=tmp_path / "other.h5ad"))
    with pytest.raises(DataError, match="no counts: X holds log-normalized values"):
        map_query.run(replace(options, reference=folder / "reference", out=tmp_path / "other.h5ad"))
    assert not (tmp_path / "other.h5ad").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (["latent.diffusion=3"], ConfigError, "latent.diffusion = 3 is more than"),
        (['latent.discrete=["time"]', 'latent.continuous=["time"]'], ConfigError, "a name is used twice"),
        (["latent.discrete=[]"], ConfigError, "no dimension at all"),
        (["data.validation_by=donr"], UsageError, "no column 'donr'"),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_one_line(folder, tmp_path, changes, error, words):
    settings = RunConfig.load(None, [*SETTINGS, "latent.continuous=[]", *changes])
    with pytest.raises(error, match=words):
        train.run(train.TrainOptions(folder / "atlas.zarr", tmp_path / "run", settings))
    assert not (tmp_path / "run").exists()


def test_whole_groups_are_held_out(folder):
    store = open_store(folder / "atlas.zarr")
    obs = store.obs().assign(donor=np.arange(store.n_obs) // 40)
    training, validation = preparation.split_rows(
        config("data.validation_by=donor", "data.validation_fraction=0.3"), obs
    )
    donors = [set(obs["donor"].iloc[rows]) for rows in (training, validation)]
    assert donors[0] and donors[1] and not donors[0] & donors[1]
    assert len(training) + len(validation) == store.n_obs


def test_a_run_of_few_steps_exports_what_it_learned(folder, tmp_path):
    """The average of the weights is what is exported, and was once only begun at the tenth step."""
    weights = []
    for number, rate in enumerate(("1e-3", "3e-3")):
        settings = config("train.epochs=1", "train.batch_size=256", f"train.learning_rate={rate}")
        train.run(train.TrainOptions(folder / "atlas.zarr", tmp_path / str(number), settings))
        weights.append((tmp_path / str(number) / "model" / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_cells_of_so_few_counts_that_no_gene_is_left_are_refused_before_training(tmp_path):
    counts = np.eye(40, 25, dtype=np.float32)[np.arange(40) % 25]  # a count a cell
    obs = pd.DataFrame({"cell_type": ["B", "T"] * 20}, index=[f"c{i}" for i in range(40)])
    adata = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(25)]))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(tmp_path / "cells.h5ad")], tmp_path / "atlas.zarr", labels=["cell_type"]))
    options = train.TrainOptions(tmp_path / "atlas.zarr", tmp_path / "run", config("latent.continuous=[]"))
    with pytest.raises(DataError, match="none is left for size factors"):
        train.run(options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_what_was_done_already_is_said_as_json_where_that_is_asked_for(monkeypatch, capsys, tmp_path, words):
    def job() -> None:
        raise AlreadyDone(tmp_path / "out.zarr")

    monkeypatch.setattr(sys, "argv", ["unicoord-atlas", "generate", *words])
    assert run_command(job) == 0
    said = capsys.readouterr()
    assert "is finished already" in said.err
    assert [json.loads(line) for line in said.out.splitlines()] == (
        [{"out": str(tmp_path / "out.zarr"), "already_done": True}] if words else []
    )


def test_a_label_path_is_trained_and_read_back(tmp_path):
    counts, types = counts_of_types(300, 40)
    columns = {"cell_type": np.array(["B", "T", "NK"])[types], "batch": np.where(np.arange(300) % 2, "a", "b")}
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(300)])
    cells = anndata.AnnData(sp.csr_matrix(counts), obs, pd.DataFrame(index=[f"GENE{i}" for i in range(40)]))
    settings = ["train.epochs=12", "train.learning_rate=2e-3", "model.hidden=[32,16]", "model.label_path=[64,32]"]
    reference = fit(cells, ["cell_type", "batch"], settings=settings)
    assert reference.model.spec.path_labels == (0,)  # a batch is technical
    reference.save(tmp_path / "reference")
    found = ReferenceModel.load(tmp_path / "reference").map(cells)
    assert (found.obs["cell_type_predicted"].astype(str) == cells.obs["cell_type"]).mean() > 0.95
    np.testing.assert_array_equal(found.obsm["X_unicoord"], reference.map(cells).obsm["X_unicoord"])
