"""How many cores are used: those that the process may run on, on every system."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.launcher import api

from unicoord_atlas.cores import usable_cores
from unicoord_atlas.jobs import launch

ROOT = Path(__file__).resolve().parents[1]


def test_cores_are_those_that_the_process_may_run_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5}, raising=False)
    assert usable_cores() == 2


def test_where_a_system_knows_of_no_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS
    assert usable_cores() == os.cpu_count()


def test_cores_are_counted_in_one_place():
    counting = {
        path.relative_to(ROOT).as_posix()
        for folder in ("unicoord_atlas", "loaders", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if any(word in path.read_text() for word in ("sched_getaffinity", "cpu_count"))
    }
    assert counting == {"unicoord_atlas/cores.py"}


@pytest.mark.parametrize(("processes", "threads"), [(1, "5"), (2, "2"), (8, "1")])
def test_launch_shares_the_cores_that_it_may_use(monkeypatch, processes, threads):
    told = []

    def elastic_launch(config, entrypoint):
        return lambda *words: told.append((config.max_nodes, os.environ["OMP_NUM_THREADS"], words[-1]))

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr(api, "elastic_launch", elastic_launch)  # torchrun's
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is set back
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert launch.run(launch.LaunchOptions(["doctor"], processes)) == 0
    assert told == [(1, threads, "doctor")]


def test_the_command_line_starts_where_there_are_no_limits_on_open_files():
    """Windows has no module `resource`."""
    program = "import sys; sys.modules['resource'] = None; import unicoord_atlas.jobs.cli"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
