"""No file that is opened can run code, and nothing goes to the network unasked: see docs/security.md."""

import ast
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from bad_inputs import sound_cells

from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.sources import open_source
from unicoord_atlas.loaders.tally import BlockSums
from unicoord_atlas.training.checkpoint import load_weights

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("unicoord_atlas", "loaders", "jobs") for path in (ROOT / folder).rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save"}
UNSAFE_CALLS |= {"yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle", "np.fromregex"}
UNSAFE_CALLS |= {"pd.read_hdf", "pandas.read_hdf", "faiss.read_index"}
READS_ARRAYS = re.compile(r"(np|numpy)\.lib\.format\.(read_|open_)")
GUARDED = {"unicoord_atlas/neighbors/lists.py": ["faiss.read_index"]}
"""What is unsafe, and held in check there: `load_lists` looks where the lists of an index from somebody else lie."""


def faults_of(text: str) -> list[str]:
    """What in a source could run code that a file holds."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [each.name for each in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{name}" for name in names]
            found += [f"import {name}" for name in names if name.partition(".")[0] in UNSAFE_MODULES]
            found += [f"import {name}" for name in names if name in UNSAFE_CALLS or READS_ARRAYS.match(name)]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {each.arg: ast.unparse(each.value) for each in node.keywords}
        safely = called == "torch.load" and options.get("weights_only") == "True"
        if (called in UNSAFE_CALLS and not safely) or READS_ARRAYS.match(called):
            found.append(called)
        if options.get("allow_pickle", "False") != "False" or options.get("shell", "False") != "False":
            found.append(f"{called} with {options}")
        if called.rpartition(".")[2] in ("extractall", "unpack_archive"):
            found.append(called)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "subprocess.run(words, shell=True)",
        "eval(text)",
        "archive.extractall(folder)",
        "from torch import load",
        "from os import system",
        "pd.read_hdf(path)",
        "np.lib.format.read_array(file)",
        "from numpy.lib.format import open_memmap",
        "faiss.read_index(path)",
    ],
)
def test_the_search_finds_what_is_unsafe(text):
    assert faults_of(text)


def test_the_search_lets_pass_what_is_safe():
    assert not faults_of("torch.load(p, weights_only=True); np.load(p); yaml.safe_load(t); re.compile('a'); m.eval()")


def test_no_source_runs_what_a_file_holds():
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): faults_of(path.read_text()) for path in SOURCES}
    assert {name: faults for name, faults in found.items() if faults} == GUARDED


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """A pickle that would leave a file, and the file."""
    sprung = tmp_path / "sprung"
    content = pickle.dumps(Trap(sprung))
    pickle.loads(content)
    assert sprung.exists()  # it does work
    sprung.unlink()
    return content, sprung


def test_a_pickle_in_place_of_weights_is_not_run(tmp_path, trap):
    content, sprung = trap
    for name in ("model.safetensors", "model.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            load_weights(tmp_path / name, torch.nn.Linear(1, 1), torch.device("cpu"))
    assert not sprung.exists()


def test_objects_in_the_sums_of_a_killed_pass_are_not_run(tmp_path, trap):
    _, sprung = trap
    trapped = np.array([Trap(sprung)], object)
    np.savez(tmp_path / "sums.npz", size_factors_n=trapped, moments_3g=trapped)
    assert BlockSums.load(tmp_path / "sums.npz") is None
    assert not sprung.exists()


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_a_pickle_that_an_array_of_zarr_v2_names_is_not_run(tmp_path, trap, place):
    """Counts whose chunk is a pickle, undone by the codec that the array's own metadata name."""
    content, sprung = trap
    path = tmp_path / "cells.zarr"
    with anndata.settings.override(zarr_write_format=2):
        sound_cells().write_zarr(path)
    (path / ".zmetadata").unlink(missing_ok=True)  # else the metadata of the array itself would not count
    facts = json.loads((path / "X/data/.zarray").read_text())
    codec = {"id": "pickle", "protocol": 5}
    facts |= {"compressor": codec} if place == "compressor" else {"compressor": None, "filters": [codec]}
    (path / "X/data/.zarray").write_text(json.dumps(facts))
    (path / "X/data/0").write_bytes(content)
    with pytest.raises(DataError, match=r"cells\.zarr: X cannot be read"):
        open_source(path)
    assert not sprung.exists()


NO_NETWORK = """
import socket, sys

def refuse(*given, **named):
    raise SystemExit(f"a socket was opened: {given}")

bind = socket.socket.bind
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = refuse
socket.socket.listen = socket.create_connection = refuse
# urllib3 looks whether the machine itself knows IPv6
socket.socket.bind = lambda s, address: bind(s, address) if address[0] == "::1" else refuse(address)
sys.argv = ["unicoord-atlas", *sys.argv[1:]]
from unicoord_atlas import ReferenceModel, fit
from unicoord_atlas.jobs.cli import app, run_command
code = run_command(app)
sys.exit(code)
"""


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["config", "--default"], ["doctor"]])
def test_nothing_opens_a_connection(words, tmp_path):
    ended = subprocess.run([sys.executable, "-c", NO_NETWORK, *words], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_every_pin_is_one_version():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [line for line in lines if line]
    assert len(pins) > 50
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+( ?;.+)?", line)] == []
