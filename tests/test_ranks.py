"""Several processes train as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import CASES, CELLS, FixedBatches

from unicoord_atlas.config import TrainConfig
from unicoord_atlas.errors import ConfigError, UnicoordError, UsageError
from unicoord_atlas.jobs.launch import LaunchOptions, exit_code
from unicoord_atlas.training.metrics import read_metrics, require_finite_weights
from unicoord_atlas.training.optimizer import part_size
from unicoord_atlas.training.ranks import make_accelerator

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    """The cases of `two_ranks`, trained by one process and by two."""
    program, out = str(Path(__file__).with_name("two_ranks.py")), tmp_path_factory.mktemp("ranks")
    commands = {1: [program], 2: [*TORCHRUN, "--nproc-per-node", "2", program]}
    for ranks, command in commands.items():
        given = {"check": True, "env": ENVIRONMENT, "timeout": 120, "capture_output": True}
        subprocess.run([sys.executable, *command, str(out / str(ranks)), *CASES], **given)
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


@pytest.mark.parametrize("case", ["double", "double_parts"])
def test_two_processes_learn_what_one_does(runs, case):
    """20 steps of Adam in float64, with dropout, thinning and sampling."""
    assert _difference(runs[1] / case, runs[2] / case) < 1e-8


def test_a_batch_in_parts_is_the_whole_batch(runs):
    """But for the clipping of the case in parts, which shows in the weights."""
    whole, parts = (read_metrics(runs[2] / case / "metrics.jsonl")[0] for case in ("double", "double_parts"))
    assert _difference(runs[2] / "double", runs[2] / "double_parts") > 1e-4
    assert parts["classification"] == pytest.approx(whole["classification"], rel=0.3)


def test_losses_and_accuracies_are_those_of_all_cells(runs):
    """In float64 to the last digits, in float32 to 1e-4; the validation batches of the ranks are not equally full."""
    for case, close in (("double", 1e-12), ("single", 1e-4)):
        one, two = (read_metrics(runs[ranks] / case / "metrics.jsonl")[0] for ranks in (1, 2))
        names = [name for name in one if name not in ("cells_per_second", "data_wait")]
        assert {"loss", "validation_loss", "validation_accuracy_cell_type"} <= set(names)
        assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=close)


@pytest.mark.parametrize("setting", [{"gradient_compression": "bf16"}, {"trackers": ("abacus",)}])
def test_what_cannot_be_is_refused(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"train.{next(iter(setting))} = "):
        make_accelerator(TrainConfig(**setting), torch.device("cpu"), tmp_path)


def test_weights_that_are_not_finite_are_not_saved():
    layer = torch.nn.Linear(3, 2)
    require_finite_weights(layer, 7)
    layer.bias.data[1] = torch.inf
    with pytest.raises(UnicoordError, match=r"step 7.*'bias'"):
        require_finite_weights(layer, 7)


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
