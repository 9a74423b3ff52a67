"""The cores that a process may run on."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may use, at least 1: those that `taskset` or a container leaves it, not all there are.

    macOS and Windows know of no such limit: there it is all cores.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
