import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import finish, random_counts, small_layout, write_rows, write_store
from zarr.codecs import ZstdCodec

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import ConfigError, DataError, UsageError
from unicoord_atlas.jobs import check
from unicoord_atlas.jobs.workdir import finished_directory
from unicoord_atlas.loaders import shard_reader
from unicoord_atlas.loaders.store import CsrBuffer, open_store
from unicoord_atlas.loaders.zarr_layout import INDPTR, MatrixLayout, count_dtype, index_dtype
from unicoord_atlas.loaders.zarr_writer import AtlasWriter, create_matrix, is_whole

NUM_ROWS, NUM_GENES = 300, 120


@pytest.fixture(scope="module")
def counts():
    return random_counts(NUM_ROWS, NUM_GENES)


@pytest.fixture(scope="module")
def atlas(counts, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("atlas") / "atlas.zarr", counts)


@pytest.fixture
def copy(counts, tmp_path):
    return write_store(tmp_path / "atlas.zarr", counts)


def assert_rows_equal(read, expected):
    np.testing.assert_array_equal(read.indptr, expected.indptr)
    np.testing.assert_array_equal(read.indices, expected.indices)
    np.testing.assert_array_equal(read.data, expected.data)


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_anndata_reads_what_was_written(atlas, counts):
    read = anndata.read_zarr(atlas)
    assert (read.X != counts).nnz == 0
    assert (read.X.data.dtype, read.X.indices.dtype) == (np.uint16, np.uint16)
    assert read.obs["cell_type"].cat.categories.tolist() == ["B cell", "T cell"]
    assert read.obs["cell_type"].isna().sum() == 100
    assert read.obs_names[3] == "one:cell-3" and read.var_names[3] == "gene-3"


def test_anndata_reads_it_lazily(atlas, counts):
    pytest.importorskip("xarray")
    lazy = anndata.experimental.read_lazy(atlas)
    assert (lazy.X[100:140].compute() != counts[100:140]).nnz == 0
    assert lazy.obs["size_factor"][5] == 5.5


@pytest.mark.filterwarnings("ignore")  # scanpy's of empty cells, numba's and umap's own
def test_scanpy_computes_on_it(atlas, counts):
    read, truth = anndata.read_zarr(atlas), anndata.AnnData(counts.copy())
    for cells in (read, truth):
        cells.X = cells.X.astype(np.float32)
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
        sc.pp.pca(cells, n_comps=5)
        sc.pp.neighbors(cells, n_neighbors=5, method="gauss")  # umap would compile for 10 s
    np.testing.assert_allclose(read.obsm["X_pca"], truth.obsm["X_pca"], rtol=1e-4, atol=1e-4)
    assert read.obsp["connectivities"].shape == (NUM_ROWS, NUM_ROWS)


ROW_RANGES = st.lists(st.tuples(st.integers(0, NUM_ROWS), st.integers(0, 60)), max_size=9)


@given(ROW_RANGES, st.booleans())
def test_ranges_of_rows_come_in_the_order_asked(atlas, counts, ranges, export_is_there):
    ranges = np.array([(start, min(start + length, NUM_ROWS)) for start, length in ranges], np.int64).reshape(-1, 2)
    rows = np.concatenate([np.arange(0), *(np.arange(start, stop) for start, stop in ranges)]).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        if not export_is_there:
            patch.setattr(shard_reader, "_blosc_get_item", lambda: None)
        assert_rows_equal(open_store(atlas).read_ranges(ranges, CsrBuffer()), counts[rows])


@pytest.mark.parametrize("shards", [None, (800,)])
def test_other_codecs_are_read_through_zarr(counts, tmp_path, shards):
    with finished_directory(tmp_path / "atlas.zarr", [], {}) as partial:
        write_rows(partial, small_layout(counts), counts)
        finish(partial, small_layout(counts))
        data = zarr.open_array(partial / "X/data")[:]
        group = zarr.open_group(partial, mode="a", use_consolidated=False)
        group.create_array("X/data", data=data, chunks=(200,), shards=shards, compressors=[ZstdCodec()], overwrite=True)
        (partial / "zarr.json").write_text(
            json.dumps({**json.loads((partial / "zarr.json").read_text()), "consolidated_metadata": None})
        )
    read = open_store(tmp_path / "atlas.zarr").read_ranges(np.array([[150, 290], [0, 60]]))
    assert_rows_equal(read, counts[np.r_[150:290, 0:60]])


@pytest.mark.parametrize("export_is_there", [True, False])
def test_an_index_past_the_last_gene_is_refused_wherever_it_is_read(counts, tmp_path, monkeypatch, export_is_there):
    if not export_is_there:
        monkeypatch.setattr(shard_reader, "_blosc_get_item", lambda: None)
    narrow = replace(small_layout(counts), num_genes=NUM_GENES - 10)
    with finished_directory(tmp_path / "atlas.zarr", [], {}) as partial:
        write_rows(partial, narrow, counts)
        finish(partial, narrow)
    store = open_store(tmp_path / "atlas.zarr")
    beyond = np.maximum.reduceat(np.append(counts.indices, 0), counts.indptr[:-1]) >= narrow.num_genes
    beyond &= np.diff(counts.indptr) > 0
    sound = np.flatnonzero(~beyond)
    assert_rows_equal(store.read_ranges(np.stack([sound, sound + 1], axis=1)), counts[sound])
    for row in np.flatnonzero(beyond)[:20].tolist():
        with pytest.raises(DataError, match=r"X/indices/c/\d+ \(shard \d+, rows \d+:\d+\): .* not in 0\.\.109"):
            store.read_ranges(np.array([[row, row + 1]]))


def test_buffer_is_used_again(atlas, counts):
    store, buffer = open_store(atlas), CsrBuffer()
    first = store.read_ranges(np.array([[0, 200]]), buffer)
    second = store.read_ranges(np.array([[50, 150]]), buffer)
    assert np.shares_memory(first.data, second.data)
    assert_rows_equal(second, counts[50:150])


def test_store_tells_its_facts(atlas, counts):
    store = pickle.loads(pickle.dumps(open_store(atlas)))
    assert (store.n_obs, store.n_vars, store.indptr[-1]) == (NUM_ROWS, NUM_GENES, counts.nnz)
    assert store.schema.label("cell_type").categories == ("B cell", "T cell")
    assert store.normalization.min_cells == 3 and store.normalization.highly_expressed_g.nonzero()[0].tolist() == [1]
    assert store.size_factors[7] == 7.5
    assert store.obs(["cell_type"]).equals(anndata.read_zarr(atlas).obs[["cell_type"]])
    assert store.obs().columns.tolist() == ["source", "cell_type", "size_factor"]
    with pytest.raises(UsageError, match="no column 'organ'; it has: source, cell_type, size_factor"):
        store.obs(["organ"])
    with pytest.raises(UsageError, match="obsm has no 'X_pca'; it has: nothing"):
        store.obsm("X_pca")


@pytest.mark.parametrize("shape", [(0, 5), (4, 5), (1, 70_000)])
def test_odd_shapes_survive(tmp_path, shape):
    counts = sp.csr_matrix(shape) if shape[0] != 1 else sp.csr_matrix(([3, 70_001], [[0, 0], [5, 69_999]]), shape)
    store = open_store(write_store(tmp_path / "atlas.zarr", counts))
    assert_rows_equal(store.read_ranges(np.array([[0, shape[0]]])), counts)
    assert (anndata.read_zarr(tmp_path / "atlas.zarr").X != counts).nnz == 0
    assert open_store(tmp_path / "atlas.zarr").n_obs == shape[0]


def test_types_are_the_smallest_that_fit():
    assert [count_dtype(n).name for n in (255, 256, 65_535, 65_536)] == ["uint8", "uint16", "uint16", "uint32"]
    assert [index_dtype(n).name for n in (65_535, 65_536)] == ["uint16", "int32"]
    with pytest.raises(DataError, match="is X really counts"):
        count_dtype(2**32)


@settings(max_examples=8)
@given(st.integers(0, NUM_ROWS), st.integers(1, 90))
def test_killed_writer_goes_on_to_the_same_bytes(atlas, counts, tmp_path_factory, stop, rows_per_block):
    out, layout = tmp_path_factory.mktemp("resumed") / "atlas.zarr", small_layout(counts)
    config = {"inputs": [], "config": {}, "resume": True, "counts": {"cells": NUM_ROWS}}
    with pytest.raises(KeyboardInterrupt), finished_directory(out, **config) as partial:
        write_rows(partial, layout, counts, rows_per_block, stop)
        raise KeyboardInterrupt  # after the last row
    with finished_directory(out, **config) as partial:
        whole = sum(is_whole(partial, layout, shard) for shard in range(layout.num_shards))
        assert whole >= counts.indptr[stop] // layout.shard_entries
        write_rows(partial, layout, counts)
        finish(partial, layout)
    assert files(out) == files(atlas)


def test_writers_of_disjoint_shards_make_the_same_store(atlas, counts, tmp_path):
    layout = small_layout(counts)
    with finished_directory(tmp_path / "atlas.zarr", [], {}, counts={"cells": NUM_ROWS}) as partial:
        for first, stop in ((1, 3), (3, layout.num_shards), (0, 1)):
            with AtlasWriter(partial, layout, first, stop) as writer:
                rows = counts[writer.next_row : writer.stop_row]
                writer.write(CsrBlock(rows.indptr.astype(np.int64), rows.indices, rows.data))
        finish(partial, layout)
    assert files(tmp_path / "atlas.zarr") == files(atlas)


def test_writer_refuses_rows_that_differ_from_the_first_pass(counts, tmp_path):
    rows = counts[:10].copy()
    block = CsrBlock(rows.indptr.astype(np.int64), rows.indices, rows.data)
    with (
        pytest.raises(DataError, match=r"rows 0:10 differ"),
        AtlasWriter(tmp_path / "a", small_layout(counts)) as writer,
    ):
        writer.write(CsrBlock(block.indptr + np.arange(11), block.indices, block.data))
    with (
        pytest.raises(DataError, match=r"rows 0:10 hold 70000"),
        AtlasWriter(tmp_path / "b", small_layout(counts)) as writer,
    ):
        writer.write(CsrBlock(block.indptr, block.indices, np.where(block.data > 0, 70_000, 0)))
    with pytest.raises(DataError, match=r"rows 10:300 were never written"):
        with AtlasWriter(tmp_path / "c", small_layout(counts)) as writer:
            writer.write(block)


def test_missing_shard_names_its_rows(copy):
    (copy / "X/data/c/1").unlink()
    with pytest.raises(DataError, match=r"X/data/c/1 \(shard 1, rows \d+:\d+\) is missing"):
        open_store(copy)


def test_truncated_shard_names_its_rows(copy):
    shard = copy / "X/indices/c/0"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"X/indices/c/0 \(shard 0, rows 0:\d+\) has \d+ bytes, not \d+"):
        open_store(copy)


@given(st.data())
@settings(max_examples=60)
def test_changed_bytes_never_pass_the_check_nor_crash_the_reader(atlas, counts, tmp_path_factory, data):
    shard = atlas / "X/data/c/1"
    whole = shard.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    try:
        shard.write_bytes(
            whole[:position] + bytes([whole[position] ^ data.draw(st.integers(1, 255))]) + whole[position + 1 :]
        )
        with pytest.raises(DataError, match=r"X/data/c/1 \(shard 1, rows \d+:\d+\) has a wrong checksum"):
            check.run(atlas)
        try:
            open_store(atlas).read_ranges(np.array([[0, NUM_ROWS - 1], [100, 103]]))
        except DataError as error:
            assert "X/data/c/1 (shard 1, rows" in str(error)
    finally:
        shard.write_bytes(whole)


def test_check_passes_a_whole_store(atlas):
    assert check.run(atlas)["files"] > 20


def test_forked_process_is_refused_instead_of_hanging(atlas):
    store = open_store(atlas)
    store.read_ranges(np.array([[0, 5]]))
    child = os.fork()
    if child == 0:
        try:
            store.read_ranges(np.array([[0, 5]]))
        except ConfigError as error:
            os._exit("spawn" in str(error))
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_store_of_another_format_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(DataError, match="format version 99, this program reads 1"):
        open_store(copy)


def test_store_that_is_being_written_is_refused(counts, tmp_path):
    with finished_directory(tmp_path / "atlas.zarr", [], {}) as partial:
        write_rows(partial, small_layout(counts), counts)
        with pytest.raises(DataError, match=r"still being written or was cut off \(\.atlas\.zarr\.partial\)"):
            open_store(tmp_path / "atlas.zarr")
        with pytest.raises(DataError, match=r"has no manifest\.json"):
            open_store(partial)
    with pytest.raises(DataError, match="no such store"):
        open_store(tmp_path / "other.zarr")


def mapped_kilobytes(folder):
    """Pages of files of a folder that this process has mapped, by what Linux counts."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            inside = str(folder) in line
        elif inside and first == "Rss:":
            total += int(line.split()[1])
    return total


def test_pages_that_were_read_are_let_go(tmp_path, monkeypatch):
    counts = random_counts(20_000, 300)
    path = write_store(tmp_path / "atlas.zarr", counts, inner_chunk=20_000, chunks_per_shard=8)
    whole = np.array([[0, counts.shape[0]]])
    store = open_store(path)
    assert_rows_equal(store.read_ranges(whole), counts)
    kept = mapped_kilobytes(path)
    assert kept > 500
    monkeypatch.setattr(shard_reader, "_LET_GO_BYTES", 100_000)
    assert_rows_equal(store.read_ranges(whole), counts)
    assert mapped_kilobytes(path) < kept / 3
    assert_rows_equal(store.read_ranges(whole), counts)


def test_an_indptr_that_a_full_disk_cut_short_is_written_anew(tmp_path):
    layout = MatrixLayout(np.arange(0, 3_000_001, 10), 50, np.dtype(np.uint8))
    create_matrix(tmp_path / "atlas.zarr", layout)
    chunks = sorted(path for path in (tmp_path / "atlas.zarr" / INDPTR / "c").rglob("*") if path.is_file())
    assert len(chunks) > 1
    chunks[-1].unlink()  # reads as 0
    create_matrix(tmp_path / "atlas.zarr", layout)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "atlas.zarr" / INDPTR)[:], layout.indptr)
