"""benchmarks/chaos.py: what it does itself, and a short run of it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_each_stage_that_reads_files_meets_a_damaged_one(monkeypatch):
    """Its command names what the file lies in, or is."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    chaos_stages = importlib.import_module("chaos_stages")
    first, *others = chaos_stages.stages()
    assert first.name == "simulate" and not first.damaged
    for stage in others:
        assert stage.damaged, stage.name
        for file in stage.damaged:
            assert any(file.path.startswith(word) for word in stage.words), file.path
            assert file.ways and set(file.ways) <= {chaos_stages.CUT_OFF, chaos_stages.FLIPPED}
            assert file.ways == (chaos_stages.CUT_OFF,) or not file.path.endswith(".h5ad")


@pytest.mark.slow
def test_disturbed_stages_end_as_if_nothing_had_happened():
    program = [sys.executable, BENCHMARKS / "chaos.py", "--moments", "3"]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "bar disturbed_runs_not_equal 0 <= 0 ok" in ended.stdout
