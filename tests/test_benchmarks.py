"""What benchmarks keep and how they measure: figures of stages, epochs by the clock, memory of a process."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def program(monkeypatch):
    """A module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_a_stage_that_is_done_is_not_run_again(program, tmp_path):
    run_stage = program("stage_record").run_stage
    counted = tmp_path / "counted"
    command = [sys.executable, "-c", f"open({str(counted)!r}, 'a').write('.')", str(tmp_path / "out")]
    first = run_stage(tmp_path, "ingest", command)
    again = run_stage(tmp_path, "ingest", ["/elsewhere/bin/python", *command[1:-1], f"{tmp_path}/./out"])
    assert again == first
    assert counted.read_text() == "."
    record = json.loads((tmp_path / "figures" / "ingest.json").read_text())
    assert [set(attempt) >= {"begun", "revision", "wall_s"} for attempt in record["attempts"]] == [True]


def test_figures_of_another_command_are_refused(program, tmp_path):
    run_stage = program("stage_record").run_stage
    run_stage(tmp_path, "ingest", [sys.executable, "-c", "pass"])
    with pytest.raises(SystemExit, match=r"ingest\.json is of another command.* choose another --work"):
        run_stage(tmp_path, "ingest", [sys.executable, "-c", "pass", "--label", "organ"])


def test_figures_without_revision_are_read(program, tmp_path):
    """As they were written before it was kept."""
    stage_record = program("stage_record")
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    old = {"status": 0, "begun": 1_790_000_000.0, "wall_s": 2.0, "peak_rss": 5}
    (tmp_path / "figures").mkdir()
    record = {"command": command, "attempts": [{"wall_s": 1.0, "peak_rss": 7}, old]}
    (tmp_path / "figures" / "train.json").write_text(json.dumps(record))
    found = stage_record.run_stage(tmp_path, "train", command)
    assert (found["wall_s"], found["peak_rss"], found["attempts"]) == (3.0, 7, 2)
    new = {"begun": [1_790_300_000.0], "revisions": ["abc1234"]}
    facts = stage_record.when_and_what([found, new])
    first, last = facts["date"].split(" to ")
    assert first < last
    assert facts["revision"] == "abc1234, unknown"


def test_a_timed_epoch_ends_with_a_whole_fetch(program):
    time_epochs = program("loader_measure").time_epochs
    passes = []

    def batches():
        passes.append(None)
        yield from np.arange(200).reshape(20, 10)

    epochs, seen = time_epochs(batches, 1, 0.0, fetch_cells=40)
    assert (epochs[0]["cells"], len(epochs), len(seen)) == (40, 1, 4)
    assert len(passes) == 2  # the first does not count
    epochs, _ = time_epochs(batches, 2)
    assert ([epoch["cells"] for epoch in epochs], len(passes)) == ([200, 200], 4)


def test_the_peak_of_a_process_is_its_own(program):
    """Its parent holds 300 MB more when it starts it."""
    held = np.ones(300_000_000 // 8)
    code = f"import sys; sys.path.append({str(BENCHMARKS)!r}); import process_tree; print(process_tree.own_peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 100_000_000 < program("process_tree").own_peak()
    assert held.all()


def test_held_out_cells_are_in_one_of_two_files(program, tmp_path):
    names = [f"c{i}" for i in range(50)]
    cells = anndata.AnnData(np.arange(100, dtype=np.float32).reshape(50, 2))
    cells.obs_names = names
    (tmp_path / "cells").mkdir()
    cells.write_h5ad(tmp_path / "cells" / "cells.h5ad")
    (tmp_path / "work").mkdir()
    files = program("held_out_files").split_file(tmp_path, "cells", tmp_path / "work", 0)
    train, test = (list(anndata.read_h5ad(file).obs_names) for file in files)
    assert sorted(train + test) == sorted(names)
    assert 3 <= len(test) <= 20
