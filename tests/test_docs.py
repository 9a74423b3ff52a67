"""The documentation: builds without a warning, knows every message, and its commands exist."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from unicoord_atlas.jobs.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
KINDS = {"UsageError", "DataError", "ConfigError", "UnreachableError", "PeersLost"}
GAP = "\0"


def words_of(node: ast.expr) -> str:
    """The constant words of a message, with a gap where names and values stand."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(words_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return words_of(node.left) + words_of(node.right)
    if isinstance(node, ast.IfExp):
        return words_of(node.body) + GAP + words_of(node.orelse)
    return GAP


def messages():
    for path in sorted(
        path for folder in ("unicoord_atlas", "loaders", "jobs") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in KINDS and node.args:
                words = words_of(node.args[0])
                if len(re.findall(r"[A-Za-z]", words)) > 3:  # others pass on the words of another message
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", words


def entries() -> list[re.Pattern[str]]:
    """What the page on troubleshooting quotes in the first column of its tables."""
    page = (DOCS / "troubleshooting.md").read_text()
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    quoted = [phrase for cell in cells for phrase in re.findall(r"`([^`]+)`", cell)]
    return [re.compile(".*".join(map(re.escape, phrase.split("..."))), re.DOTALL) for phrase in quoted]


def test_every_message_has_an_entry():
    known = entries()
    unknown = [f"{where}: {words}" for where, words in messages() if not any(e.search(words) for e in known)]
    assert unknown == []


def test_every_entry_is_of_a_message():
    said = [words for _, words in messages()]
    others = "\n".join(
        path.read_text() for path in [ROOT / "jobs" / "train_report.py", *ROOT.glob("unicoord_atlas/**/*.py")]
    )
    idle = [e.pattern for e in entries() if not any(e.search(words) for words in said) and not e.search(others)]
    assert idle == []


def test_every_exit_code_has_an_entry():
    page = (DOCS / "troubleshooting.md").read_text()
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert told == {0, 1, 64, 65, 75, 78, 130, 143}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_of_a_page_exist(page):
    """In lines of code that call unicoord-atlas: the command is one, and each of its long options is known."""
    group = typer.main.get_command(app)
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?: {4}|)\s*unicoord-atlas ([a-z].*)$", text, re.MULTILINE):
        words = [word for word in line.split("#")[0].split() if word not in ("launch", "--processes", "2")]
        known = options_of(group.commands[words[0]])
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
        assert unknown == [], line


def options_of(command) -> set[str]:
    nested = [options_of(each) for each in getattr(command, "commands", {}).values()]
    own = {name for each in command.params for name in [*each.opts, *each.secondary_opts]}
    return own.union(*nested)


@pytest.mark.parametrize("page", sorted({*PAGES, *ROOT.glob("[A-Z]*.md")}), ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "ReferenceModel.load" in (tmp_path / "site" / "api.html").read_text()
