"""The Jobs of the local overlay are run, index by index, as processes; then with faults, restarted as on a cluster."""

import json
import shutil
import signal
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from job_controller import ROOT, Fault, JobController, JobFailed, kustomize
from manifests import steps_of_readme

from unicoord_atlas.config import RunConfig
from unicoord_atlas.jobs import (
    build_graph,
    demo,
    export_latents,
    export_reference,
    ingest,
    map_query,
    select_gene_sets,
    train,
)
from unicoord_atlas.training.metrics import read_metrics


def namespace(folder: Path, like: Path | None = None, without: tuple[str, ...] = ()) -> JobController:
    """A namespace whose claim holds the files, or what another one's holds but for some outputs."""
    (folder / "data" / "sources").mkdir(parents=True)
    if like is not None:
        shutil.rmtree(folder / "data")
        shutil.copytree(like, folder / "data", ignore=lambda *_: [*without, *(f".{name}.*" for name in without)])
    return JobController(kustomize(ROOT / "k8s" / "overlays" / "local"), folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Everything made by one process, from 560 real cells."""
    data = tmp_path_factory.mktemp("alone")
    demo._write_cells(data)
    (data / "sources").mkdir()
    (data / "reference_cells.h5ad").rename(data / "sources" / "reference_cells.h5ad")
    (data / "held_out_cells.h5ad").rename(data / "query.h5ad")
    ingest.run(ingest.IngestOptions([str(data / "sources")], data / "atlas.zarr", labels=["cell_type"]))
    build_graph.run(build_graph.BuildGraphOptions(data / "atlas.zarr"))
    config = RunConfig.load(ROOT / "k8s" / "overlays" / "local" / "run.toml", [])
    train.run(train.TrainOptions(data / "atlas.zarr", data / "run", config))
    latents = data / "latents.zarr"
    export_latents.run(export_latents.ExportLatentsOptions(data / "atlas.zarr", data / "run", latents))
    export_reference.run(export_reference.ExportReferenceOptions(data / "run", data / "reference", latents))
    map_query.run(map_query.MapQueryOptions(data / "query.h5ad", data / "reference", data / "mapped.h5ad"))
    return data


OUTPUTS = ("atlas.zarr", "run", "latents.zarr", "reference", "mapped.h5ad")


@pytest.fixture(scope="module")
def cluster(alone, tmp_path_factory) -> JobController:
    """Everything made by the Jobs, in the order of k8s/README.md."""
    controller = namespace(tmp_path_factory.mktemp("cluster"), alone, OUTPUTS)
    for name in steps_of_readme():
        codes = controller.run(name)
        assert all(set(each) <= {0} for each in codes.values()), (name, codes)
    return controller


def same_mapped(one: anndata.AnnData, other: anndata.AnnData) -> None:
    pd.testing.assert_frame_equal(one.obs, other.obs, rtol=1e-5, atol=1e-5)
    assert set(one.obsm) == set(other.obsm)
    for key in one.obsm:
        np.testing.assert_allclose(one.obsm[key], other.obsm[key], rtol=1e-5, atol=1e-5)


def test_ingest_and_graph_are_those_of_one_process(alone, cluster):
    files = [json.loads((data / "atlas.zarr" / "manifest.json").read_text())["files"] for data in (alone, cluster.data)]
    assert files[0] == files[1]  # sizes and checksums of all that is in the store


def test_two_indexes_train_as_well_as_one_process(alone, cluster):
    """Not the same batches: each index reads its own blocks.  tests/test_ranks.py compares on the same ones."""
    one, two = (validation(data / "run") for data in (alone, cluster.data))
    assert list(two) == list(one)
    assert list(two.values()) == pytest.approx(list(one.values()), rel=0.05)
    one, two = (anndata.read_h5ad(data / "mapped.h5ad").obs for data in (alone, cluster.data))
    right = [(obs["cell_type"].astype(str) == obs["cell_type_predicted"].astype(str)).mean() for obs in (one, two)]
    assert right[0] > 0.5 and abs(right[0] - right[1]) < 0.15


def test_parts_give_what_one_process_does_with_that_model(cluster, tmp_path):
    data = cluster.data
    export_latents.run(
        export_latents.ExportLatentsOptions(data / "atlas.zarr", data / "run", tmp_path / "latents.zarr")
    )
    same_mapped(anndata.read_zarr(data / "latents.zarr"), anndata.read_zarr(tmp_path / "latents.zarr"))
    manifests = [json.loads((f / "latents.zarr" / "manifest.json").read_text()) for f in (data, tmp_path)]
    assert manifests[0]["inputs"] == manifests[1]["inputs"]
    map_query.run(map_query.MapQueryOptions(data / "query.h5ad", data / "reference", tmp_path / "mapped.h5ad"))
    same_mapped(*(anndata.read_h5ad(folder / "mapped.h5ad") for folder in (data, tmp_path)))


def test_a_job_that_is_done_is_done_at_once(cluster):
    """Made again, as by a user who is not sure: every index finds the work done."""
    manifest = cluster.data / "latents.zarr" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert cluster.run("export-latents") == {0: [0], 1: [0], 2: [0]}
    assert manifest.stat().st_mtime_ns == before


def there(folder: Path, pattern: str):
    return lambda: any(folder.glob(pattern))


def validation(run: Path) -> dict[int, float]:
    """Validation loss after each epoch; an epoch that is told twice would be lost in it, so it is refused."""
    entries = read_metrics(run / "metrics.jsonl")
    found = {entry["epoch"]: entry["validation_loss"] for entry in entries}
    assert len(found) == len(entries)
    return found


@pytest.mark.parametrize(
    ("indexes", "number", "codes"),
    [
        pytest.param((1,), signal.SIGKILL, {137, 75}, id="an index"),
        pytest.param((0, 1), signal.SIGTERM, {143}, id="all, gently"),
        pytest.param((0,), signal.SIGKILL, {137, 75}, id="the rendezvous host", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_after(cluster, tmp_path, indexes, number, codes):
    """Killed after some steps: the others say 75, all meet again, and the run ends where an undisturbed one does.

    To the bit, whichever of them was lost.
    """
    controller = namespace(tmp_path, cluster.data, OUTPUTS[1:])
    fault = Fault(indexes, there(controller.data, "run/checkpoints/latest.json"), number)
    ended = controller.run("train", fault)
    assert all(each[-1] == 0 for each in ended.values())
    assert {code for each in ended.values() for code in each} - {0} <= codes
    assert len(ended[indexes[0]]) > 1
    assert "going on after step" in controller.log("train", 0) + controller.log("train", 1)
    assert validation(controller.data / "run") == validation(cluster.data / "run")


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(1, id="a worker"),
        pytest.param(0, id="the scheduler", marks=pytest.mark.slow),
    ],
)
def test_ingest_goes_on_without(cluster, tmp_path, index):
    controller = namespace(tmp_path, cluster.data, OUTPUTS)
    ended = controller.run("ingest", Fault((index,), there(controller.data, ".atlas.zarr.partial")))
    assert ended[index][0] == 137 and ended[0][-1] == 0
    assert set(ended[1]) <= {137, 75, 0}
    named = [
        json.loads((data / "atlas.zarr" / "manifest.json").read_text()) for data in (controller.data, cluster.data)
    ]
    written = [{name: entry for name, entry in each["files"].items() if name.startswith("X/")} for each in named]
    assert written[0] == written[1] and len(written[0]) > 3


def test_an_export_goes_on_without_an_index(cluster, tmp_path):
    controller = namespace(tmp_path, cluster.data, OUTPUTS[2:])
    ended = controller.run("export-latents", Fault((2,), there(controller.data, ".latents.zarr.*.parts")))
    assert ended == {0: [0], 1: [0], 2: [137, 0]}
    same_mapped(*(anndata.read_zarr(each.data / "latents.zarr") for each in (controller, cluster)))


def test_bad_data_ends_a_job_at_the_first_try(cluster, tmp_path):
    """65: the Job fails, and says why; no index is tried again."""
    controller = namespace(tmp_path, cluster.data, OUTPUTS[2:])
    (controller.data / "run" / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(JobFailed, match=r"exited 65(.|\n)*model\.safetensors"):
        controller.run("export-latents")


@pytest.mark.slow
def test_gene_sets_are_those_of_one_process(cluster, tmp_path):
    """Scored by the workers of a Job, whose scheduler is index 0."""
    controller = namespace(tmp_path, cluster.data, OUTPUTS[1:])
    one = shutil.copytree(cluster.data / "atlas.zarr", tmp_path / "alone" / "atlas.zarr")
    genes, draw = anndata.read_zarr(one).var_names, np.random.default_rng(0)
    sets = "".join("\t".join([f"set {i}", "", *draw.choice(genes, 60, replace=False)]) + "\n" for i in range(40))
    for folder in (controller.data, one.parent):
        (folder / "gene_sets.gmt").write_text(sets)
    options = select_gene_sets.SelectGeneSetsOptions(one, one.parent / "gene_sets.gmt", "cell_type", p=1.0)
    select_gene_sets.run(options)
    controller.args("select-gene-sets").extend(["--p", "1"])  # sets of chance
    for step in range(2):  # the second finds all there
        codes = controller.run("select-gene-sets")
        assert codes[0] == [0] and set(codes[1]) <= {0}, step
    both = [anndata.read_zarr(path).obsm["X_gene_sets"] for path in (one, controller.data / "atlas.zarr")]
    pd.testing.assert_frame_equal(*both)
