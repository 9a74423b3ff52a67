"""What is done with a reference, by the functions that the commands call."""

import json
import shutil
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from cells import counts_of_types
from references import random_cells, random_reference
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from typer.testing import CliRunner

from unicoord_atlas.calls import CallRule, ParentShares
from unicoord_atlas.config import RunConfig
from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.coordinate_facts import facts_of, require_coordinates_of
from unicoord_atlas.encode import encode_batches
from unicoord_atlas.errors import AlreadyDone, DataError, UnreachableError, UsageError
from unicoord_atlas.generate import Generation, decode_rows, mode_latents
from unicoord_atlas.jobs import (
    check,
    evaluate,
    evaluate_reconstruction,
    export_latents,
    export_reference,
    figure,
    fine_tune,
    generate,
    ingest,
    map_query,
    query_neighbors,
    train,
    write_counts,
)
from unicoord_atlas.jobs.cli import app
from unicoord_atlas.jobs.hub import local_reference, upload
from unicoord_atlas.jobs.parts import Part
from unicoord_atlas.jobs.reference_cells import INDEX, INDEX_FACTS, LATENTS
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.model.refinement import Refinement
from unicoord_atlas.neighbors import lists
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.training.fine_tune import changed_tensors, with_class

SETTINGS = [
    'latent.discrete=["cell_type","cell_class","source"]',
    'latent.hierarchy=["cell_class > cell_type"]',
    "latent.unsupervised_continuous=4",
    "model.hidden=[32,16]",
    "train.epochs=15",
    "train.batch_size=32",
    "train.learning_rate=3e-3",
    "train.warmup_steps=0",
    "train.precision=fp32",
]
NAMES = np.array(["B", "T", "NK", "Alien"])
CLASSES = {"B": "humoral", "T": "cellular", "NK": "cellular"}


def write_cells(path: Path, types: tuple[int, ...], num_cells: int, number: int) -> anndata.AnnData:
    """An .h5ad of cells of some of four types, which have genes of their own; no two numbers share a cell."""
    counts, drawn = counts_of_types(3000, 300, 4, num_markers=30)
    kept = np.flatnonzero(np.isin(drawn, types) & (np.arange(3000) % 3 == number))[:num_cells]
    names = NAMES[drawn[kept]]
    classes = [CLASSES.get(name, "other worlds") for name in names]
    obs = pd.DataFrame({"cell_type": names, "cell_class": classes}, index=[f"{path.stem}{i}" for i in range(len(kept))])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(300)])
    adata = anndata.AnnData(sp.csr_matrix(counts[kept]), obs=obs, var=var)
    adata.write_h5ad(path)
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a reference that has cells bundled, and a mapped query of which one type is new."""
    folder = tmp_path_factory.mktemp("reference_jobs")
    for number, name in enumerate(("one", "two")):
        write_cells(folder / f"{name}.h5ad", (0, 1, 2), 500, number)
    write_cells(folder / "query.h5ad", (0, 1, 2, 3), 300, 2)
    sources = [str(folder / f"{name}.h5ad") for name in ("one", "two")]
    atlas = folder / "atlas.zarr"
    ingest.run(ingest.IngestOptions(sources, atlas, labels=["cell_type", "cell_class"]))
    train.run(train.TrainOptions(atlas, folder / "run", RunConfig.load(None, SETTINGS)))
    latents = folder / "latents.zarr"
    export_latents.run(export_latents.ExportLatentsOptions(atlas, folder / "run", latents))
    export_reference.run(
        export_reference.ExportReferenceOptions(folder / "run", folder / "reference", latents, index=True)
    )
    map_to(folder, "query.h5ad", "mapped.h5ad", probabilities=True)
    return folder


def map_to(folder: Path, query: str, out: str, reference: str = "reference", **more: object) -> anndata.AnnData:
    options = map_query.MapQueryOptions(folder / query, folder / reference, folder / out, **more)
    map_query.run(options)
    return anndata.read_h5ad(folder / out) if out.endswith(".h5ad") else anndata.read_zarr(folder / out)


def test_a_type_that_the_reference_lacks_is_novel_and_not_called(folder):
    obs = anndata.read_h5ad(folder / "mapped.h5ad").obs
    alien = (obs["cell_type"] == "Alien").to_numpy()
    assert obs.loc[alien, "novelty"].min() > obs.loc[~alien, "novelty"].median()
    assert (obs.loc[alien, "novelty_p"] < 0.05).mean() > 0.9
    assert (obs.loc[~alien, "novelty_p"] < 0.05).mean() < 0.15
    assert (obs.loc[~alien, "cell_type_call"].astype(str) == obs.loc[~alien, "cell_type"].astype(str)).mean() > 0.9
    assert set(obs["cell_type_call_level"].cat.categories) == {"cell_type", "cell_class", "unsure", "novel"}


def test_a_strict_rule_takes_calls_away_and_leaves_predictions_as_they_were(folder):
    mapped = anndata.read_h5ad(folder / "mapped.h5ad").obs
    strict = map_to(folder, "query.h5ad", "strict.h5ad", rule=CallRule(1.0, 1.0)).obs
    assert ((strict["cell_type_call"] == "unassigned") == (strict["novelty_p"] < 1)).all()
    assert strict["cell_type_predicted"].tolist() == mapped["cell_type_predicted"].tolist()


def test_streamed_tables_are_those_of_a_mapping_in_memory(folder):
    reference = ReferenceModel.load(folder / "reference")
    here = reference.map(anndata.read_h5ad(folder / "query.h5ad"), probabilities=True)
    stored = map_to(folder, "query.h5ad", "mapped.zarr", probabilities=True)
    for mapped in (stored, anndata.read_h5ad(folder / "mapped.h5ad")):
        assert set(mapped.obsm) == set(here.obsm)
        assert mapped.uns["unicoord"]["profile_share"] == here.uns["unicoord"]["profile_share"]
        for key in here.obsm:
            np.testing.assert_allclose(mapped.obsm[key], here.obsm[key], atol=1e-6)
        pd.testing.assert_frame_equal(mapped.obs, here.obs, check_categorical=False, check_dtype=False)
    assert not list(folder.glob(".*.scratch"))


def test_an_atlas_store_is_a_query_like_any_other(folder):
    of_store = map_to(folder, "atlas.zarr", "of_store.h5ad")
    latents = anndata.read_zarr(folder / "latents.zarr")
    np.testing.assert_allclose(of_store.obsm["X_unicoord"], latents.obsm["X_unicoord"], atol=2e-3)
    with pytest.raises(UsageError, match="one matrix"):
        map_to(folder, "atlas.zarr", "layer.h5ad", layer="raw")


def assert_same_counts(found: anndata.AnnData, expected: anndata.AnnData) -> None:
    assert found.X.dtype == expected.X.dtype
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    loose = ("check_dtype", "check_index_type", "check_column_type", "check_categorical")
    pd.testing.assert_frame_equal(found.var, expected.var, **dict.fromkeys(loose, False))


@pytest.mark.parametrize("dtype", ["float32", "uint16", "int64"])
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_counts_and_genes_go_along_as_they_are(folder, tmp_path, monkeypatch, suffix, dtype):
    monkeypatch.setattr(write_counts, "_ROWS", 70)
    query = anndata.read_h5ad(folder / "query.h5ad")
    query.X, query.var["kind"] = query.X.astype(dtype), ["coding", "other", "other"] * 100
    query.write_h5ad(tmp_path / "query.h5ad")
    mapped = map_to(folder, str(tmp_path / "query.h5ad"), str(tmp_path / f"mapped.{suffix}"), with_counts=True)
    assert_same_counts(mapped, anndata.read_h5ad(tmp_path / "query.h5ad"))
    bare = anndata.read_h5ad(folder / "mapped.h5ad")
    pd.testing.assert_frame_equal(mapped.obs, bare.obs, check_categorical=False, check_dtype=False)
    np.testing.assert_allclose(mapped.obsm["X_unicoord"], bare.obsm["X_unicoord"], atol=1e-6)


def test_the_join_of_parts_copies_the_counts(folder, tmp_path):
    options = map_query.MapQueryOptions(
        folder / "query.h5ad", folder / "reference", tmp_path / "mapped.zarr", part=Part(0, 2), with_counts=True
    )
    map_query.run(options)
    map_query.run(replace(options, part=Part(1, 2)))
    assert_same_counts(anndata.read_zarr(tmp_path / "mapped.zarr"), anndata.read_h5ad(folder / "query.h5ad"))
    with pytest.raises(AlreadyDone):
        map_query.run(replace(options, part=None))


def test_coordinates_of_an_atlas_carry_its_counts_but_a_reference_never_does(folder, tmp_path):
    atlas, out = folder / "atlas.zarr", tmp_path / "latents.zarr"
    options = export_latents.ExportLatentsOptions(atlas, folder / "run", out, with_counts=True)
    export_latents.run(options)
    latents, bare = anndata.read_zarr(out), anndata.read_zarr(folder / "latents.zarr")
    assert_same_counts(latents, anndata.read_zarr(atlas))
    assert_same_counts(map_to(folder, "atlas.zarr", str(tmp_path / "mapped.h5ad"), with_counts=True), latents)
    pd.testing.assert_frame_equal(latents.obs, bare.obs)
    for key in bare.obsm:
        np.testing.assert_allclose(latents.obsm[key], bare.obsm[key], atol=1e-6)
    assert check.run(out)["files"] > check.run(folder / "latents.zarr")["files"]
    with pytest.raises(AlreadyDone):
        export_latents.run(options)
    with pytest.raises(DataError, match="made from other config"):
        export_latents.run(replace(options, with_counts=False))
    with pytest.raises(DataError, match="shared without"):
        export_reference.run(export_reference.ExportReferenceOptions(folder / "run", tmp_path / "reference", out))
    with pytest.raises(DataError, match="no atlas store"):
        open_store(out)


@pytest.mark.parametrize("name", ["again.h5ad", "again.zarr"])
def test_a_finished_mapping_is_known_by_what_it_was_made_from(folder, tmp_path, name):
    """A kill may come just after it got its name: the same command is then done, another one refused."""
    options = map_query.MapQueryOptions(folder / "query.h5ad", folder / "reference", tmp_path / name)
    map_query.run(options)
    with pytest.raises(AlreadyDone, match=name):
        map_query.run(options)
    for changes in ({"probabilities": True}, {"with_counts": True}, {"query": folder / "one.h5ad"}):
        with pytest.raises(DataError, match="exists"):
            map_query.run(replace(options, **changes))
    (tmp_path / f"foreign_{name}").write_text("years of work")
    with pytest.raises(DataError, match="exists and"):
        map_query.run(replace(options, out=tmp_path / f"foreign_{name}"))
    assert (tmp_path / f"foreign_{name}").read_text() == "years of work"


@pytest.mark.parametrize("name", ["mapped.h5ad", "mapped.zarr"])
def test_a_csv_that_a_kill_left_out_is_made_of_the_finished_mapping(folder, tmp_path, capsys, name):
    csv = tmp_path / "obs.csv"
    options = map_query.MapQueryOptions(folder / "query.h5ad", folder / "reference", tmp_path / name, csv=csv)
    map_query.run(options)
    before = csv.read_bytes()
    for left in (True, False):  # both have their names; only MAPPED has
        if not left:
            csv.unlink()
        with pytest.raises(AlreadyDone, match=name):
            map_query.run(options)
        assert csv.read_bytes() == before
    assert "obs.csv, which was missing" in capsys.readouterr().err
    csv.write_text("another's")
    for given in (options, replace(options, out=tmp_path / f"new_{name}")):
        with pytest.raises(DataError, match=r"obs\.csv exists; remove it"):
            map_query.run(given)
    assert csv.read_text() == "another's" and not (tmp_path / f"new_{name}").exists()


def test_a_query_that_covers_little_is_refused_unless_forced_and_then_less_is_claimed(folder):
    query = anndata.read_h5ad(folder / "query.h5ad")
    query[:, np.arange(300) % 12 == 0].copy().write_h5ad(folder / "narrow.h5ad")
    with pytest.raises(DataError, match=r"--min-coverage 0\.3"):
        map_to(folder, "narrow.h5ad", "narrow_mapped.h5ad")
    narrow = map_to(folder, "narrow.h5ad", "narrow_mapped.h5ad", force=True).obs
    whole = anndata.read_h5ad(folder / "mapped.h5ad").obs
    known = (whole["cell_type"] != "Alien").to_numpy()
    claimed = narrow.loc[known, "cell_type_confidence"].mean()
    right = (narrow["cell_type_predicted"].astype(str) == narrow["cell_type"].astype(str))[known].mean()
    assert claimed < whole.loc[known, "cell_type_confidence"].mean()
    assert claimed < right + 0.15


def test_whatever_takes_a_reference_refuses_cells_that_cover_little_unless_asked(folder, tmp_path):
    query = anndata.read_h5ad(folder / "query.h5ad")[:, ::12].copy()
    reference = ReferenceModel.load(folder / "reference")
    query.write_h5ad(tmp_path / "narrow.h5ad")
    given, how = (tmp_path / "narrow.h5ad", folder / "reference"), Generation(Changes({"cell_type": "B"}))
    of_cells = evaluate_reconstruction.EvaluateReconstructionOptions(*given, tmp_path / "evaluation")
    for job, options in (
        (query_neighbors, query_neighbors.QueryNeighborsOptions(*given, tmp_path / "near.csv")),
        (fine_tune, fine_tune.FineTuneOptions(*given, tmp_path / "tuned", "source", "three", 1)),
        (generate, generate.GenerateOptions(*given, tmp_path / "made.h5ad", how)),
        (figure, figure.FigureOptions("markers", *given, tmp_path / "m.png", how, "cell_type", ["GENE0"], 100)),
        (evaluate_reconstruction, of_cells),
    ):
        with pytest.raises(DataError, match=r"narrow\.h5ad: its genes carry .*less than --min-coverage 0\.3"):
            job.run(options)
        assert not options.out.exists()
        job.run(replace(options, min_coverage=0.0))
        assert options.out.exists()
    with pytest.raises(DataError, match=r"the AnnData given: its genes carry .*\(min_coverage= in Python\)"):
        reference.map(query)
    with pytest.raises(DataError, match=r"the AnnData given: its genes carry .*\(min_coverage= in Python\)"):
        reference.generate(query, how)
    mapped, made = reference.map(query, min_coverage=0), reference.generate(query, how, min_coverage=0)
    assert 0 < mapped.uns["unicoord"]["profile_share"] == made.uns["unicoord"]["profile_share"] < 0.3


def test_a_reference_of_version_1_is_read_without_novelty(folder, tmp_path):
    shutil.copytree(folder / "reference", tmp_path / "old")
    (tmp_path / "old" / "novelty.safetensors").unlink()
    facts = json.loads((tmp_path / "old" / "config.json").read_text())
    del facts["parent_shares"], facts["calibration"]["coverages"], facts["calibration"]["coverage_temperatures"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(facts | {"format_version": 1}))
    obs = ReferenceModel.load(tmp_path / "old").map(anndata.read_h5ad(folder / "query.h5ad")).obs
    assert "novelty" not in obs
    assert "cell_type_call" in obs
    (tmp_path / "old" / "config.json").write_text(json.dumps(facts | {"format_version": 99, "what": 1}))
    with pytest.raises(DataError, match=r"version 99.*update"):
        ReferenceModel.load(tmp_path / "old")


def test_files_of_two_references_are_refused_together(folder, tmp_path):
    shutil.copytree(folder / "reference", tmp_path / "mixed")
    schema = ReferenceModel.load(folder / "reference").schema
    (tmp_path / "mixed" / "schema.json").write_text(schema.subset(np.arange(10)).to_json())
    with pytest.raises(DataError, match="not of one reference"):
        ReferenceModel.load(tmp_path / "mixed")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("query", ["mapped.h5ad", "query.h5ad"])
def test_neighbours_are_those_of_scikit_learn(folder, tmp_path, suffix, query):
    out = tmp_path / f"near.{suffix}"
    query_neighbors.run(query_neighbors.QueryNeighborsOptions(folder / query, folder / "reference", out, k=3))
    table = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    mapped, latents = anndata.read_h5ad(folder / "mapped.h5ad"), anndata.read_zarr(folder / "latents.zarr")
    search = NearestNeighbors(n_neighbors=3).fit(latents.obsm["X_unicoord_bio"])
    distances, rows = search.kneighbors(mapped.obsm["X_unicoord_bio"])
    assert list(table.columns) == ["cell", "rank", "neighbor", "distance", "cell_type", "cell_class", "source"]
    assert table["cell"].tolist() == np.repeat(mapped.obs_names, 3).tolist()
    far = np.linalg.norm(
        latents[table["neighbor"].tolist()].obsm["X_unicoord_bio"]
        - np.repeat(mapped.obsm["X_unicoord_bio"], 3, axis=0),
        axis=1,
    )
    np.testing.assert_allclose(table["distance"], far, rtol=1e-3, atol=1e-4)
    assert np.isclose(table["distance"], distances.ravel(), rtol=1e-3, atol=1e-4).mean() > 0.98  # lists find 99 %
    assert (table["neighbor"] == latents.obs_names[rows.ravel()]).mean() > 0.98
    types = latents.obs["cell_type"].reindex(table["neighbor"]).astype(str)
    assert table["cell_type"].astype(str).tolist() == types.tolist()


def test_neighbours_need_bundled_cells_and_known_columns(folder, tmp_path):
    export_reference.run(export_reference.ExportReferenceOptions(folder / "run", tmp_path / "bare"))
    for reference, columns, error, words in (
        (tmp_path / "bare", [], DataError, "export-reference --latents"),
        (folder / "reference", ["organ"], UsageError, "organ"),
    ):
        options = query_neighbors.QueryNeighborsOptions(
            folder / "mapped.h5ad", reference, tmp_path / "near.csv", 3, columns
        )
        with pytest.raises(error, match=words):
            query_neighbors.run(options)


def index_cut_off(reference):
    path = reference / INDEX
    path.write_bytes(path.read_bytes()[:-100])


def index_is_text(reference):
    (reference / INDEX).write_text("hello")


def index_with_lists_elsewhere(reference):
    """An index that names another file of this machine."""
    points = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)
    index = lists.empty_lists(points, 0)
    list_n = lists.lists_of(index, points)
    ends = np.cumsum(np.bincount(list_n, minlength=index.nlist))
    lists.put_lists_in_file(index, reference.parent / "elsewhere", points[np.argsort(list_n, kind="stable")], ends)
    lists.save_lists(index, reference / INDEX)


def index_of_other_cells(reference):
    lists.save_lists(
        lists.build_lists(np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32), 0), reference / INDEX
    )


def index_without_probes(reference):
    facts = json.loads((reference / INDEX_FACTS).read_text())
    (reference / INDEX_FACTS).write_text(json.dumps({"cells": facts["cells"]}))


BAD_INDICES = {
    index_cut_off: "is cut off|cannot be read",
    index_is_text: "cannot be read",
    index_with_lists_elsewhere: "do not lie in this file",
    index_of_other_cells: "not of the cells in",
    index_without_probes: "probes = None is no number",
}


@pytest.mark.parametrize("damage", BAD_INDICES)
def test_a_bad_index_of_cells_is_refused_by_name(folder, tmp_path, damage):
    reference = shutil.copytree(folder / "reference", tmp_path / "reference")
    damage(reference)
    options = query_neighbors.QueryNeighborsOptions(folder / "mapped.h5ad", reference, tmp_path / "near.csv", 3)
    with pytest.raises(DataError, match=r"neighbors\.(faiss|json): has a wrong checksum"):
        query_neighbors.run(options)
    (reference / "manifest.json").unlink()  # of a reference that somebody has put together
    with pytest.raises(DataError, match=rf"neighbors\.(faiss|json): .*({BAD_INDICES[damage]})"):
        query_neighbors.run(options)
    assert not (tmp_path / "near.csv").exists()


def test_a_flipped_byte_of_the_bundled_cells_is_not_read(folder, tmp_path):
    reference = shutil.copytree(folder / "reference", tmp_path / "reference")
    (path,) = (path for path in (reference / LATENTS / "obsm/X_unicoord_bio/c").rglob("*") if path.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    options = query_neighbors.QueryNeighborsOptions(folder / "mapped.h5ad", reference, tmp_path / "near.csv", 3)
    with pytest.raises(DataError, match=r"obsm/X_unicoord_bio/c/0/0 has a wrong checksum"):
        query_neighbors.run(options)


def test_coordinates_by_another_model_are_not_bundled(folder, tmp_path):
    settings = RunConfig.load(None, [*SETTINGS, "train.epochs=1"])
    train.run(train.TrainOptions(folder / "atlas.zarr", tmp_path / "run", settings))
    options = export_reference.ExportReferenceOptions(tmp_path / "run", tmp_path / "out", folder / "latents.zarr")
    with pytest.raises(DataError, match="another model"):
        export_reference.run(options)


def test_fine_tuning_adds_a_batch_and_leaves_every_other_weight_to_the_bit(folder, tmp_path):
    query = anndata.read_h5ad(folder / "query.h5ad")
    counts = query.X.toarray()
    counts[:, 60:90] += 4  # what this batch shows more of: genes that the decoder can move
    query.X = sp.csr_matrix(counts)
    query.write_h5ad(tmp_path / "batch.h5ad")
    options = fine_tune.FineTuneOptions(
        tmp_path / "batch.h5ad", folder / "reference", tmp_path / "tuned", "source", "three", 150
    )
    result = fine_tune.run(options)
    assert result["errors"][1] < result["errors"][0]
    tuned = ReferenceModel.load(tmp_path / "tuned")
    shown = []
    for code in (0, 2):  # as the first source and as the new one would show the same cells
        batches = QueryBatches(AnnDataCells(query), tuned.schema, tuned.normalization)
        parts = encode_batches(tuned.model, batches, tuned.device)
        decoded = [decode_rows(tuned.model, mode_latents(tuned.model, part, {"source": code})) for part in parts]
        shown.append(np.concatenate(decoded)[:, 60:90].mean())
    assert shown[1] > shown[0]
    before, after = (
        ReferenceModel.load(path).model.state_dict() for path in (folder / "reference", tmp_path / "tuned")
    )
    same = [name for name in before if before[name].shape == after[name].shape]
    assert set(before) - set(same) == {"decoder.0.weight", "logits.2.weight", "logits.2.bias"}
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in same)
    old = ReferenceModel.load(folder / "reference").map(query).obs
    new = ReferenceModel.load(tmp_path / "tuned").map(query).obs
    for name in ("cell_type", "source"):
        assert old[f"{name}_predicted"].astype(str).tolist() == new[f"{name}_predicted"].astype(str).tolist()
        np.testing.assert_allclose(old[f"{name}_confidence"], new[f"{name}_confidence"], atol=1e-6)
    assert "three" in new["source_predicted"].cat.categories


def test_a_new_class_of_a_tied_level_has_no_parent_and_changes_no_other(tmp_path):
    cells, reference = random_cells(), random_reference(0)
    tie = Refinement(parent=0, child=1, shares=(((0, 1.0), (2, 0.5)), ((1, 1.0), (2, 0.5))))
    latent = reference.model.spec.latent.model_copy(update={"refinements": (tie,)})
    network = reference.model.spec.model_copy(update={"latent": latent})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference.model = JointVAE(network).eval()
    reference.config = reference.config.model_copy(update={"network": network})
    wider = with_class(reference, "platform", "Visium", 7)
    assert changed_tensors(reference, wider, "platform") == []
    before, after = (each.map(cells, probabilities=True).obsm["X_unicoord_platform"] for each in (reference, wider))
    np.testing.assert_allclose(after, np.pad(before, ((0, 0), (0, 1))), atol=1e-6)


@pytest.mark.parametrize(("label", "name", "words"), [("cell_type", "x", "technical"), ("source", "one", "already")])
def test_only_a_new_class_of_a_technical_label_is_added(folder, tmp_path, label, name, words):
    options = fine_tune.FineTuneOptions(folder / "query.h5ad", folder / "reference", tmp_path / "t", label, name, 1)
    with pytest.raises(UsageError, match=words):
        fine_tune.run(options)


def test_evaluate_measures_known_types_and_those_that_the_reference_lacks(folder, tmp_path):
    options = evaluate.EvaluateOptions(folder / "mapped.h5ad", ["cell_type", "cell_class"], tmp_path / "out")
    metrics = evaluate.run(options)["labels"]["cell_type"]
    obs = anndata.read_h5ad(folder / "mapped.h5ad").obs
    known = obs["cell_type"] != "Alien"
    right = obs["cell_type_predicted"].astype(str) == obs["cell_type"].astype(str)
    assert metrics["accuracy"] == pytest.approx(right[known].mean())
    assert metrics["cells_of_other_types"] == (~known).sum()
    assert metrics["novelty_auroc"] > 0.95
    assert metrics["accuracy"] <= metrics["hierarchical_f1"] <= 1
    assert {"ece", "nll", "macro_f1", "called", "accuracy_of_calls"} <= set(metrics)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"evaluation.json", "summary.txt", "cell_type_flow.png", "cell_type_confusion.csv"} <= names
    flow = pd.read_csv(tmp_path / "out" / "cell_type_flow.csv", index_col=0)
    assert flow.loc["Alien"].sum() == (~known).sum()


def test_evaluate_reads_other_names_by_a_map(folder, tmp_path):
    mapped = anndata.read_h5ad(folder / "mapped.h5ad")
    mapped.obs["author"] = mapped.obs["cell_type"].astype(str).replace({"B": "B cells", "T": "T cells"})
    mapped.write_h5ad(tmp_path / "mapped.h5ad")
    rows = [("author", "B cells", "B"), ("author", "T cells", "T")]
    pd.DataFrame(rows, columns=["column", "label", "cell_type"]).to_csv(tmp_path / "names.csv", index=False)
    scores = [
        evaluate.run(evaluate.EvaluateOptions(tmp_path / "mapped.h5ad", [truth], tmp_path / out, names))
        for truth, out, names in (
            ("cell_type", "plain", None),
            ("author=cell_type", "renamed", tmp_path / "names.csv"),
        )
    ]
    assert scores[0]["labels"]["cell_type"] == scores[1]["labels"]["cell_type"]
    with pytest.raises(UsageError, match="author=LABEL"):
        evaluate.run(evaluate.EvaluateOptions(tmp_path / "mapped.h5ad", ["author"], tmp_path / "none"))


def test_without_probabilities_the_summary_says_how_to_get_a_likelihood(folder, tmp_path):
    mapped = anndata.read_h5ad(folder / "mapped.h5ad")
    del mapped.obsm["X_unicoord_cell_type"]
    mapped.write_h5ad(tmp_path / "mapped.h5ad")
    evaluate.run(evaluate.EvaluateOptions(tmp_path / "mapped.h5ad", ["cell_type"], tmp_path / "out"))
    metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())["labels"]["cell_type"]["metrics"]
    assert metrics["nll"] is None
    (line,) = (line for line in (tmp_path / "out" / "summary.txt").read_text().splitlines() if "nll" in line)
    assert "no probabilities: map again with --probabilities" in line


def test_each_type_that_the_reference_lacks_is_scored_by_itself(folder, tmp_path):
    mapped = anndata.read_h5ad(folder / "mapped.h5ad")
    names = mapped.obs["cell_type"].to_numpy(str).astype(object)
    names[np.flatnonzero(names == "Alien")[::3]] = "Martian"
    mapped.obs["cell_type"] = names
    mapped.write_h5ad(tmp_path / "mapped.h5ad")
    evaluate.run(evaluate.EvaluateOptions(tmp_path / "mapped.h5ad", ["cell_type"], tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["labels"]["cell_type"]["lacking"]
    assert set(found) == {"Alien", "Martian"}
    known, novelty = np.isin(names.astype(str), NAMES[:3]), mapped.obs["novelty"].to_numpy()
    for name, scores in found.items():
        own = names == name
        assert scores["cells"] == own.sum()
        assert scores["novelty_auroc"] == pytest.approx(roc_auc_score(own[known | own], novelty[known | own]))
        assert scores["found_at_0.05"] == pytest.approx((mapped.obs["novelty_p"].to_numpy()[own] < 0.05).mean())
    table = pd.read_csv(tmp_path / "out" / "cell_type_lacking.csv", index_col="type")
    assert table["cells"].to_dict() == {name: scores["cells"] for name, scores in found.items()}
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "types that the reference lacks" in summary and "Martian" in summary


def test_folded_classes_are_other_wherever_the_truth_is_scored(folder, tmp_path):
    """As if T had been folded: what is said of its cells under other names is what was said of T."""
    mapped = anndata.read_h5ad(folder / "mapped.h5ad")
    plain = evaluate.run(evaluate.EvaluateOptions(folder / "mapped.h5ad", ["cell_type"], tmp_path / "plain"))
    facts = mapped.uns["unicoord"]
    for place, key in ((facts["categories"], "cell_type"), (facts["parents"]["cell_type"], "children")):
        place[key] = ["other" if name == "T" else str(name) for name in place[key]]
    for name in ("cell_type_predicted", "cell_type_call"):
        mapped.obs[name] = mapped.obs[name].astype(str).replace("T", "other").astype("category")
    names = mapped.obs["cell_type"].to_numpy(str).astype(object)
    cells = np.flatnonzero(names == "T")
    names[cells[::3]], names[cells[1::3]], names[cells[2::3]] = "Megakaryocyte", "Others", "other"
    mapped.obs["cell_type"] = names
    facts["folded"] = {"cell_type": ["Megakaryocyte"]}
    mapped.write_h5ad(tmp_path / "folded.h5ad")
    folded = evaluate.run(evaluate.EvaluateOptions(tmp_path / "folded.h5ad", ["cell_type"], tmp_path / "folded"))
    assert folded["labels"]["cell_type"] == pytest.approx(plain["labels"]["cell_type"])
    tables = tmp_path / "folded"
    confusion, flow = (pd.read_csv(tables / f"cell_type_{name}.csv", index_col=0) for name in ("confusion", "flow"))
    assert confusion.loc["other"].sum() == len(cells) and "Megakaryocyte" not in confusion.index
    assert flow.loc["Megakaryocyte"].sum() == len(cells[::3])
    del facts["folded"]  # a file of an older version: it only knows how "other" may be spelled
    mapped.write_h5ad(tmp_path / "older.h5ad")
    older = evaluate.run(evaluate.EvaluateOptions(tmp_path / "older.h5ad", ["cell_type"], tmp_path / "older"))
    lacking = [scores["labels"]["cell_type"]["cells_of_other_types"] for scores in (older, plain)]
    assert lacking[0] == lacking[1] + len(cells[::3])


def test_coordinates_say_which_classes_were_folded():
    assert facts_of(random_reference(0))["folded"] == {"cell_type": ["ILC"], "platform": []}


def test_what_dimensions_know_of_every_label_is_in_the_json_and_in_the_summary(folder, tmp_path):
    mapped = anndata.read_h5ad(folder / "mapped.h5ad")
    first = str(mapped.uns["unicoord"]["dims"][0])
    mapped.uns["unicoord"]["supervised"] = [first]
    mapped.obs[first] = mapped.obsm["X_unicoord"][:, 0]
    mapped.write_h5ad(tmp_path / "mapped.h5ad")
    evaluate.run(evaluate.EvaluateOptions(tmp_path / "mapped.h5ad", ["cell_type"], tmp_path / "out"))
    table = pd.read_csv(tmp_path / "out" / "explained_variance.csv", index_col=0)
    facts = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(facts["explained_variance"]) == set(table.index) == {"cell_type", "cell_class", first}
    for label, best in facts["explained_variance"].items():
        assert best == {"dimension": table.loc[label].idxmax(), "explained": pytest.approx(table.loc[label].max())}
    assert facts["explained_variance"][first] == {"dimension": first, "explained": pytest.approx(1)}
    activities = pd.read_csv(tmp_path / "out" / "activities.csv")
    assert set(facts["activities"]) == set(activities["group"]) == set(NAMES[:3])
    for group, rows in activities.groupby("group"):
        assert facts["activities"][group]["score"] == pytest.approx(rows["score"].max())
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "largest explained variance" in summary and "what sets each predicted type apart" in summary


def test_without_matplotlib_an_evaluation_lacks_its_figures_alone(folder, tmp_path, capsys, monkeypatch):
    drawn, bare = tmp_path / "drawn", tmp_path / "bare"
    evaluate.run(evaluate.EvaluateOptions(folder / "mapped.h5ad", ["cell_type"], drawn))
    assert "no figures" not in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    evaluate.run(evaluate.EvaluateOptions(folder / "mapped.h5ad", ["cell_type"], bare))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("no figures"))
    assert "matplotlib is not installed; pip install 'unicoord-atlas[report]'" in line
    names = {path.name for path in drawn.iterdir()}
    assert {path.name for path in bare.iterdir()} == {name for name in names if not name.endswith(".png")} < names


def test_a_reference_by_path_is_where_it_is():
    assert local_reference("some/where") == Path("some/where")


def test_the_hub_gets_the_files_of_a_reference_and_gives_them_back(folder, tmp_path, monkeypatch):
    """Against a hub of our own, for there is no network here: a folder by the repository's name."""
    hub = pytest.importorskip("huggingface_hub")

    class Commit:
        oid = "abc"

    def upload_folder(*, repo_id, folder_path):
        shutil.copytree(folder_path, tmp_path / repo_id)
        return Commit()

    made = []
    monkeypatch.setattr(hub, "create_repo", lambda name, **options: made.append((name, options["private"])))
    monkeypatch.setattr(hub, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "snapshot_download", lambda name: str(tmp_path / name))
    assert upload(folder / "reference", "me/blood", public=False) == {"shared": "hf://me/blood", "commit": "abc"}
    assert made == [("me/blood", True)]
    again = ReferenceModel.load(local_reference("hf://me/blood"))
    assert again.config == ReferenceModel.load(folder / "reference").config
    with pytest.raises(DataError, match=r"config\.json"):
        upload(folder / "run", "me/none", public=False)


def test_every_command_takes_a_reference_from_the_hub(folder, tmp_path, monkeypatch):
    """Against a hub of our own, which has one repository."""
    hub = pytest.importorskip("huggingface_hub")

    def snapshot(name):
        if name != "me/blood":
            raise ValueError("no such repository")
        return str(folder / "reference")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    query, drawn = str(folder / "query.h5ad"), ["--by", "cell_type", "--genes", "GENE1", "--max-cells", "100"]
    for out, words in (
        ("mapped.h5ad", ["map-query", query]),
        ("near.csv", ["query-neighbors", str(folder / "mapped.h5ad")]),
        ("tuned", ["fine-tune", query, "--label", "source", "--name", "three", "--epochs", "1"]),
        ("made.h5ad", ["generate", query, "--set-label", "cell_type=B"]),
        ("made.png", ["figure", "markers", query, "--set-label", "cell_type=B", *drawn]),
        ("evaluation", ["evaluate", "reconstruction", query]),
    ):
        more = ["--out", str(tmp_path / out), "--min-coverage", "0.2"]
        ended = CliRunner().invoke(app, [*words, "--reference", "hf://me/blood", *more])
        assert ended.exit_code == 0, (words, ended.output, ended.exception)
        assert (tmp_path / out).exists()
    for words in (["generate", "--like", "cell_type=B", "--out", "x.h5ad", "--reference"], ["browse"]):
        ended = CliRunner().invoke(app, [*words, "hf://me/none"])
        assert str(ended.exception).startswith("hf://me/none: cannot be had from the hub (no such repository)")


class Refusing(BaseHTTPRequestHandler):
    """A hub that knows nobody."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *args):
        pass


def test_a_hub_that_cannot_be_reached_is_another_thing_than_one_that_refuses(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    random_reference().save(tmp_path / "reference")
    monkeypatch.setenv("HF_TOKEN", "of-nobody")
    monkeypatch.setenv("no_proxy", "*")
    hub.close_session()  # the next one asks for proxies again
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with pytest.raises(DataError, match=r"me/blood: the hub refuses it .* log in"):
                upload(tmp_path / "reference", "me/blood", public=False)
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(UnreachableError, match=r"me/blood: the hub cannot be reached .* again") as refused:
        upload(tmp_path / "reference", "me/blood", public=False)
    assert refused.value.exit_code == 75


def test_a_fine_tuned_reference_keeps_its_seeds_and_its_cells(folder, tmp_path):
    options = fine_tune.FineTuneOptions(
        folder / "query.h5ad", folder / "reference", tmp_path / "tuned", "source", "three", 1
    )
    fine_tune.run(options)
    tuned = ReferenceModel.load(tmp_path / "tuned")
    made = tuned.generate(how=Generation(Changes({"source": "three"})), like={"cell_type": "B"}, num=3)
    assert made.obs["source_generated"].tolist() == ["three"] * 3
    tables = [tmp_path / name for name in ("before.csv", "after.csv")]
    for reference, table in zip((folder / "reference", tmp_path / "tuned"), tables, strict=True):
        query_neighbors.run(query_neighbors.QueryNeighborsOptions(folder / "mapped.h5ad", reference, table, k=3))
    assert tables[0].read_bytes() == tables[1].read_bytes()
    with pytest.raises(UsageError, match="--epochs 0"):
        fine_tune.run(replace(options, out=tmp_path / "none", epochs=0))


@pytest.mark.parametrize(("parent", "child"), [("cell_type", "platform"), ("platform", "cell_type")])
def test_a_new_class_of_a_level_is_called_by_no_parent(parent, child):
    cells, reference = random_cells(), random_reference(0)
    num_children, num_parents = (len(reference.label(name).categories) for name in (child, parent))
    shares = ParentShares(parent=parent, child=child, shares=tuple(map(tuple, np.eye(num_parents)[[0] * num_children])))
    reference.config = reference.config.model_copy(update={"parent_shares": (shares,)})
    wider = with_class(reference, "platform", "Visium", 7)
    before, after = (each.map(cells) for each in (reference, wider))
    assert before.obs[f"{child}_call"].astype(str).tolist() == after.obs[f"{child}_call"].astype(str).tolist()
    tie = after.uns["unicoord"]["parents"][child]
    assert len(tie["children"]) == len(tie["parents"]) == num_children + (child == "platform")
    assert set(tie["parents"][:num_children]) == {reference.label(parent).categories[0]}
    assert tie["parents"][num_children:] == [""] * (child == "platform")


def test_coordinates_by_another_model_are_not_searched(folder, tmp_path):
    mapped = anndata.read_h5ad(folder / "mapped.h5ad")
    other = random_reference(0)
    require_coordinates_of(ReferenceModel.load(folder / "reference"), mapped.uns["unicoord"], folder / "mapped.h5ad")
    mapped.uns["unicoord"]["model"] = facts_of(other)["model"]
    mapped.write_h5ad(tmp_path / "other.h5ad")
    options = query_neighbors.QueryNeighborsOptions(tmp_path / "other.h5ad", folder / "reference", tmp_path / "n.csv")
    with pytest.raises(DataError, match="onto another reference"):
        query_neighbors.run(options)


def test_own_columns_of_the_names_that_mapping_writes_are_kept(folder, tmp_path, capsys):
    query = anndata.read_h5ad(folder / "query.h5ad")
    query.obs["novelty"], query.obs["cell_type_call"], query.obs["novelty_before"] = 7.0, "mine", 8.0
    query.write_h5ad(tmp_path / "query.h5ad")
    mapped, bare = (
        map_to(folder, name, str(tmp_path / f"{number}.h5ad")).obs
        for number, name in enumerate((str(tmp_path / "query.h5ad"), "query.h5ad"))
    )
    assert "novelty is kept as novelty_before_before" in capsys.readouterr().err
    assert set(mapped["novelty_before_before"]) == {7.0} and set(mapped["novelty_before"]) == {8.0}
    assert set(mapped["cell_type_call_before"]) == {"mine"}
    pd.testing.assert_frame_equal(mapped[bare.columns], bare)
    reference = ReferenceModel.load(folder / "reference")
    reference.novelty = None
    assert "novelty" not in reference.map(query).obs  # an older one's is not taken for this one's


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"truth": ["cell_type", "cell_class=cell_type"]}, UsageError, "one truth for each label"),
        ({"batch": "typo"}, UsageError, "no column 'typo'"),
        ({"label_map": "map.csv"}, DataError, "cell_type 'b cell' has several names"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(folder, tmp_path, changes, error, words):
    (tmp_path / "map.csv").write_text(
        "source,column,label,cell_type\none,cell_type,b cell,B\ntwo,cell_type,b cell,T\none,cell_type,x,B\n"
    )
    if "label_map" in changes:
        changes = {"label_map": tmp_path / changes["label_map"]}
    options = evaluate.EvaluateOptions(
        folder / "mapped.h5ad", **({"truth": ["cell_type"], "out": tmp_path / "e"} | changes)
    )
    with pytest.raises(error, match=words):
        evaluate.run(options)
    assert not (tmp_path / "e").exists()


def test_names_are_shown_as_they_are(folder, tmp_path):
    hostile = {"B": "T cell [activated]", "T": "[/x] :smile: $\\frac{B$ \x1b[31m", "NK": "plain"}
    mapped = anndata.read_h5ad(folder / "mapped.h5ad")
    for name in ("cell_type", "cell_type_predicted"):
        mapped.obs[name] = mapped.obs[name].astype(str).replace(hostile).astype("category")
    categories = [hostile.get(name, name) for name in mapped.uns["unicoord"]["categories"]["cell_type"]]
    mapped.uns["unicoord"]["categories"]["cell_type"] = categories
    mapped.write_h5ad(tmp_path / "mapped.h5ad")
    evaluate.run(evaluate.EvaluateOptions(tmp_path / "mapped.h5ad", truth=["cell_type"], out=tmp_path / "evaluation"))
    summary = (tmp_path / "evaluation" / "summary.txt").read_text()
    assert "T cell [activated]" in summary and "[/x] :smile:" in summary and "\x1b" not in summary
