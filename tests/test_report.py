"""`report`: one page about a run, complete in itself."""

import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cells import counts_of_types
from PIL import Image

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.jobs import (
    build_graph,
    export_latents,
    export_reference,
    ingest,
    map_query,
    report,
    report_cells,
    report_figures,
    report_predictions,
    train,
)
from unicoord_atlas.jobs.report_album import Album
from unicoord_atlas.jobs.report_cells import map_section
from unicoord_atlas.jobs.report_figures import draw_map, shaded
from unicoord_atlas.jobs.report_inputs import open_inputs
from unicoord_atlas.jobs.report_predictions import continuous_section
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.report.page import DATA_ID, Section, Table, json_in_html, page
from unicoord_atlas.report.plane import drawn_rows
from unicoord_atlas.schema import LabelColumn
from unicoord_atlas.training.metrics import read_metrics

HOSTILE = ['</script><img src="https://a.example/x.png" onerror="x()">', r"$\frac{B", 'T & "NK"']
SETTINGS = [
    'latent.discrete=["cell_type"]',
    'latent.continuous=["time"]',
    "latent.unsupervised_continuous=2",
    "model.hidden=[16,8]",
    "train.epochs=2",
    "train.batch_size=32",
    "train.learning_rate=3e-3",
    "train.warmup_steps=0",
    "train.precision=fp32",
]


class Page(HTMLParser):
    """What a browser would load, run and read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.references, self.data, self._inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        known = dict(attributes)
        self.references += [known[name] for name in ("src", "href", "srcset", "action", "data") if name in known]
        assert not [name for name in known if name.startswith("on")]
        if tag == "script":
            assert known == {"type": "application/json", "id": DATA_ID}
        self._inside = tag

    def handle_data(self, data):
        if self._inside == "script":
            self.data += data

    def handle_endtag(self, tag):
        self._inside = ""


def write_cells(path: Path, seed: int, num_cells: int) -> None:
    """Cells of three types whose names are markup, with a time."""
    counts, types = counts_of_types(num_cells, 80, 3, num_markers=15, seed=0)
    rng = np.random.default_rng(seed)
    time = rng.uniform(0, 10, num_cells)
    counts[:, 60:70] = rng.poisson(time[:, None], (num_cells, 10))
    obs = pd.DataFrame(
        {"cell_type": np.array(HOSTILE)[types], "time": time}, [f"cell{seed}-{i}" for i in range(num_cells)]
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(80)])
    anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var).write_h5ad(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run, its atlas with a graph, latents, a mapped query with scores of gene sets, and two reports."""
    folder = tmp_path_factory.mktemp("report")
    write_cells(folder / "cells.h5ad", 1, 300)
    write_cells(folder / "query.h5ad", 2, 60)
    atlas, run, mapped = folder / "atlas.zarr", folder / "run", folder / "mapped.h5ad"
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], atlas, labels=["cell_type"]))
    train.run(train.TrainOptions(atlas, run, RunConfig.load(None, SETTINGS)))
    build_graph.run(build_graph.BuildGraphOptions(atlas, k=5, num_pcs=5))
    export_latents.run(export_latents.ExportLatentsOptions(atlas, run, folder / "latents.zarr"))
    export_reference.run(export_reference.ExportReferenceOptions(run, folder / "reference"))
    map_query.run(map_query.MapQueryOptions(folder / "query.h5ad", folder / "reference", folder / "plain.h5ad"))
    query = anndata.read_h5ad(folder / "plain.h5ad")
    scores = np.random.default_rng(0).uniform(size=(60, 2))
    query.obsm["X_gene_sets"] = pd.DataFrame(scores, query.obs_names, ["<b>GO", "other set"])
    query.write_h5ad(mapped)
    report.run(report.ReportOptions(run, folder / "bare.html"))
    report.run(
        report.ReportOptions(run, folder / "all.html", atlas, folder / "latents.zarr", mapped, folder / "figures")
    )
    return folder


@pytest.fixture(scope="module")
def full(folder) -> Page:
    return Page((folder / "all.html").read_text())


@pytest.fixture(scope="module")
def numbers(full) -> dict:
    return json.loads(full.data)


def test_page_fetches_nothing_and_runs_nothing(folder, full):
    assert all(text.startswith(("data:image/png;base64,", "#")) for text in full.references)
    assert full.tags.count("script") == 1
    assert full.tags.count("img") == sum(text.startswith("data:") for text in full.references) > 8
    assert (folder / "all.html").stat().st_size < 10e6


def test_hostile_names_are_shown_as_text(folder, full, numbers):
    text = (folder / "all.html").read_text()
    assert HOSTILE[0] not in text
    assert "&lt;/script&gt;&lt;img src=" in text
    assert set(numbers["trained-on"]["atlas"]["cell_type"]) == set(HOSTILE)


def test_losses_are_those_of_metrics_jsonl(folder, numbers):
    assert numbers["losses"]["epochs"] == read_metrics(folder / "run" / "metrics.jsonl")
    best = numbers["losses"]["epochs"][numbers["losses"]["best_epoch"] - 1]
    assert f"<td>{best['validation_reconstruction']:,.4g}</td>" in (folder / "all.html").read_text()


def test_validation_cells_are_those_of_the_run(folder, numbers):
    """Predictions in the latents, scored against obs, give what training measured on its validation cells."""
    measured = ReferenceModel.load(folder / "run" / "model").config.metrics
    found = numbers["predictions"]["cell_type"]["validation cells"]
    assert found["accuracy"] == pytest.approx(measured["cell_type_accuracy"])
    assert found["macro_f1"] == pytest.approx(measured["cell_type_macro_f1"])
    assert found["ece"] == pytest.approx(measured["cell_type_ece"], abs=1e-4)
    assert sum(sum(row.values()) for row in found["confusion"].values()) == found["cells"]
    assert found["cells"] == numbers["trained-on"]["validation_cells"]


def test_mapped_cells_are_scored_against_their_truth(folder, numbers):
    obs = anndata.read_h5ad(folder / "mapped.h5ad").obs
    right = obs["cell_type"].astype(str) == obs["cell_type_predicted"].astype(str)
    assert numbers["predictions"]["cell_type"]["mapped cells"]["accuracy"] == right.mean()


def test_mapped_cells_of_folded_classes_are_scored_as_other():
    label = LabelColumn(name="cell_type", categories=("B", "other"), counts=(9, 5), folded={"Megakaryocyte": 5})
    columns = {
        "cell_type": ["B", "Megakaryocyte", "Others", "Alien"],
        "cell_type_predicted": ["B", "other", "B", "B"],
        "cell_type_confidence": np.float32([0.9, 0.8, 0.7, 0.6]),
    }
    reference = SimpleNamespace(config=SimpleNamespace(labels=(label,)))
    inputs = SimpleNamespace(mapped=SimpleNamespace(obs=pd.DataFrame(columns)), reference=reference)
    (found,) = report_predictions._of_mapped(inputs)
    assert found.truth.tolist() == ["B", "other", "other"]
    assert found.predicted.tolist() == ["B", "other", "B"]


def test_continuous_dimensions_are_compared_in_validation_cells(folder, numbers):
    latents = anndata.read_zarr(folder / "latents.zarr")
    rows = open_inputs(folder / "run", None, folder / "latents.zarr", None).held_out.rows
    assert 10 < len(rows) < 60
    found = latents.obsm["X_unicoord"][rows, list(latents.uns["unicoord"]["dims"]).index("time")].astype(float)
    truth = latents.obs["time"].to_numpy()[rows]
    agreement = numbers["continuous"]["time"]
    assert agreement["cells"] == len(rows) == numbers["trained-on"]["validation_cells"]
    assert agreement["rmse"] == pytest.approx(np.sqrt(np.mean((found - truth) ** 2)), rel=1e-4)
    assert agreement["pearson"] == pytest.approx(np.corrcoef(found, truth)[0, 1], abs=1e-4)


def test_tables_are_compared_where_the_atlas_gives_them(folder, tmp_path):
    atlas, run, latents = folder / "atlas.zarr", tmp_path / "run", tmp_path / "latents.zarr"
    settings = [*SETTINGS, 'latent.continuous=["time","obsm:X_pca"]', "train.epochs=1"]
    train.run(train.TrainOptions(atlas, run, RunConfig.load(None, settings)))
    export_latents.run(export_latents.ExportLatentsOptions(atlas, run, latents))
    _, with_atlas = continuous_section(open_inputs(run, atlas, latents, None), Album(tmp_path, svg=False))
    section, without = continuous_section(open_inputs(run, None, latents, None), Album(tmp_path, svg=False))
    assert list(with_atlas) == ["time", *(f"X_pca_{number}" for number in range(5))]
    assert list(without) == ["time"]
    assert section.lines[1].startswith("5 dimensions are left out: --atlas")
    assert without["time"] == pytest.approx(with_atlas["time"])


def test_graph_facts_are_those_of_the_atlas(folder, numbers):
    adata = anndata.read_zarr(folder / "atlas.zarr")
    assert numbers["graph"]["edges"] == adata.obsp["connectivities"].nnz
    assert numbers["graph"]["neighbours"] == 300 * 5
    assert numbers["graph"]["recall"] == 1


def test_activities_are_means_of_predicted_types(folder, numbers):
    adata = anndata.read_h5ad(folder / "mapped.h5ad")
    means = adata.obsm["X_gene_sets"].groupby(adata.obs["cell_type_predicted"].astype(str)).mean()
    for name, found in numbers["activities"]["mean"].items():
        assert found == pytest.approx(means.loc[name].to_dict())


def test_sections_without_input_say_what_gives_them(folder):
    text = (folder / "bare.html").read_text()
    for option in ("--latents LATENTS", "--mapped MAPPED", "--atlas ATLAS"):
        assert option in text
    assert set(json.loads(Page(text).data)) == {
        "trained-on", "losses", "reconstruction", "throughput", "configuration", "made-from",
    }  # fmt: skip


def test_figures_are_written_as_png_and_svg(folder, full):
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {path.stem for path in (folder / "figures").glob("*.svg")}
    assert len(names) == full.tags.count("img")


def test_map_of_the_atlas_graph_stands_in_for_latents(folder):
    result = report.run(report.ReportOptions(folder / "run", folder / "graph.html", folder / "atlas.zarr"))
    assert "map" not in result["left_out"]
    assert "UMAP of the graph of the atlas" in (folder / "graph.html").read_text()


def test_a_map_of_many_cells_says_how_they_are_laid_out(folder, tmp_path, monkeypatch):
    inputs = open_inputs(folder / "run", None, folder / "latents.zarr", None)
    section, numbers = map_section(inputs, Album(tmp_path, svg=False), most=100)
    assert section.lines[0].startswith("UMAP of the latents, 300 cells: 50 at random are laid out")
    assert numbers == {"cells": 300, "drawn": 300}
    monkeypatch.setattr(report_cells, "needs_lists", lambda *_: True)
    monkeypatch.setattr(report_cells, "find_spec", lambda _: None)
    section, numbers = map_section(inputs, Album(tmp_path, svg=False), most=100)
    assert section.lines[0].startswith("UMAP of the latents: 100 of 300 cells, drawn at random")
    assert numbers == {"cells": 300, "drawn": 100}


def test_a_pixel_has_the_mean_colour_of_its_cells():
    rng = np.random.default_rng(0)
    places, colours = rng.uniform(size=(500, 2)).astype(np.float32), rng.uniform(size=(500, 3)).astype(np.float32)
    places[:2] = [[0, 0], [1, 1]]
    image, extent = shaded(places, colours, pixels=10)
    assert extent == (0, 1, 0, 1)
    for row in range(10):
        for column in range(10):
            inside = [
                c
                for (x, y), c in zip(places, colours, strict=True)
                if min(int(x * 10), 9) == column and min(int(y * 10), 9) == row
            ]
            if inside:
                np.testing.assert_allclose(image[row, column, :3], np.mean(inside, axis=0), atol=1e-5)
            assert bool(inside) == (image[row, column, 3] > 0)


def test_a_picture_of_many_colours_keeps_them(tmp_path):
    shades = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    album = Album(tmp_path, svg=False)
    for many, least in ((True, 3000), (False, 0)):
        picture = album.picture("shades", lambda path: Image.fromarray(shades).save(path), many_colours=many)
        with Image.open(io.BytesIO(picture.png)) as image:
            colours = len(image.convert("RGB").getcolors(3600))
        assert least <= colours <= (3600 if many else 256)


def test_many_cells_are_drawn_as_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(report_figures, "MOST_POINTS", 10)
    places = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    for values in (pd.Series(["a", None] * 25), pd.Series([1.0, np.nan] * 25), pd.Series([np.nan] * 50)):
        draw_map(places, values, "title", tmp_path / "map.png")
        assert (tmp_path / "map.png").stat().st_size > 5000


def test_many_cells_are_sampled():
    rows = drawn_rows(1000, most=100)
    assert len(np.unique(rows)) == 100
    assert rows.max() > 500
    np.testing.assert_array_equal(drawn_rows(5, most=100), np.arange(5))


def test_what_is_not_of_the_run_is_refused(folder, tmp_path):
    run = folder / "run"
    with pytest.raises(DataError, match="no finished model"):
        report.run(report.ReportOptions(tmp_path, tmp_path / "a.html"))
    with pytest.raises(DataError, match="holds no coordinates"):
        report.run(report.ReportOptions(run, tmp_path / "a.html", latents=folder / "atlas.zarr"))
    with pytest.raises(DataError, match="map-query did not write it"):
        report.run(report.ReportOptions(run, tmp_path / "a.html", mapped=folder / "query.h5ad"))
    with pytest.raises(DataError, match="exists already"):
        report.run(report.ReportOptions(run, folder / "all.html"))
    with pytest.raises(UsageError, match=r"ends in \.html"):
        report.run(report.ReportOptions(run, tmp_path / "report"))
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_there_already_is_known_by_what_it_was_made_from(folder):
    """A kill may come just after it got its name: the same command is then done, another one refused."""
    before = (folder / "bare.html").read_bytes()
    with pytest.raises(AlreadyDone, match=r"bare\.html"):
        report.run(report.ReportOptions(folder / "run", folder / "bare.html"))
    with pytest.raises(DataError, match="exists already"):
        report.run(report.ReportOptions(folder / "run", folder / "bare.html", atlas=folder / "atlas.zarr"))
    assert (folder / "bare.html").read_bytes() == before


def test_a_page_of_an_atlas_that_got_an_addition_since_is_another(folder, tmp_path):
    atlas = tmp_path / "atlas.zarr"
    shutil.copytree(folder / "atlas.zarr", atlas)
    options = report.ReportOptions(folder / "run", tmp_path / "a.html", atlas)
    report.run(options)
    with pytest.raises(AlreadyDone):
        report.run(options)
    manifest = json.loads((atlas / "manifest.json").read_text())
    manifest["additions"]["another"] = {"config": {}, "files": []}
    (atlas / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="exists already"):
        report.run(options)


def test_page_escapes_every_part():
    mark = '<i onclick="x">&'
    text = page(mark, [Section(mark, mark, [mark], [Table(mark, [mark], [[mark]])], (), mark, mark)], {mark: mark})
    assert mark not in text
    assert "i" not in Page(text).tags
    assert json.loads(json_in_html({mark: [float("nan"), "\u2028"]})) == {mark: [None, "\u2028"]}


def test_page_opens_in_a_browser_without_complaints(folder):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, (folder / "all.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr
    assert json.loads(Page(done.stdout).data) == json.loads(Page((folder / "all.html").read_text()).data)
