"""benchmarks/chaos.py: what it does itself, and a short run of it."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_disturbed_stages_end_as_if_nothing_had_happened():
    program = [sys.executable, BENCHMARKS / "chaos.py", "--moments", "3"]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "bar disturbed_runs_not_equal 0 <= 0 ok" in ended.stdout
