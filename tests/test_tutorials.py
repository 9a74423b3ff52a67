"""The tutorials do what they say: their blocks of shell and Python are run, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
SHORT = ["annotate"]
HEAVY = ["heca", "time", "train"]
TO_LOOK_AT = ["browse"]  # its server is tested in test_browse
SHELL = ["bash", "-euo", "pipefail", "-c"]
PYTHON = [sys.executable, "-c"]


def blocks(page: str) -> list[tuple[list[str], str]]:
    """What to run, and what with, in the order of the page."""
    found = re.findall(r"^```(bash|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [({"bash": SHELL, "python": PYTHON}[kind], text) for kind, text in found]


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)])
def test_a_tutorial_runs_from_its_first_block_to_its_last(name, tmp_path):
    command = tmp_path / "bin" / "unicoord-atlas"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m unicoord_atlas.jobs.cli "$@"\n')
    command.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    places = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for program, text in blocks((TUTORIALS / f"{name}.md").read_text()):
        done = subprocess.run(
            [*program, text], cwd=folder, env={**os.environ, **places}, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{text}\n{done.stderr[-2000:]}"


def test_every_tutorial_is_run():
    assert {path.stem for path in TUTORIALS.glob("*.md")} == {*SHORT, *HEAVY, *TO_LOOK_AT}
