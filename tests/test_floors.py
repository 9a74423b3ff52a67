"""The three floors: imports point down, and each import is spelled in one way."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"unicoord_atlas": "unicoord_atlas", "loaders": "unicoord_atlas.loaders", "jobs": "unicoord_atlas.jobs"}
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))  # rglob follows no links


def package_of(folder: Path) -> str:
    house, *inner = folder.relative_to(ROOT).parts
    return ".".join([FOLDERS[house], *inner])


def package_named(dotted: str) -> str:
    """The longest leading part of a dotted name that is a folder on disk."""
    parts = dotted.split(".")
    while not ROOT.joinpath(*parts).is_dir():
        parts.pop()
    return ".".join(parts)


def floor(package: str) -> int:
    return {"loaders": 2, "jobs": 3}.get([*package.split("."), ""][1], 1)


def imports(source: str):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names)


def breaches(source: str, folder: Path):
    home = package_of(folder)
    for level, dotted in imports(source):
        first = dotted.split(".")[0]
        if level > 1:
            yield f"from {'.' * level}{dotted}: name the package from unicoord_atlas on"
        elif level == 1 and (folder / first).is_dir():
            yield f"from .{dotted}: across folders name the package from unicoord_atlas on"
        elif level == 0 and first in ("loaders", "jobs"):
            yield f"import {dotted}: say unicoord_atlas.{dotted}"
        elif level == 0 and first == "unicoord_atlas":
            if package_named(dotted) == home:
                yield f"import {dotted}: inside a folder say from .sibling import x"
            if floor(package_named(dotted)) > floor(home):
                yield f"import {dotted}: {home} lies on a floor below"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_are_spelled_one_way(path):
    found = list(breaches(path.read_text(), path.parent))
    if path == ROOT / "unicoord_atlas" / "__init__.py":  # the public face names, lazily, what lies on every floor
        found = [breach for breach in found if not breach.startswith("import unicoord_atlas.jobs.fit.fit")]
    assert found == []


@pytest.mark.parametrize(
    ("folder", "line", "allowed"),
    [
        ("jobs", "from unicoord_atlas.loaders.store import open_store", True),
        ("loaders", "from unicoord_atlas.schema import AtlasSchema", True),
        ("loaders", "from .plan import plan", True),
        ("unicoord_atlas", "from unicoord_atlas.model.latent import Posterior", True),
        ("unicoord_atlas", "from unicoord_atlas.loaders.store import open_store", False),
        ("unicoord_atlas", "from unicoord_atlas import jobs", False),
        ("unicoord_atlas", "from .loaders.store import open_store", False),
        ("unicoord_atlas", "from .model.latent import Posterior", False),
        ("unicoord_atlas/model", "from ..batch import MiniBatch", False),
        ("unicoord_atlas/model", "import unicoord_atlas.jobs.cli", False),
        ("loaders", "def f():\n    from unicoord_atlas.jobs import cli", False),
        ("loaders", "from unicoord_atlas.loaders.plan import plan", False),
        ("jobs", "import loaders.store", False),
    ],
)
def test_breaches_are_seen(folder, line, allowed):
    assert (list(breaches(line, ROOT / folder)) == []) is allowed


def test_jobs_init_stays_empty():
    assert (ROOT / "jobs" / "__init__.py").read_bytes() == b""


def test_pyproject_names_every_package_folder():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(named) == sorted({package_of(path.parent) for path in MODULES})


def test_jobs_that_only_move_counts_start_without_torch():
    """It takes a second to import."""
    jobs = ("check", "convert", "info", "ingest", "reorder", "simulate")
    program = f"import sys, {', '.join(f'unicoord_atlas.jobs.{job}' for job in jobs)}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
