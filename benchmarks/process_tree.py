"""What a command and all its children cost: time, memory, bytes.  Standard library only: see `measured`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EVERY_S = 0.05
FOUND_EVERY_LOOKS = 10
"""Looks after which new processes are looked for: reading all of /proc takes a twentieth of a core at every look."""
TOLD_EVERY_S = 5.0
_IO = {"rchar": "read", "wchar": "written", "read_bytes": "disk_read", "write_bytes": "disk_written"}
_KIB = 1024


def measured(command: Sequence[str], log: Path, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run a command to its end; `tell` is given the figures so far every few seconds.

    Memory is the largest sum over the processes of the tree, looked at twenty times a second (new processes twice), and
    at least the kernel's own maximum of one process.  That maximum begins with what the parent had when it forked, so
    whoever calls this must be small: no NumPy.  `read` and `written` are what went through system calls, `disk_*` what
    reached the disk.
    """
    before, begun, told = time.perf_counter(), time.time(), 0.0
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    tree = Tree(process.pid)
    try:
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            tree.look()
            if time.perf_counter() - told > TOLD_EVERY_S:
                told = time.perf_counter()
                tell({"wall_s": told - before, **tree.facts()})
            time.sleep(EVERY_S)
        tree.look_at_bytes()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    tree.raise_to("peak_rss", usage.ru_maxrss * _KIB)
    facts = {"wall_s": time.perf_counter() - before, **tree.facts(), "cpu_s": usage.ru_utime + usage.ru_stime}
    return {"status": process.returncode, "begun": begun, **facts}


def own_peak() -> int:
    """Bytes that this process had in memory at most; getrusage's maximum would begin with what its parent had."""
    return _fields(os.getpid(), "status")["VmHWM"] * _KIB


class Tree:
    """The processes below one, itself included, as /proc shows them."""

    def __init__(self, root: int) -> None:
        self._root, self._members, self._looks = root, [root], 0
        self._peak = {"peak_rss": 0, "peak_anonymous": 0, "processes": 0}
        self._bytes = dict.fromkeys(_IO.values(), 0)

    def look(self) -> None:
        """Take what the processes have now into the maxima."""
        if self._looks % FOUND_EVERY_LOOKS == 0:
            self._members = _members(self._root)
        self._looks += 1
        statuses = [status for pid in self._members if (status := _fields(pid, "status"))]
        rss = sum(status.get("VmRSS", 0) for status in statuses) * _KIB
        anonymous = sum(status.get("RssAnon", 0) + status.get("RssShmem", 0) for status in statuses) * _KIB
        self.raise_to("peak_rss", max([rss, *(status.get("VmHWM", 0) * _KIB for status in statuses)]))
        self.raise_to("peak_anonymous", anonymous)
        self.raise_to("processes", len(statuses))
        self.look_at_bytes()

    def look_at_bytes(self) -> None:
        """The first process's counters, to which the kernel adds those of each child that it waited for."""
        counters = _fields(self._root, "io")
        self._bytes.update({name: counters[key] for key, name in _IO.items() if key in counters})

    def raise_to(self, name: str, value: int) -> None:
        """A maximum is at least this."""
        self._peak[name] = max(self._peak[name], value)

    def facts(self) -> dict[str, Any]:
        """Maxima and bytes."""
        return {**self._peak, **self._bytes}


def _members(root: int) -> list[int]:
    """Living processes below `root`, itself first."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(entry.path, "stat").read_text()
                children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _fields(pid: int, name: str) -> dict[str, int]:
    """Numbers of a file of /proc/PID; none if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key: int(words[0]) for key, _, rest in pairs if (words := rest.split()) and words[0].isdigit()}
