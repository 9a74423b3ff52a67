"""A disk of its own for chaos to fill: a tmpfs, which root may mount, or anybody in a namespace of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOMY = 2**30
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def enter_namespace() -> None:
    """Begin the program anew in a namespace where it may mount, unless it is root."""
    if os.geteuid() != 0:
        if not shutil.which(NAMESPACE[0]):
            raise SystemExit("a full disk is mounted by root, or with unshare (util-linux)")
        os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, *sys.argv])


@contextmanager
def own_disk(folder: Path) -> Iterator[None]:
    """A folder is a disk of its own for a while."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def leave(folder: Path, room: int) -> None:
    """So many bytes are left, to the next page of memory."""
    _resize(folder, shutil.disk_usage(folder).used + room)


def make_room(folder: Path) -> None:
    """There is room again."""
    _resize(folder, ROOMY)


def used_bytes(folder: Path) -> int:
    """Bytes of all files, each to the next page of memory, as tmpfs counts."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(-(-path.stat().st_size // page) * page for path in folder.rglob("*") if path.is_file())


def _resize(folder: Path, size: int) -> None:
    # with its source named: mount would otherwise repeat the owner it finds, who has no name in a namespace
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"remount,size={size}", "tmpfs", folder], check=True)
