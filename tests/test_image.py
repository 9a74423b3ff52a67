"""The image: no engine runs here, so its file is read by rules, and its build steps run in a virtual environment."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOME = "/opt/unicoord-atlas"


@dataclass
class Stage:
    image: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, word: str) -> list[str]:
        return [text for instruction, text in self.steps if instruction == word]


def stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile, with the arguments before the first one filled in."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    told, found = {}, []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        if word == "ARG" and not found:
            told.update([rest.split("=", 1)])
        elif word == "FROM":
            found.append(Stage(re.sub(r"\$\{(\w+)\}", lambda name: told[name[1]], rest)))
        else:
            found[-1].steps.append((word, rest))
    return found


@pytest.fixture(scope="module")
def image() -> list[Stage]:
    return stages((ROOT / "Dockerfile").read_text())


def allowed(path: str) -> bool:
    """Whether .dockerignore lets a file of the checkout into the build; the last rule that matches decides."""
    answer = True
    for line in (ROOT / ".dockerignore").read_text().split("\n"):
        pattern = line.strip().removeprefix("!")
        parents = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 2)]
        names = [*parents, *(parent.rpartition("/")[2] for parent in parents if pattern.startswith("**/"))]
        if pattern and not pattern.startswith("#") and any(fnmatch(n, pattern.removeprefix("**/")) for n in names):
            answer = line.strip().startswith("!")
    return answer


def test_images_are_pinned_and_the_last_stage_has_no_compiler(image):
    build, final = image
    assert build.image.removesuffix(" AS build") == final.image
    assert re.fullmatch(r"python:3\.1[1-3]\.\d+-slim-\w+", final.image)
    said = " ".join(final.of("RUN"))
    assert not re.search(r"\b(pip|apt|apt-get|gcc|make|curl|wget)\b", said)
    assert final.of("COPY") == [f"--from=build {HOME} {HOME}"]
    assert not [step for stage in image for step in stage.of("ADD")]


def test_the_user_is_not_root_and_nothing_comes_after_it(image):
    words = [word for word, _ in image[-1].steps]
    assert image[-1].of("USER") == ["10001:10001"]
    assert set(words[words.index("USER") + 1 :]) <= {"WORKDIR", "ENTRYPOINT", "CMD"}
    assert image[-1].of("ENTRYPOINT") == ['["unicoord-atlas"]']
    assert not [step for stage in image for step in stage.of("ENV") if re.search("(?i)token|secret|password", step)]


def test_every_installation_is_constrained(image):
    installs = re.findall(r"pip install [^&]*", " && ".join(image[0].of("RUN")))
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in step for step in installs)
    (extras,) = re.findall(r"'\.\[(.+?)\]'", installs[1])
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


def test_what_is_copied_is_there_and_nothing_else_is_sent(image):
    for step in image[0].of("COPY"):
        *sources, _ = step.split()
        for source in sources:
            assert (ROOT / source).exists() and allowed(source), source
    for path in ("jobs/cli.py", "unicoord_atlas/losses/elbo.py"):
        assert allowed(path)
    for path in (".git/config", "tests/cells.py", ".venv/bin/pip", "k8s/base/run.toml", "jobs/__pycache__/cli.pyc"):
        assert not allowed(path), path


def test_folders_that_are_written_are_mounted(image):
    """A root file system that is read-only: caches lie where the manifests mount a volume."""
    settings = dict(re.findall(r"(\w+)=(\S+)", " ".join(image[-1].of("ENV"))))
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"):
        assert settings[name].startswith("/cache")
    assert settings["DASK_TEMPORARY_DIRECTORY"] == "/tmp"


def test_the_build_steps_make_an_environment_that_works(image, tmp_path):
    """The same commands, elsewhere and without a network: what they would download is taken from this environment."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("the tests do not run in a virtual environment")
    environment, context = tmp_path / "environment", tmp_path / "src"
    context.mkdir()
    for step in image[0].of("COPY"):
        *sources, _ = step.split()
        for source in sources:
            subprocess.run(["cp", "-rP", str(ROOT / source), str(context / source)], check=True)
    own = {**os.environ, "VARIANT": "cpu"}
    own = {key: value for key, value in own.items() if key not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    first, *others = image[0].of("RUN")
    assert first == f"python -m venv {HOME}"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    for path in environment.glob("lib/python*/site-packages/*setuptools*"):
        shutil.rmtree(path)  # that of an older Python, in place of what the build asks for
    (library,) = environment.glob("lib/python*/site-packages")
    (library / "downloads.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for step in others:
        moved = step.replace(HOME, str(environment))
        moved = moved.replace("pip install", "pip install --no-index --no-build-isolation")
        done = subprocess.run(["sh", "-c", moved], cwd=context, env=own, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (environment / "bin" / "pip").exists()
    program = [environment / "bin" / "unicoord-atlas", "--help"]
    assert "map-query" in subprocess.run(program, cwd=tmp_path, env=own, capture_output=True, text=True).stdout
    where = [environment / "bin" / "python", "-c", "import unicoord_atlas.jobs.cli as cli; print(cli.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=own, capture_output=True, text=True).stdout
    assert found.strip() == str(library / "unicoord_atlas" / "jobs" / "cli.py")
