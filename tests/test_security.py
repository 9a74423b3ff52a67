"""No file that is opened can run code, and nothing goes to the network unasked: see docs/security.md."""

import ast
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.tally import BlockSums
from unicoord_atlas.training.checkpoint import load_weights

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("unicoord_atlas", "loaders", "jobs") for path in (ROOT / folder).rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save"}
UNSAFE_CALLS |= {"yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle", "np.fromregex"}


def faults_of(text: str) -> list[str]:
    """What in a source could run code that a file holds."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            found += [f"import {name}" for name in names if name.partition(".")[0] in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {each.arg: ast.unparse(each.value) for each in node.keywords}
        safely = called == "torch.load" and options.get("weights_only") == "True"
        if called in UNSAFE_CALLS and not safely:
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
    ],
)
def test_the_search_finds_what_is_unsafe(text):
    assert faults_of(text)


def test_the_search_lets_pass_what_is_safe():
    assert not faults_of("torch.load(p, weights_only=True); np.load(p); yaml.safe_load(t); re.compile('a'); m.eval()")


def test_no_source_runs_what_a_file_holds():
    assert len(SOURCES) > 100
    assert {
        str(path.relative_to(ROOT)): faults_of(path.read_text()) for path in SOURCES if faults_of(path.read_text())
    } == {}


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
