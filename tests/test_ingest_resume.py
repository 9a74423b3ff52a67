import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from killed_ingest import SMALL_SHARDS

from unicoord_atlas.errors import UsageError
from unicoord_atlas.jobs import check, ingest_write
from unicoord_atlas.jobs.ingest import IngestOptions, run
from unicoord_atlas.loaders import write_pass
from unicoord_atlas.loaders.store import open_store

CLUSTER = """
import sys
from pathlib import Path
from killed_ingest import SMALL_SHARDS
from unicoord_atlas.jobs import ingest, ingest_write

if __name__ == "__main__":
    ingest_write.MatrixLayout = SMALL_SHARDS
    out = Path(sys.argv[1])
    ingest.run(ingest.IngestOptions([str(out.parent / "*.h5ad")], out, rows_per_block=17, dask="local:2"))
"""


@pytest.fixture
def folder(tmp_path):
    """Two sources with different genes and empty cells, so many that there are 40 shards."""
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        counts = rng.poisson(0.5, (600, 20)).astype(np.float32)
        counts[rng.random(600) < 0.05] = 0
        counts[:3] = counts[-3:] = 0
        cells = pd.DataFrame({"type": rng.choice(["x", "y"], 600)}, index=[f"c{i}" for i in range(600)])
        genes = pd.DataFrame(index=[f"G{i}" for i in rng.permutation(25)[:20]])
        anndata.AnnData(counts, obs=cells, var=genes).write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(ingest_write, "MatrixLayout", SMALL_SHARDS)


def options(folder, out="o.zarr", **more):
    return IngestOptions([str(folder / "*.h5ad")], folder / out, **{"rows_per_block": 17, "threads": 2, **more})


def all_bytes(out):
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("blocks_before", [1, 40, 80])
def test_interrupted_ingest_goes_on_to_the_same_bytes(folder, small_shards, monkeypatch, blocks_before):
    remapped = []
    original = write_pass.remap
    monkeypatch.setattr(write_pass, "remap", lambda *parts: remapped.append(parts) or original(*parts))
    run(options(folder, "whole.zarr"))
    in_whole = len(remapped)
    remapped.clear()

    def stop_at(*parts):
        remapped.append(parts)
        if len(remapped) > blocks_before:
            raise KeyboardInterrupt
        return original(*parts)

    monkeypatch.setattr(write_pass, "remap", stop_at)
    with pytest.raises(KeyboardInterrupt):
        run(options(folder))
    assert not (folder / "o.zarr").exists()

    remapped.clear()
    monkeypatch.setattr(write_pass, "remap", lambda *parts: remapped.append(parts) or original(*parts))
    run(options(folder))
    assert all_bytes(folder / "o.zarr") == all_bytes(folder / "whole.zarr")
    made_again = 8  # blocks of the shard that was not finished, and those being read ahead
    assert in_whole - blocks_before <= len(remapped) <= in_whole - blocks_before + made_again


def test_ingest_killed_at_random_moments_goes_on_to_the_same_bytes(folder):
    program = Path(__file__).with_name("killed_ingest.py")
    done = subprocess.run([sys.executable, program, folder, "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for shuffle, left in zip((False, True), json.loads(done.stdout), strict=True):
        assert all_bytes(folder / f"killed{shuffle}.zarr") == all_bytes(folder / f"whole{shuffle}.zarr")
        files = [whole for status, whole in left if status == -signal.SIGKILL]  # the others came to their end before
        assert len(files) >= 3
        assert files == sorted(files) and files[-1] > 10  # each went on from where the one before it was killed
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("shuffle", [False, True])
def test_dask_workers_write_the_same_bytes(folder, small_shards, shuffle):
    run(options(folder, "threads.zarr", threads=3, shuffle=shuffle))
    run(options(folder, dask="local:2", shuffle=shuffle))
    assert all_bytes(folder / "o.zarr") == all_bytes(folder / "threads.zarr")


@pytest.mark.slow
def test_killed_dask_ingest_goes_on_to_the_same_bytes(folder, small_shards):
    (folder / "program.py").write_text(CLUSTER)
    out = folder / "o.zarr"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, folder / "program.py", out], stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as killed:
        while killed.poll() is None and not list(folder.glob(".o.zarr.partial/X/indices/c/*[0-9]")):
            time.sleep(0.005)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL, killed.stderr.read().decode()
    assert not out.exists()
    run(options(folder))
    run(options(folder, "whole.zarr"))
    assert all_bytes(out) == all_bytes(folder / "whole.zarr")


def test_address_that_is_no_cluster_is_refused(folder):
    with pytest.raises(UsageError, match="--dask 'local:none': write local:N"):
        run(options(folder, dask="local:none"))


def test_shuffled_ingest_holds_the_same_cells_in_the_order_of_its_seed(folder, small_shards):
    run(options(folder, "ordered.zarr", labels=("type",)))
    run(options(folder, labels=("type",), shuffle=True, seed=3))
    ordered, shuffled = anndata.read_zarr(folder / "ordered.zarr"), anndata.read_zarr(folder / "o.zarr")
    order = np.random.default_rng(3).permutation(1200)
    assert list(shuffled.obs_names) == list(ordered.obs_names[order])
    assert (shuffled.X != ordered.X[order]).nnz == 0
    pd.testing.assert_frame_equal(shuffled.obs, ordered.obs.iloc[order])
    stores = [open_store(folder / name) for name in ("ordered.zarr", "o.zarr")]
    assert stores[0].schema == stores[1].schema
    for name in stores[0].normalization.__dataclass_fields__:
        assert np.array_equal(*(getattr(store.normalization, name) for store in stores))
    assert check.run(folder / "o.zarr")["files"] == len(all_bytes(folder / "o.zarr")) - 1
    assert not list(folder.glob(".*"))


def test_what_a_kill_after_the_rename_left_beside_is_removed(folder):
    options = IngestOptions([str(folder / "a.h5ad")], folder / "atlas.zarr")
    run(options)
    left = folder / ".atlas.zarr.scratch" / "obs"
    left.mkdir(parents=True)
    assert run(options)["already_done"]
    assert not left.parent.exists()
