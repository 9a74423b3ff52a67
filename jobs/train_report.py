"""The page that `train` leaves beside a finished model.

It is made by another process: whatever happens there, out of memory included, the model is finished and stays so.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from shlex import join
from typing import TYPE_CHECKING

from unicoord_atlas.loaders.object_address import shown

if TYPE_CHECKING:
    from pathlib import Path

REPORT = "report.html"
_NEEDS = {"matplotlib": "matplotlib", "PIL": "pillow", "umap": "umap-learn"}


def write_report(run: Path, atlas: Path) -> Path | None:
    """Write RUN/report.html; None, and one line on stderr with the cause and the way out, if that cannot be done.

    Parameters
    ----------
    run
        A finished run directory.
    atlas
        What it was trained on, for its graph and tables.
    """
    page = run / REPORT
    words = ["report", str(run), "--atlas", shown(atlas), "--out", str(page)]
    again = f"to make it: {join(['unicoord-atlas', *words])}"
    missing = [name for module, name in _NEEDS.items() if find_spec(module) is None]
    if missing:
        _say(f"no report: {', '.join(missing)} is not installed; pip install 'unicoord-atlas[report]', then {again}")
        return None
    cause = _cause_of_failure(words)
    if cause:
        _say(f"no report, but the training is finished: {cause}; {again}")
        return None
    return page


def _cause_of_failure(words: list[str]) -> str:
    """Run the command: the last line that it said if it failed, else nothing."""
    command = [sys.executable, "-m", "unicoord_atlas.jobs.cli", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"no process could be started ({error})"
    if not done.returncode:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix("unicoord-atlas: ") if lines else f"it ended with {done.returncode}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
