"""`browse` with a million cells in headless Chromium: first paint, all cells drawn, hover, lasso, a frame.

Cells are drawn by the processor (SwiftShader), so a machine with a graphics card is far quicker.

    python benchmarks/bench_browse.py --json benchmarks/results/browse.json --screenshot browse.png
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from playwright.sync_api import Page, expect, sync_playwright

BARS = {"first_paint_s": 3.0}
TYPES, ORGANS = 60, 38
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FRAMES = """async () => { const start = performance.now();
  for (let i = 0; i < 5; i++) {
    atlas.plot.pan(1, 0);
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  }
  atlas.plot.gl.finish();
  return (performance.now() - start) / 5; }"""
HOVER = """() => { const start = performance.now();
  for (let i = 0; i < 100; i++) atlas.plot.nearest([300 + i, 300]);
  return (performance.now() - start) / 100; }"""
LASSO = """async () => { const start = performance.now();
  const rows = atlas.plot.inside([[200, 200], [600, 200], [600, 500], [200, 500]]);
  const found = performance.now();
  await atlas.select(rows);
  return [found - start, performance.now() - start, rows.length]; }"""


def main() -> int:
    """Make, measure, print, and exit 1 if a bar is missed."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latents.zarr"
        _write(path, args.cells)
        found = _measured(path, args.screenshot)
    for name, value in found.items():
        print(f"{name:<22} {value:10,.2f}")
    missed = [name for name, bar in BARS.items() if found[name] > bar]
    for name, bar in BARS.items():
        print(f"bar {name} {found[name]:.2f} <= {bar:g} {'SHORT' if name in missed else 'ok'}")
    if args.json:
        result = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "versions": {name: metadata.version(name) for name in ("unicoord-atlas", "starlette", "uvicorn")},
            "cells": args.cells,
            **found,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(missed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="50,000 cells")
    parser.add_argument("--screenshot", type=Path, help="where to put a picture of the page")
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    if args.quick:
        args.cells = 50_000
    return args


def _write(path: Path, num_cells: int) -> None:
    """Cells of sixty types around as many places, with a map."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, TYPES, num_cells)
    spread = np.exp(0.4 * rng.normal(size=TYPES))[types, None]
    places = (8 * rng.normal(size=(TYPES, 2))[types] + spread * rng.normal(size=(num_cells, 2))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(types, [f"type {i}" for i in range(TYPES)]),
            "organ": pd.Categorical.from_codes(types % ORGANS, [f"organ {i}" for i in range(ORGANS)]),
        },
        index=[f"cell-{i}" for i in range(num_cells)],
    )
    obsm = {"X_umap": places, "X_unicoord": places, "X_unicoord_bio": places}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata speaks of the format that it writes
        anndata.AnnData(obs=obs, obsm=obsm, uns={"unicoord": {"dims": ["x", "y"]}}).write_zarr(path)


def _measured(path: Path, screenshot: Path | None) -> dict[str, float]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium is installed")
    command = [sys.executable, "-m", "unicoord_atlas.jobs.cli", "browse", str(path), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as play:
        try:
            assert server.stderr is not None
            address = re.search(r"http://\S+", server.stderr.readline())
            assert address is not None
            browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1300, "height": 850})
            found = _of_page(page, address[0])
            if screenshot:
                page.screenshot(path=screenshot)
            browser.close()
        finally:
            server.terminate()
    return found


def _of_page(page: Page, address: str) -> dict[str, float]:
    page.goto(address)
    expect(page.locator("#status")).to_have_text("", timeout=120_000)
    drawn = page.evaluate("async () => { await new Promise(requestAnimationFrame); atlas.plot.gl.finish(); "
                          "return performance.now(); }")  # fmt: skip
    paints: list[dict[str, Any]] = page.evaluate("performance.getEntriesByType('paint').map(entry => entry.toJSON())")
    first = next(entry["startTime"] for entry in paints if entry["name"] == "first-paint")
    inside, selected, rows = page.evaluate(LASSO)
    return {
        "first_paint_s": first / 1000,
        "all_drawn_s": drawn / 1000,
        "hover_ms": page.evaluate(HOVER),
        "lasso_ms": inside,
        "lasso_and_table_ms": selected,
        "lasso_cells": rows,
        "frame_ms": page.evaluate(FRAMES),
    }


if __name__ == "__main__":
    sys.exit(main())
