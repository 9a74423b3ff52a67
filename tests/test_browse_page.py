"""The pages of `browse` in a real browser: what they show equals the server's JSON, and they react."""

import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from references import random_cells, random_reference

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '<img src=x onerror="throw 1">'

if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@contextmanager
def served(path: Path):
    """Address of a `browse` of its own."""
    command = [sys.executable, "-m", "unicoord_atlas.jobs.cli", "browse", str(path), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            yield next(found[0] for found in (re.search(r"http://\S+", line) for line in lines) if found)
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A reference with 50 cells on a map, one of whose labels is markup."""
    folder = tmp_path_factory.mktemp("page") / "reference"
    folder.mkdir()
    model = random_reference(num_seeds=60)
    model.save(folder)
    mapped = model.map(random_cells(50))
    mapped.obs["note"] = pd.Categorical(np.where(np.arange(50) % 2, HOSTILE, "plain"))
    angle = np.linspace(0, 2 * np.pi, 50, endpoint=False)
    mapped.obsm["X_umap"] = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    mapped.write_zarr(folder / "latents.zarr")
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(reference):
    with served(reference) as found:
        yield found


@pytest.fixture
def page(browser, address):
    """The page, loaded; whatever it complains of, or asks elsewhere, fails the test."""
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    complaints, asked = [], []
    opened.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    expect(opened, "#status").to_have_text("")
    yield opened
    opened.close()
    assert [text for text in complaints if "GPU stall" not in text] == []
    assert all(url.startswith((address, "data:", f"blob:{address}")) for url in asked)


def expect(page, selector: str):
    return sync_api.expect(page.locator(selector))


def on_screen(page, row: int) -> tuple[float, float]:
    x, y = page.evaluate("row => atlas.plot.toScreen(atlas.plot.placeOf(row))", row)
    return x, y


def colour_at(page, row: int) -> list[int]:
    """The middle of a cell's point, as drawn."""
    return page.evaluate(
        """row => { const [x, y] = atlas.plot.toScreen(atlas.plot.placeOf(row)), gl = atlas.plot.gl;
        const pixel = new Uint8Array(4); const h = atlas.plot.canvas.height;
        gl.readPixels(Math.floor(x), h - 1 - Math.floor(y), 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
        return [...pixel]; }""",
        row,
    )


def settled(page) -> None:
    expect(page, "#status").to_have_text("")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_counts_and_colours_are_those_of_the_cells(page, reference):
    obs = anndata.read_zarr(reference / "latents.zarr").obs
    assert page.text_content("#count") == "50 cells"
    page.select_option("#colour", label="note")
    settled(page)
    lines = page.eval_on_selector_all("#legend button", "all => all.map(b => b.textContent)")
    assert sorted(lines) == sorted([f"{HOSTILE}25", "plain25"])
    one, other, again = (colour_at(page, row) for row in (0, 1, 2))
    assert one == again != other
    page.select_option("#colour", label="time")
    settled(page)
    assert page.text_content("#legend") == f"{obs['time'].min():.3f} to {obs['time'].max():.2f}"


def test_a_click_selects_the_cell_below_it(page):
    page.mouse.click(*on_screen(page, 7))
    page.wait_for_selector("#cells tbody tr")
    assert page.text_content("#selected") == "1"
    cells = page.eval_on_selector_all("#cells tbody td", "all => all.map(td => td.textContent)")
    assert cells[0] == "cell7"
    assert HOSTILE in cells
    page.click("#clear")
    settled(page)
    assert page.text_content("#selected") == "0"


def test_a_lasso_selects_what_lies_inside_and_it_is_exported(page, reference):
    x, y = zip(*(on_screen(page, row) for row in range(50)), strict=True)
    middle = sum(x) / 50
    corners = [(middle, min(y) - 20), (max(x) + 20, min(y) - 20), (max(x) + 20, max(y) + 20), (middle, max(y) + 20)]
    page.click("#lasso")
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    settled(page)
    inside = [f"cell{row}" for row in range(50) if x[row] > middle]
    assert page.text_content("#selected") == str(len(inside))
    with page.expect_download() as download:
        page.click("#names")
    assert Path(download.value.path()).read_text().split() == inside


def test_search_and_legend_select(page):
    page.fill("#search", "cell4")
    page.press("#search", "Enter")
    expect(page, "#selected").to_have_text("11")
    page.select_option("#colour", label="note")
    settled(page)
    page.click("#legend button:has-text('plain')")
    expect(page, "#selected").to_have_text("25")


def test_hover_names_the_cell(page):
    page.mouse.move(*on_screen(page, 12))
    expect(page, "#hover").to_contain_text("cell12, ")


def test_a_slider_moves_the_cells(page, address):
    page.select_option("#like-class", "B")
    page.select_option("#coordinate", "time")
    page.wait_for_selector("#genes tbody tr")
    first = page.evaluate("atlas.reconfigure.answer")
    shown = page.text_content("#genes tbody tr")
    page.evaluate(
        "() => { const s = document.querySelector('#slider'); s.value = s.max; s.dispatchEvent(new Event('input')); }"
    )
    sync_api.expect(page.locator("#genes tbody tr").first).not_to_have_text(shown)
    moved = page.evaluate("atlas.reconfigure.answer")
    assert moved["before"] == first["before"]
    wanted = {"labels": {}, "values": {"time": float(page.input_value("#slider"))}, "like": {"cell_type": "B"}}
    answer = page.request.post(f"{address}api/reconfigure", data=wanted).json()
    assert answer == moved
    rows = page.eval_on_selector_all("#genes tbody tr", "all => all.map(tr => [...tr.cells].map(td => td.textContent))")
    assert [row[0] for row in rows] == [each["gene"] for each in answer["genes"]]
    for row, each in zip(rows, answer["genes"], strict=True):
        assert [float(text) for text in row[1:]] == pytest.approx(
            [each["before"], each["after"], each["change"]], rel=1e-4
        )


def test_what_goes_wrong_is_said_on_the_page(browser, address):
    page = browser.new_page()
    page.goto(address)
    expect(page, "#status").to_have_text("")
    page.fill("#seed", "999")
    page.press("#seed", "Tab")
    expect(page, "#status").to_contain_text("must be in 0..59")
    page.close()
