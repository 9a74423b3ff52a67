"""doctor: what this machine has."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unicoord_atlas.cores import usable_cores
from unicoord_atlas.training.precision import bf16_speedup

from .console_text import plain_console

if TYPE_CHECKING:
    from rich.console import Console

_PACKAGES = ("unicoord-atlas", "torch", "zarr", "anndata", "accelerate", "tiledbsoma", "dask", "numpy")


def run(console: Console | None = None) -> dict[str, Any]:
    """Print and return versions, devices, bf16, memory and disk."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu_bf16_speedup": round(bf16_speedup(), 2),
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
    }
    console = console or plain_console()
    for name, value in facts.items():
        text = ", ".join(f"{key} {version}" for key, version in value.items()) if isinstance(value, dict) else value
        console.print(f"{name}: {text}", highlight=False)
    return facts


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
