"""Several processes train as one does; they stop together; a killed, stopped or starved run loses nothing."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import BAD_STEP, CASES, CELLS, FixedBatches
from two_ranks import train as train_case

from unicoord_atlas.config import TrainConfig
from unicoord_atlas.errors import ConfigError, DataError, UnicoordError, UsageError
from unicoord_atlas.jobs.launch import LaunchOptions, exit_code
from unicoord_atlas.training import loop
from unicoord_atlas.training.checkpoint import (
    Parts,
    Progress,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from unicoord_atlas.training.metrics import (
    FirstNotFinite,
    append_metrics,
    drop_metrics_after,
    read_metrics,
    require_finite_weights,
)
from unicoord_atlas.training.optimizer import part_size
from unicoord_atlas.training.ranks import make_accelerator
from unicoord_atlas.training.run import EpochClock

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
COMMAND = [sys.executable, "-m", "unicoord_atlas.jobs.cli"]
LAUNCH = [*COMMAND, "launch", "--processes", "2"]
SETTINGS = [
    'latent.discrete=["cell_type"]',
    "model.hidden=[32,16]",
    "train.epochs=4000",
    "train.batch_size=64",
    "train.precision=fp32",
    "train.checkpoint_every_steps=5",
    "train.trackers=[]",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    """The cases of `two_ranks`, trained by one process and by two."""
    program, out = str(Path(__file__).with_name("two_ranks.py")), tmp_path_factory.mktemp("ranks")
    commands = {1: [program], 2: [*TORCHRUN, "--nproc-per-node", "2", program]}
    for ranks, command in commands.items():
        given = {"env": ENVIRONMENT, "timeout": 120, "capture_output": True, "text": True}
        ended = subprocess.run([sys.executable, *command, str(out / str(ranks)), *CASES], **given)
        assert not ended.returncode, ended.stderr[-5000:]
    return {ranks: out / str(ranks) for ranks in commands}


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-00000020" / "model.safetensors")


def _difference(one: Path, other: Path) -> float:
    first, second = _weights(one), _weights(other)
    return max(
        (first[name].double() - second[name].double()).abs().max().item() for name in first if first[name].numel()
    )


def test_fixed_batches_deal_each_cell_once():
    dealt = [batch.rows_n for rank in range(2) for batch in FixedBatches(rank, 2, 2, torch.float64)]
    assert sorted(torch.cat(dealt).tolist()) == list(range(20 * CELLS))


@pytest.mark.parametrize("case", ["double", "double_parts", "double_each_cell_parts"])
def test_two_processes_learn_what_one_does(runs, case):
    """20 steps of Adam in float64, with dropout, thinning and sampling."""
    assert _difference(runs[1] / case, runs[2] / case) < 1e-8


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_in_parts_is_the_whole_batch(runs, ranks):
    """But for losses that compare cells of a batch, which compare those of a part: these cases have none."""
    whole, parts = (runs[ranks] / case for case in ("double_each_cell", "double_each_cell_parts"))
    assert _difference(whole, parts) < 1e-8
    assert _difference(whole, runs[ranks] / "double") > 1e-6  # which has one


def test_losses_and_accuracies_are_those_of_all_cells(runs):
    """In float64 to the last digits, in float32 to 1e-4; the validation batches of the ranks are not equally full."""
    for case, close in (("double", 1e-12), ("single", 1e-4)):
        one, two = (read_metrics(runs[ranks] / case / "metrics.jsonl")[0] for ranks in (1, 2))
        names = [name for name in one if name not in ("seconds", "cells_per_second", "data_wait")]
        assert {"loss", "validation_loss", "validation_accuracy_cell_type"} <= set(names)
        assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=close)


@pytest.mark.parametrize(
    "setting", [{"gradient_compression": "bf16"}, {"trackers": ("abacus",)}, {"trackers": ("tensorboard", "comet_ml")}]
)
def test_what_cannot_be_is_refused(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"train.{next(iter(setting))} = "):
        make_accelerator(TrainConfig(**setting), torch.device("cpu"), tmp_path)


def test_a_loss_that_is_not_finite_stops_all_ranks(runs):
    """One rank's batch is spoiled; both name step and term, and the last good checkpoint stays the latest."""
    for rank in range(2):
        message = (runs[2] / "nan" / f"error-{rank}.txt").read_text()
        assert f"step {BAD_STEP}" in message
        assert "'reconstruction' is nan" in message
    latest = json.loads((runs[2] / "nan" / "checkpoints" / "latest.json").read_text())
    assert latest == {"checkpoint": "step-00000006"}


def test_the_first_step_at_which_a_term_is_not_finite_is_told_by_later_looks():
    first = FirstNotFinite()
    first.require_none()
    for step, (kl, reconstruction) in enumerate([(1, 2), (1, torch.nan), (torch.inf, torch.nan), (1, 2)], 7):
        if step == 8:
            first.require_none()
        first.add({"kl": torch.tensor(float(kl)), "reconstruction": torch.tensor(float(reconstruction))}, step)
    with pytest.raises(UnicoordError, match="step 8: loss term 'reconstruction' was not finite"):
        first.require_none()


@pytest.mark.filterwarnings("ignore")  # as where the cases are trained by processes of their own
def test_a_run_that_rarely_looks_at_its_losses_names_step_and_term(tmp_path, monkeypatch):
    """As on one GPU: the next checkpoint is due before the next look."""
    monkeypatch.setattr(loop, "_looks", lambda run, step: step % 50 == 0)
    train_case("nan", tmp_path / "run")
    message = (tmp_path / "run" / "error-0.txt").read_text()
    assert f"step {BAD_STEP}: loss term 'reconstruction' was not finite" in message
    assert _latest(tmp_path / "run") == 6


def test_weights_that_are_not_finite_are_not_saved():
    layer = torch.nn.Linear(3, 2)
    require_finite_weights(layer, 7)
    layer.bias.data[1] = torch.inf
    with pytest.raises(UnicoordError, match=r"step 7.*'bias'"):
        require_finite_weights(layer, 7)


def test_speed_is_that_of_all_processes():
    """On the bar as in metrics.jsonl: ranks take as many cells each."""
    clock = EpochClock(3)
    clock.cells = 100
    speed = clock.speed()
    assert speed["cells_per_second"] * speed["seconds"] == pytest.approx(300)


def test_a_batch_is_cut_into_equal_parts():
    assert [part_size(256, ranks, parts) for ranks, parts in ((1, 1), (2, 1), (2, 4), (3, 1))] == [256, 128, 32, 85]
    with pytest.raises(ConfigError, match=r"train.batch_size = 4 .* 6 parts"):
        part_size(4, 2, 3)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([1], 1),
        ([-9, 78], 78),
        ([1, 65], 65),
        ([64], 64),
        ([143, -15], 143),
        ([-9, 1], 75),
        ([75, 75], 75),
        ([130], 130),
    ],
)
def test_the_exit_code_is_that_of_the_cause(codes, expected):
    assert exit_code(codes) == expected


def test_launch_asks_for_what_it_needs():
    for options in ({"command": []}, {"command": ["launch"]}, {"command": ["train"], "nnodes": 2}):
        with pytest.raises(UsageError, match="launch"):
            LaunchOptions(**options)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory) -> Path:
    from cells import write_cells

    from unicoord_atlas.jobs import ingest

    folder = tmp_path_factory.mktemp("atlas")
    write_cells(folder / "cells.h5ad", 1)
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    return folder / "atlas.zarr"


def _train(atlas: Path, out: Path, *more: str) -> list[str]:
    settings = [word for setting in [*SETTINGS, *more] for word in ("--set", setting)]
    return ["train", str(atlas), "--out", str(out), "--no-report", *settings]


def _started(command: list[str], out: Path) -> subprocess.Popen:
    """The command, once it has trained an epoch."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


def _latest(out: Path) -> int:
    return int(json.loads((out / "checkpoints" / "latest.json").read_text())["checkpoint"].removeprefix("step-"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_of_one_process_is_saved(atlas, tmp_path, number, code):
    out = tmp_path / "run"
    with _started([*COMMAND, *_train(atlas, out)], out) as process:
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        said = process.stderr.read()
    assert f"after step {_latest(out)}; the same command goes on" in said


def test_ranks_stop_together_and_go_on_in_another_number(atlas, tmp_path):
    """SIGTERM to the launcher: saved, 143.  One rank killed: 75.  Then one process goes on, to the end."""
    out = tmp_path / "run"
    with _started([*LAUNCH, *_train(atlas, out)], out) as process:
        process.terminate()
        assert process.wait(timeout=60) == 143
        assert "the same command goes on" in process.stderr.read()
    stopped_at = _latest(out)
    with subprocess.Popen(
        [*LAUNCH, *_train(atlas, out)], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        while _latest(out) < stopped_at + 10:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.kill(_worker(process.pid), signal.SIGKILL)
        assert process.wait(timeout=60) == 75
        assert f"going on after step {stopped_at} " in process.stderr.read()
    steps = [entry["step"] for entry in read_metrics(out / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    with subprocess.Popen(
        [*COMMAND, *_train(atlas, out)], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        before = _latest(out)
        while _latest(out) < before + 10:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=60) == 143


def test_two_ranks_go_on_to_the_bit_in_the_middle_of_an_epoch(atlas, tmp_path):
    """What a kill after step 10 leaves ends as the undisturbed run: all ranks began with the same model and masks."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = [
        "train.epochs=1",
        "model.encoder_min_cells=200",
    ]  # some genes reach it in a part of the cells
    launched = {"check": True, "env": ENVIRONMENT, "timeout": 60, "capture_output": True}
    subprocess.run([*LAUNCH, *_train(atlas, whole, *settings)], **launched)
    last = _latest(whole)
    shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("model", f"step-{last:08d}", "*.jsonl"))
    (killed / "checkpoints" / "latest.json").write_text(json.dumps({"checkpoint": "step-00000010"}))
    subprocess.run([*LAUNCH, *_train(atlas, killed, *settings)], **launched)
    assert last == _latest(killed) > 10
    one, other = (load_file(run / "checkpoints" / f"step-{last:08d}" / "model.safetensors") for run in (whole, killed))
    assert 0 < one["heard_g"].sum() < len(one["heard_g"])
    assert all(torch.equal(one[name], other[name]) for name in one)


def _worker(launcher: int) -> int:
    """The last process that a launcher started."""
    import psutil

    return max(child.pid for child in psutil.Process(launcher).children() if "cli" in " ".join(child.cmdline()))


def test_launch_keeps_the_code_of_a_bad_setting(atlas, tmp_path):
    command = [*LAUNCH, *_train(atlas, tmp_path / "run", "train.batch_size=1")]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert ended.returncode == ConfigError.exit_code, ended.stderr
    assert "train.batch_size = 1 cannot be cut into 2 parts" in ended.stderr


def _parts(seed: int) -> Parts:
    torch.manual_seed(seed)
    model = torch.nn.Linear(300, 200)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(300)).sum().backward()
    optimizer.step()
    return Parts(model, optimizer)


def test_best_weights_are_those_that_the_latest_checkpoint_knows(tmp_path):
    """A kill after a better epoch goes on from the checkpoint before it, which must find its own."""
    parts = {epoch: _parts(epoch) for epoch in (1, 2, 6)}

    def kept() -> list[int]:
        return sorted(int(path.name[5:11]) for path in tmp_path.glob("best-*"))

    for epoch in (1, 2):
        save_best(tmp_path, parts[epoch].model, epoch)
        assert kept() == [epoch]
    save_checkpoint(tmp_path, parts[2], Progress(step=20, epoch=2, best_epoch=2))
    save_best(tmp_path, parts[6].model, 6)
    assert kept() == [2, 6]
    loaded = _parts(0).model
    load_best(tmp_path, loaded, torch.device("cpu"))
    assert torch.equal(loaded.weight, parts[2].model.weight)
    save_checkpoint(tmp_path, parts[6], Progress(step=60, epoch=6, best_epoch=6))
    assert kept() == [6]
    load_best(tmp_path, loaded, torch.device("cpu"))
    assert torch.equal(loaded.weight, parts[6].model.weight)


@pytest.mark.parametrize("room", [1_000, 300_000])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, room):
    """Files may have `room` bytes: too few for the weights, or for Adam's moments only."""
    saved = _parts(0)
    save_checkpoint(tmp_path, saved, Progress(step=5))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(DataError, match=r"step-00000006: cannot be saved .* the checkpoint before it stays"):
            save_checkpoint(tmp_path, _parts(1), Progress(step=6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "step-00000005"]
    loaded = _parts(2)
    assert load_checkpoint(tmp_path, loaded, torch.device("cpu")).step == 5
    for ours, theirs in zip(loaded.model.parameters(), saved.model.parameters()):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_that_nothing_points_to_is_written_anew(tmp_path):
    """A run that was killed before it pointed to it may have gone on elsewhere, or the file be damaged."""
    save_checkpoint(tmp_path, _parts(0), Progress(step=5))
    (tmp_path / "latest.json").unlink()
    wanted = _parts(1)
    save_checkpoint(tmp_path, wanted, Progress(step=5))
    loaded = _parts(2)
    load_checkpoint(tmp_path, loaded, torch.device("cpu"))
    for ours, theirs in zip(loaded.model.parameters(), wanted.model.parameters()):
        assert torch.equal(ours, theirs)


def test_an_epoch_whose_line_is_newer_than_its_checkpoint_has_one_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for epoch in range(3):
        append_metrics(file, {"epoch": epoch, "step": 10 * (epoch + 1)})
    drop_metrics_after(file, 30, 2)  # the checkpoint of step 30 was saved before the third epoch ended
    assert [entry["epoch"] for entry in read_metrics(file)] == [0, 1]
