"""Stages of full_heca: each is a process, measured, and not run again once it is done.  Standard library only.

What was measured lies in FOLDER/figures/NAME.json: the command, and of each attempt the figures, when it began and the
revision of the code.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from process_tree import measured

HERE = Path(__file__).parent


def run_stage(folder: Path, name: str, command: list[str]) -> dict[str, Any]:
    """Figures of a stage: of the run that finished it, and what attempts that were cut short had taken before.

    Raises
    ------
    SystemExit
        If the figures that are there are of another command, or the command fails.
    """
    kept = folder / "figures" / f"{name}.json"
    kept.parent.mkdir(exist_ok=True)
    record = json.loads(kept.read_text()) if kept.exists() else {"attempts": []}
    attempts: list[dict[str, Any]] = record["attempts"]
    if attempts and not same_command(record["command"], command):
        raise SystemExit(
            f"{kept} is of another command: {' '.join(record['command'][1:])}; asked for: {' '.join(command[1:])}; "
            "choose another --work"
        )
    if attempts and attempts[-1].get("status") == 0:
        return summed(attempts)
    log, here = folder / "figures" / f"{name}.log", {"begun": time.time(), "revision": revision()}

    def tell(facts: dict[str, Any]) -> None:
        kept.write_text(json.dumps({"command": command, "attempts": [*attempts, here | facts]}, indent=1) + "\n")

    facts = measured(command, log, tell)
    tell(facts)
    if facts["status"]:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise SystemExit(f"{' '.join(command)}\nended with {facts['status']}; the end of {log}:\n{tail}")
    return summed([*attempts, here | facts])


def same_command(one: list[str], other: list[str]) -> bool:
    """Whether the words are the same, whatever Python runs them, from whichever checkout, however paths are written."""
    return [_plain(word) for word in one[1:]] == [_plain(word) for word in other[1:]]


def _plain(word: str) -> str:
    return Path(word).name if word.endswith(".py") else os.path.abspath(word)


def revision() -> str:
    """Short git revision of the code; empty where there is none."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def summed(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """Maxima of memory, sums of all else; when each attempt began, as far as is known, and of which revision it was."""
    first: dict[str, Any] = {"attempts": len(attempts)}
    for name in ("wall_s", "cpu_s", "read", "written", "disk_read", "disk_written"):
        first[name] = sum(each.get(name, 0) for each in attempts)
    for name in ("peak_rss", "peak_anonymous", "processes"):
        first[name] = max(each.get(name, 0) for each in attempts)
    first["begun"] = [each["begun"] for each in attempts if "begun" in each]
    first["revisions"] = sorted({each.get("revision") or "unknown" for each in attempts})
    return first


def when_and_what(stages: list[dict[str, Any]]) -> dict[str, str]:
    """First and last day on which attempts of these stages began, and the revisions that they were of."""
    begun = [moment for stage in stages for moment in stage["begun"]] or [time.time()]
    days = dict.fromkeys(time.strftime("%Y-%m-%d", time.localtime(moment)) for moment in (min(begun), max(begun)))
    return {
        "date": " to ".join(days),
        "revision": ", ".join(sorted({name for stage in stages for name in stage["revisions"]})),
    }
