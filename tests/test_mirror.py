"""A run that is mirrored in an object store, by moto's server: what is there when a disk, or a writer, is lost."""

import json
import shutil

import anndata
import boto3
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cells import counts_of_types
from servers import KEYS, moto

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import ConfigError, DataError, UnreachableError, UsageError
from unicoord_atlas.jobs import ingest, train
from unicoord_atlas.loaders import object_mirror, object_open
from unicoord_atlas.loaders.object_mirror import RunMirror
from unicoord_atlas.loaders.object_open import Patience
from unicoord_atlas.training import loop

pytest.importorskip("obstore")
pytest.importorskip("moto")
ADDRESS = "s3://runs/of/mine"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    counts, types = counts_of_types(400, 60)
    obs = pd.DataFrame({"cell_type": np.array(["B", "T", "NK"])[types]}, index=[f"cell{i}" for i in range(400)])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(60)])
    anndata.AnnData(sp.csr_matrix(counts), obs, var).write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    return folder / "atlas.zarr"


@pytest.fixture(scope="module")
def endpoint():
    with pytest.MonkeyPatch.context() as patch, moto() as address:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        yield address


@pytest.fixture
def bucket(endpoint):
    """The bucket, empty."""
    bucket = boto3.resource("s3", endpoint_url=endpoint).create_bucket(Bucket="runs")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


def options(atlas, out, mirror=ADDRESS, epochs=3):
    settings = ['latent.discrete=["cell_type"]', "model.hidden=[16]", f"train.epochs={epochs}", "train.batch_size=32"]
    settings += ["train.precision=fp32", "train.checkpoint_every_steps=4"]
    return train.TrainOptions(atlas, out, RunConfig.load(None, settings), mirror=mirror)


def die_after(monkeypatch, step):
    original = loop.save_checkpoint

    def save(folder, parts, progress):
        if progress.step > step:
            raise KeyboardInterrupt
        return original(folder, parts, progress)

    monkeypatch.setattr(loop, "save_checkpoint", save)


def test_a_run_whose_disk_is_gone_goes_on_to_the_same_weights(atlas, bucket, tmp_path, monkeypatch):
    train.run(options(atlas, tmp_path / "whole", mirror=None))
    with monkeypatch.context() as patch:
        die_after(patch, 16)
        with pytest.raises(KeyboardInterrupt):
            train.run(options(atlas, tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")
    train.run(options(atlas, tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]  # the first came down with the mirror
    for name in ("model/model.safetensors", "model/schema.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    index = json.loads(bucket.Object("of/mine/mirror.json").get()["Body"].read())
    there = {summary.key for summary in bucket.objects.all()}
    assert there == {"of/mine/mirror.json"} | {
        f"of/mine/{facts['crc32c']}/{name}" for name, facts in index["files"].items()
    }
    assert "model/manifest.json" in index["files"] and "run.json" in index["files"]
    train.run(options(atlas, tmp_path / "elsewhere"))  # finished already: it comes down as it is
    for name in index["files"]:
        assert (tmp_path / "elsewhere" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_another_run_is_refused_before_anything_is_written(atlas, bucket, tmp_path):
    train.run(options(atlas, tmp_path / "run", epochs=1))
    with pytest.raises(DataError, match=f"{ADDRESS} is another run \\(train.epochs differ"):
        train.run(options(atlas, tmp_path / "other", epochs=2))
    assert not (tmp_path / "other").exists()
    with pytest.raises(UsageError, match="it is an address in an object store"):
        train.run(options(atlas, tmp_path / "other", mirror=str(tmp_path / "mirror")))
    bucket.put_object(Key="of/else/mirror.json", Body=b'{"step": 1, "files": {"../x": {}}}')
    with pytest.raises(DataError, match="is no mirror of a run"):
        train.run(options(atlas, tmp_path / "other", mirror="s3://runs/of/else"))


def written(folder, **files):
    for name, text in {"last": "1", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def mirror_of(address="s3://runs/x"):
    return RunMirror(address, ["a", "d/"], "d/last")


@pytest.mark.parametrize(
    "index",
    [
        "[" * 100_000,
        "[]",
        '{"step": 1, "files": ["d/last"]}',
        '{"step": 1, "files": {"d/last": 3}}',
        '{"step": 1, "files": {"d/last": {"bytes": 1}}}',
        '{"step": 1, "files": {"d/last": {"crc32c": "../../x"}}}',
        '{"step": 1, "files": {"a": {"crc32c": "00000000"}}}',
    ],
)
def test_an_index_that_does_not_tell_where_files_are_is_no_mirror(bucket, index):
    bucket.put_object(Key="x/mirror.json", Body=index.encode())
    with pytest.raises(DataError, match=r"s3://runs/x/mirror\.json: is no mirror of a run"):
        mirror_of().step()


def test_of_two_writers_one_is_refused(bucket, tmp_path):
    folder = written(tmp_path, **{"a": "1", "d/last": "1"})
    one, other = mirror_of(), mirror_of()
    assert one.step() == other.step() == -1
    one.push_all(folder, 1)
    with pytest.raises(DataError, match="another process mirrors a run there"):
        other.push_all(folder, 5)
    one.push_all(folder, 2)
    late = mirror_of()
    assert late.step() == 2


def test_a_writer_killed_before_the_index_leaves_the_mirror_whole(bucket, tmp_path, monkeypatch):
    folder = written(tmp_path / "run", **{"a": "old", "d/last": "1", "d/.hidden": ""})
    mirror = mirror_of()
    mirror.push_all(folder, 1)
    written(folder, **{"a": "new", "d/last": "2"})
    with monkeypatch.context() as patch:
        patch.setattr(RunMirror, "_put_index", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mirror._send(mirror._snapshot(folder), 2)
    again = mirror_of()
    assert again.step() == 1
    again.pull(tmp_path / "copy")
    assert (tmp_path / "copy/a").read_text() == "old" and (tmp_path / "copy/d/last").read_text() == "1"
    assert not (tmp_path / "copy/d/.hidden").exists()
    (damaged,) = (
        summary
        for summary in bucket.objects.all()
        if summary.key.endswith("/a") and b"old" in summary.get()["Body"].read()
    )
    damaged.put(Body=b"odd")
    with pytest.raises(DataError, match="has a wrong checksum"):
        again.pull(tmp_path / "copy2")


def test_a_server_that_is_away_is_told_and_tried_again(bucket, tmp_path, monkeypatch, capsys):
    folder = written(tmp_path, **{"a": "1", "d/last": "1"})
    monkeypatch.setattr(object_mirror, "READING", Patience(0.3))
    monkeypatch.setattr(object_open, "OPENING", Patience(0.3))
    mirror = mirror_of()
    assert mirror.step() == -1
    real = mirror._objects
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        mirror._objects = object_open.open_objects("s3://runs/x", Patience(0.3))
    mirror.push(folder, 1)
    mirror.wait()
    assert "the next checkpoint is mirrored again" in capsys.readouterr().err
    with pytest.raises(UnreachableError):
        mirror.push_all(folder, 1)
    mirror._objects = real
    mirror.push_all(folder, 1)
    assert mirror_of().step() == 1


def test_a_bucket_that_may_not_be_written_is_told_at_once(bucket, tmp_path):
    folder = written(tmp_path, **{"a": "1", "d/last": "1"})
    with pytest.raises((ConfigError, DataError), match="there is no bucket 'none'"):
        mirror_of("s3://none/x").push_all(folder, 1)
