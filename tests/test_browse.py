"""`browse`: what the server says equals the cells, and what it refuses."""

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from cells import sparse_rows
from references import CLASSES, random_cells, random_reference
from safetensors import safe_open
from starlette.testclient import TestClient

from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.encode import Encoded, own_units, softmax
from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.generate import Generation
from unicoord_atlas.jobs import browse, browse_map
from unicoord_atlas.jobs.browse_app import make_app
from unicoord_atlas.jobs.browse_cells import cells_of_file
from unicoord_atlas.model.center import Center
from unicoord_atlas.points import Points
from unicoord_atlas.reconfigure import bio_of_seeds, reconfigured, seed_points
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.report.plane import umap_of_many
from unicoord_atlas.seeds import seed_labels

HOSTILE = '<img src=x onerror="throw 1">'
NAMES = ["localhost", "127.0.0.1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A mapped file with a map of its own, one without, and a reference with and without cells."""
    folder = tmp_path_factory.mktemp("browse")
    reference = random_reference(num_seeds=60)
    mapped = reference.map(random_cells(50))
    mapped.obs["note"] = pd.Categorical(np.where(np.arange(50) % 2, HOSTILE, "plain"))
    mapped.obsm["X_gene_sets"] = pd.DataFrame(np.arange(100.0).reshape(50, 2), mapped.obs_names, ["set a", "set b"])
    mapped.write_h5ad(folder / "bare.h5ad")
    mapped.obsm["X_umap"] = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    mapped.write_h5ad(folder / "mapped.h5ad")
    mapped.write_zarr(folder / "mapped.zarr")
    (folder / "reference").mkdir()
    reference.save(folder / "reference")
    shutil.copytree(folder / "reference", folder / "with_cells")
    shutil.copytree(folder / "mapped.zarr", folder / "with_cells" / "latents.zarr")
    return folder


@pytest.fixture(scope="module")
def client(folder) -> TestClient:
    return TestClient(make_app(browse.open_browsed(folder / "mapped.h5ad"), NAMES), base_url="http://localhost:8000")


@pytest.fixture(scope="module")
def changing(folder) -> TestClient:
    app = make_app(browse.open_browsed(folder / "with_cells"), NAMES)
    return TestClient(app, base_url="http://localhost:8000")


def column(client, name) -> tuple[dict, np.ndarray]:
    columns = client.get("/api/facts").json()["columns"]
    number = next(at for at, each in enumerate(columns) if each["name"] == name)
    return columns[number], np.frombuffer(client.get(f"/api/column/{number}").content, "<f4")


def test_columns_are_those_of_the_file(folder, client):
    adata = anndata.read_h5ad(folder / "mapped.h5ad")
    note, codes = column(client, "note")
    assert [note["categories"][int(code)] for code in codes] == list(adata.obs["note"])
    wanted, codes = column(client, "wanted")
    assert [None if np.isnan(code) else wanted["categories"][int(code)] for code in codes] == [
        None if pd.isna(value) else value for value in adata.obs["wanted"]
    ]
    np.testing.assert_array_equal(column(client, "time")[1], adata.obs["time"].to_numpy(np.float32))
    np.testing.assert_array_equal(column(client, "coordinate time")[1], adata.obsm["X_unicoord"][:, 0])
    np.testing.assert_array_equal(column(client, "X_gene_sets set b")[1], adata.obsm["X_gene_sets"]["set b"])
    places = np.frombuffer(client.get("/api/places").content, "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(places, adata.obsm["X_umap"])


def test_h5ad_and_zarr_show_the_same(folder):
    one, other = (cells_of_file(folder / name) for name in ("mapped.h5ad", "mapped.zarr"))
    assert [each.name for each in one.columns] == [each.name for each in other.columns]
    for ours, theirs in zip(one.columns, other.columns, strict=True):
        np.testing.assert_array_equal(ours.read(), theirs.read())
    np.testing.assert_array_equal(one.bio(), other.bio())


def test_cells_are_listed_searched_and_exported(folder, client):
    obs = anndata.read_h5ad(folder / "mapped.h5ad").obs
    first, second = client.get("/api/cells?rows=7,0").json()
    assert (first["name"], first["row"], second["name"]) == ("cell7", 7, "cell0")
    assert first["obs"]["note"] == HOSTILE
    assert second["obs"]["time"] is None
    found = np.frombuffer(client.get("/api/search", params={"words": "CELL4"}).content, "<u4")
    assert found.tolist() == [4, *range(40, 50)]
    found = np.frombuffer(client.get("/api/search", params={"words": "plain"}).content, "<u4")
    assert found.tolist() == list(range(0, 50, 2))
    body = np.array([9, 3], "<u4").tobytes()
    assert client.post("/api/export/names.txt", content=body).text == "cell9\ncell3\n"
    table = pa.ipc.open_file(io.BytesIO(client.post("/api/export/obs.arrow", content=body).content)).read_pandas()
    pd.testing.assert_frame_equal(table, obs.iloc[[9, 3]], check_names=False)


def test_the_page_asks_no_one_else(client):
    answer = client.get("/")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "http" not in answer.text.replace("http-equiv", "")
    for name in ("atlas.js", "page.js", "plot.js", "reconfigure.js", "atlas.css"):
        text = client.get(f"/{name}").text
        assert "://" not in text
        assert "innerHTML" not in text


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {"host": "evil.example"}, 421),
        ("/", {"host": "localhost.evil.example:8000"}, 421),
        ("/", {"host": "[::1"}, 421),
        ("/api/facts", {"origin": "http://evil.example"}, 403),
        ("/api/facts", {"origin": "null"}, 403),
        ("/api/facts", {"origin": "http://localhost:9999"}, 403),
        ("/api/facts", {"sec-fetch-site": "cross-site"}, 403),
        ("/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ("/api/facts", {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}, 200),
        ("/../../etc/passwd", {}, 404),
        ("/..%2f..%2fetc%2fpasswd", {}, 404),
        ("/%2e%2e/browse.py", {}, 404),
        ("/browse.py", {}, 404),
        ("/api/search?words=" + "a" * 5000, {}, 414),
        ("/api/column/99", {}, 400),
        ("/api/cells?rows=50", {}, 400),
        ("/api/cells?rows=-1", {}, 400),
        ("/api/cells?rows=" + ",".join(["1"] * 501), {}, 400),
        ("/api/export/names.txt", {}, 405),
    ],
)
def test_what_is_refused(client, path, headers, status):
    assert client.get(path, headers=headers).status_code == status


def test_bodies_that_are_oversize_or_wrong_are_refused(client):
    assert client.post("/api/export/names.txt", content=b"0" * 70_000).status_code == 413
    assert client.post("/api/export/names.txt", content=iter([b"0000"])).status_code == 411
    assert client.post("/api/export/names.txt", content=np.array([50], "<u4").tobytes()).status_code == 400
    assert client.post("/api/export/all", content=b"").status_code == 404
    assert "only a reference" in client.post("/api/reconfigure", content=b"{}").json()["error"]


def test_a_map_is_made_once_and_kept_beside_the_cells(folder, tmp_path, monkeypatch):
    path = tmp_path / "bare.h5ad"
    shutil.copy(folder / "bare.h5ad", path)
    before = path.read_bytes()
    places = browse.open_browsed(path).places
    assert places.shape == (50, 2)
    assert np.isfinite(places).all()
    kept = tmp_path / "bare.umap.safetensors"
    with safe_open(kept, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("X_umap"), places)
    monkeypatch.setattr(browse_map, "umap_of_many", lambda points: np.zeros((len(points), 2), np.float32))
    np.testing.assert_array_equal(browse.open_browsed(path).places, places)
    assert path.read_bytes() == before
    path.touch()  # other cells, as far as anyone can tell
    assert not browse.open_browsed(path).places.any()
    kept.write_bytes(b"damaged")
    assert not browse.open_browsed(path).places.any()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bare.h5ad", "bare.umap.safetensors"]


def test_what_the_map_was_not_made_of_lies_between_the_nearest():
    points = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    points[150:] += 50
    places = umap_of_many(points, most=60)
    groups = places[:150], places[150:]
    apart = np.linalg.norm(groups[0].mean(axis=0) - groups[1].mean(axis=0))
    for group in groups:
        assert np.linalg.norm(group - group.mean(axis=0), axis=1).max() < apart


def test_files_without_coordinates_are_refused(tmp_path):
    random_cells(5).write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match="holds no coordinates"):
        browse.open_browsed(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=r"absent\.h5ad"):
        browse.open_browsed(tmp_path / "absent.h5ad")


def test_changed_genes_are_those_of_generate(folder, changing):
    """The page's numbers are those of ReferenceModel.generate on the same seeds."""
    asked = {"like": {"cell_type": "B"}, "labels": {"platform": "Drop-seq"}, "values": {"time": 9.0}}
    answer = changing.post("/api/reconfigure", json=asked).json()
    reference = random_reference(num_seeds=60)
    whole = {"sample": "mode", "min_value": 0}
    before, after = (
        np.asarray(
            reference.generate(like={"cell_type": "B"}, num=20, how=Generation(changes, **whole)).X.mean(axis=0)
        )[0]
        for changes in (Changes({"cell_type": "B"}), Changes({"cell_type": "B", "platform": "Drop-seq"}, {"time": 9.0}))
    )
    change = after - before
    largest = np.argsort(-np.abs(change), kind="stable")[:20]
    assert {each["gene"] for each in answer["genes"]} == {reference.own_genes[gene] for gene in largest}
    for each in answer["genes"]:
        gene = reference.own_genes.index(each["gene"])
        assert each["change"] == pytest.approx(change[gene], rel=1e-4)
        assert each["before"] == pytest.approx(before[gene], rel=1e-4)


def seen_by_encoder(reference, values_g) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(1, b) biological representation and probabilities of a cell of these log-normalized values, in float32."""
    with torch.no_grad():
        center_g = reference.model.center_g
        center = None if center_g is None else Center(center_g[None])
        posterior = reference.model.encode(sparse_rows(values_g[None]), center)
    offset, scale = own_units(reference.model)
    logits = tuple(logits_nk.numpy() for logits_nk in posterior.logits)
    probabilities = {label.name: softmax(each) for label, each in zip(reference.config.labels, logits, strict=True)}
    mean_nd = posterior.mean_nd.numpy() * scale + offset
    return reference.bio(Encoded(np.zeros(1, np.int64), mean_nd, mean_nd, logits), probabilities), probabilities


def test_a_cell_goes_where_the_encoder_sees_it(folder, changing):
    """Decoded, encoded again as an AnnData would be, and compared with all cells of the map."""
    answer = changing.post("/api/reconfigure", json={"seed": 5, "labels": {"cell_type": "T"}}).json()
    cells = anndata.read_h5ad(folder / "mapped.h5ad")
    assert answer["cells"] == 1
    reference = ReferenceModel.load(folder / "with_cells")
    points, obs = seed_points(reference, np.array([5])), seed_labels(reference, reference.seeds, np.array([5]))
    for when, changes in (("before", Changes()), ("after", Changes({"cell_type": "T"}))):
        values_g = reconfigured(reference, points, obs, changes).values_g
        bio_1b, probabilities = seen_by_encoder(reference, values_g)
        away = np.linalg.norm(cells.obsm["X_unicoord_bio"] - bio_1b, axis=1)
        nearest = answer[when]["nearest"]
        assert len(set(nearest)) == 15
        # Those of argsort, but that two as far away may change places: the server encodes with weights in float16.
        np.testing.assert_allclose(away[nearest], np.sort(away)[:15], atol=2e-3)
        for name, shares in answer[when]["shares"].items():
            assert list(shares.values()) == pytest.approx(probabilities[name][0].tolist(), abs=2e-3)
            assert list(shares) == list(reference.label(name).categories)
        place = np.median(cells.obsm["X_umap"][nearest], axis=0)
        assert answer[when]["place"] == pytest.approx(place.tolist())
    unchanged = changing.post("/api/reconfigure", json={"seed": 5}).json()
    assert unchanged["genes"] == []
    assert unchanged["before"] == unchanged["after"] == answer["before"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"like": {"cell_type": "ILC"}}, "folded into 'other'"),
        ({"like": {"organ": "lung"}}, "no such label"),
        ({"seed": 60}, "must be in 0..59"),
        ({"seed": -1}, "must be in 0..59"),
        ({"seed": 0, "values": {"weight": 1.0}}, "no such continuous coordinate"),
        ({"seed": 0, "values": {"time": "nine"}}, "valid number"),
        ({"seed": 0, "else": 1}, "else"),
        ([1], "body"),
    ],
)
def test_what_cannot_be_asked_is_said(changing, body, words):
    answer = changing.post("/api/reconfigure", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_cell_of_the_map_is_where_its_coordinates_say(folder, changing):
    """The same as `generate` from these means and the predicted class."""
    reference = ReferenceModel.load(folder / "with_cells")
    cells = anndata.read_zarr(folder / "with_cells" / "latents.zarr")
    row = 7
    assert changing.get("/api/facts").json()["reconfigure"]["picks_cells"]
    codes = {
        label.name: label.code(str(cells.obs[f"{label.name}_predicted"].iloc[row])) for label in reference.config.labels
    }
    mean = np.asarray(cells.obsm["X_unicoord"][row : row + 1], np.float32)
    discrete = tuple(
        np.eye(len(label.categories), dtype=np.float32)[[codes[label.name]]] for label in reference.config.labels
    )
    points = Points(np.zeros(1, np.int64), discrete, mean, np.zeros_like(mean), np.ones(1, np.float32))
    obs = pd.DataFrame(index=["cell"])
    before, after = (
        reconfigured(reference, points, obs, changes) for changes in (Changes(), Changes(values={"time": 1.5}))
    )
    answer = changing.post("/api/reconfigure", json={"cell": row, "values": {"time": 1.5}}).json()
    genes = {each["gene"]: each["change"] for each in answer["genes"]}
    change = dict(zip(reference.own_genes, after.values_g - before.values_g, strict=True))
    assert genes and all(abs(change[gene] - value) < 1e-5 for gene, value in genes.items())
    for body, words in (({"cell": 50}, "must be in 0..49"), ({"cell": -1}, "must be in 0..49")):
        assert words in changing.post("/api/reconfigure", json=body).json()["error"]


def test_seeds_are_the_map_of_a_reference_without_cells(folder):
    browsed = browse.open_browsed(folder / "reference")
    reference = random_reference(num_seeds=60)
    assert browsed.places.shape == (60, 2)
    np.testing.assert_array_equal(browsed.cells.bio(), bio_of_seeds(reference))
    codes = next(each for each in browsed.cells.columns if each.name == "cell_type")
    assert codes.categories == CLASSES
    np.testing.assert_array_equal(codes.read(), reference.seeds.codes[:, 0])
    assert browsed.reconfiguration.facts["seeds"] == 60
    assert (folder / "reference.umap.safetensors").exists()
    assert not (folder / "reference" / "reference.umap.safetensors").exists()


def test_a_map_may_be_kept_elsewhere(folder, tmp_path, monkeypatch):
    """As of a reference in the hub's cache, to whose tools a further file is a fault."""
    monkeypatch.setattr(browse_map, "umap_of_many", lambda points: np.ones((len(points), 2), np.float32))
    shutil.copytree(folder / "reference", tmp_path / "snapshot")
    for _ in range(2):
        assert browse.open_browsed(tmp_path / "snapshot", tmp_path / "new" / "maps").places.all()
        monkeypatch.setattr(browse_map, "umap_of_many", None)
    assert [path.name for path in (tmp_path / "new" / "maps").iterdir()] == ["snapshot.umap.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "snapshot"]


def test_the_server_listens_on_loopback_and_ends_at_ctrl_c(folder):
    command = [sys.executable, "-m", "unicoord_atlas.jobs.cli", "browse", str(folder / "mapped.h5ad"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        assert line.startswith("50 cells at http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr.read().splitlines() == ["ended"]


def test_a_port_that_is_taken_is_said(folder):
    with browse._listening("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="choose another --port"):
        browse.run(browse.BrowseOptions(folder / "mapped.h5ad", port=taken.getsockname()[1]))


def test_facts_are_json_of_what_there_is(client):
    facts = json.loads(client.get("/api/facts").content)
    assert facts["cells"] == 50
    assert facts["reconfigure"] is None
    assert facts["title"] == "mapped.h5ad"
