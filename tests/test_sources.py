import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from unicoord_atlas.errors import DataError, UsageError
from unicoord_atlas.loaders import chunked, row_matrix
from unicoord_atlas.loaders.chunked import open_stretch
from unicoord_atlas.loaders.labels import as_texts
from unicoord_atlas.loaders.sources import content_of, find_sources, open_source

CELLS, GENES = 37, 23


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return rng.poisson(0.7, (CELLS, GENES)).astype(np.float32)


def cells(matrix, **parts):
    obs = pd.DataFrame(
        {"type": ["B", "T", None] * 12 + ["B"], "n": range(CELLS)}, index=[f"c{i}" for i in range(CELLS)]
    )
    var = pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(GENES)]}, index=[f"G{i}" for i in range(GENES)])
    return anndata.AnnData(matrix, obs=obs, var=var, **parts)


def dense(source, rows_per_block, start=0, stop=None):
    blocks = list(source.blocks(rows_per_block, start, stop))
    assert all(block.num_rows <= rows_per_block for block in blocks)
    parts = [sp.csr_array((b.data, b.indices, b.indptr), shape=(b.num_rows, len(source.var))).toarray() for b in blocks]
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_blocks_of_h5ad_equal_the_matrix(tmp_path, counts, form, dtype):
    path = tmp_path / "cells.h5ad"
    cells(form(counts.astype(dtype))).write_h5ad(path, compression="gzip")
    with open_source(path) as source:
        assert (source.name, source.n_obs, source.matrix, source.is_counts) == ("cells", CELLS, "X", True)
        assert list(source.var.index) == [f"G{i}" for i in range(GENES)]
        assert list(source.obs.index) == [f"c{i}" for i in range(CELLS)]
        for rows_per_block in (1, 5, 100):
            assert (dense(source, rows_per_block) == counts).all()
        assert (dense(source, 4, 3, 17) == counts[3:17]).all()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_blocks_of_zarr_equal_the_matrix(tmp_path, counts, form, zarr_format):
    path = tmp_path / "cells.zarr"
    with anndata.settings.override(zarr_write_format=zarr_format):
        cells(form(counts)).write_zarr(path)
    with open_source(path) as source:
        assert (dense(source, 10) == counts).all()
        assert list(source.obs["n"]) == list(range(CELLS))


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True}, {"compression": "lzf"}, {"compression": "gzip", "shuffle": True}]
)
def test_every_filter_of_hdf5_is_read(tmp_path, counts, options):
    path = tmp_path / "cells.h5ad"
    matrix = sp.csr_matrix(counts)
    cells(matrix).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices"):
            values = file[f"X/{name}"][:]
            del file[f"X/{name}"]
            file["X"].create_dataset(name, data=values, chunks=(13,), **options)
    with open_source(path) as source:
        assert (dense(source, 6) == counts).all()


@pytest.mark.parametrize("layout", ["contiguous", "chunked", "compact", "big-endian", "user block", "never written"])
def test_every_plain_layout_of_hdf5_is_read(tmp_path, layout):
    values = np.arange(1, 101, dtype=">i4" if layout == "big-endian" else np.int32)
    path = tmp_path / "values.h5"
    with h5py.File(path, "w", userblock_size=512 if layout == "user block" else 0) as file:
        if layout == "compact":
            created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            created.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple((100,))
            h5py.h5d.create(file.id, b"values", h5py.h5t.NATIVE_INT32, space, created)
        else:
            chunks = None if layout == "contiguous" else (13,)
            file.create_dataset("values", (100,), values.dtype, chunks=chunks, fillvalue=7)
        if layout == "never written":
            values[:] = 7
            values[13:26] = file["values"][13:26] = 5
        else:
            file["values"][:] = values
    with h5py.File(path, "r") as file:
        stretch = open_stretch(file["values"])
        for start, stop in ((0, 100), (12, 27), (13, 13), (50, 51), (99, 100)):
            read = stretch.read(start, stop)
            assert read.dtype == values.dtype and read.tolist() == values[start:stop].tolist()


def test_large_chunks_are_decoded_once(tmp_path, counts, monkeypatch):
    monkeypatch.setattr("unicoord_atlas.loaders.chunked._LARGE_CHUNK", 8)
    path = tmp_path / "cells.h5ad"
    cells(sp.csr_matrix(counts)).write_h5ad(path, compression="gzip")
    with open_source(path) as source:
        decoded = []
        stretch = source._rows._data
        inflate = stretch._decode
        monkeypatch.setattr(stretch, "_decode", lambda number: decoded.append(number) or inflate(number))
        assert (dense(source, 3) == counts).all()
    assert sorted(decoded) == sorted(set(decoded))


def test_kept_chunks_are_bounded_over_all_sources(tmp_path, counts, monkeypatch):
    """Some of each of an atlas's hundred sources would add up."""
    monkeypatch.setattr(chunked, "_KEPT_BYTES", 0)
    for number in range(12):
        cells(sp.csr_matrix(counts)).write_h5ad(tmp_path / f"{number}.h5ad", compression="gzip")
    opened = [open_source(tmp_path / f"{number}.h5ad") for number in range(12)]
    for source in opened:
        np.testing.assert_array_equal(dense(source, 5), counts)
        assert len(chunked._KEPT) <= chunked._KEPT_AT_LEAST
    assert chunked._KEPT._bytes == sum(chunk.nbytes for chunk in chunked._KEPT._chunks.values()) > 0


@pytest.mark.parametrize("entries", [1, 20, 64, 10_000])
def test_blocks_are_bounded_in_entries(tmp_path, counts, monkeypatch, entries):
    monkeypatch.setattr(row_matrix, "ENTRIES_PER_BLOCK", entries)
    for form in (sp.csr_matrix, sp.csc_matrix, np.asarray):
        path = tmp_path / f"{form.__name__}.h5ad"
        cells(form(counts)).write_h5ad(path)
        with open_source(path) as source:
            assert (dense(source, 30) == counts).all()
            held = [(b.num_rows, len(b.data)) for b in source.blocks(30)]
            assert all(size <= entries or rows == 1 for rows, size in held)


def write_tenx(path, counts, version):
    matrix = sp.csr_matrix(counts.astype(np.int32))
    names = {"name": [f"G{i}" for i in range(GENES)], "id": [f"ENSG{i:011d}" for i in range(GENES)]}
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array([GENES, CELLS], np.int32)
        group["barcodes"] = np.array([f"c{i}" for i in range(CELLS)], "S")
        if version == 3:
            names |= {
                "feature_type": ["Gene Expression"] * (GENES - 1) + ["Antibody Capture"],
                "genome": ["GRCh38"] * GENES,
            }
            for name, values in names.items():
                group[f"features/{name}"] = np.array(values, "S")
        else:
            group["gene_names"], group["genes"] = np.array(names["name"], "S"), np.array(names["id"], "S")


@pytest.mark.parametrize("version", [2, 3])
def test_10x_files_are_read(tmp_path, counts, version):
    path = tmp_path / "filtered.h5"
    write_tenx(path, counts, version)
    with open_source(path) as source:
        assert (dense(source, 7) == counts).all()
        assert list(source.var.index) == [f"G{i}" for i in range(GENES)]
        assert source.var["gene_ids"].iloc[-1] == f"ENSG{GENES - 1:011d}"
        assert list(source.obs.index) == [f"c{i}" for i in range(CELLS)]
        assert ("feature_types" in source.var) == (version == 3)


def test_10x_file_of_two_genomes_asks_for_one(tmp_path, counts):
    path = tmp_path / "both.h5"
    write_tenx(path, counts, 2)
    with h5py.File(path, "r+") as file:
        file.copy("GRCh38", "mm10")
        del file["mm10/barcodes"]  # in a filtered file each genome has its own
        file["mm10/barcodes"] = [f"mouse{number}".encode() for number in range(len(counts))]
    with pytest.raises(UsageError, match=r"both.h5: holds genomes GRCh38, mm10; choose by --layer"):
        open_source(path)
    with open_source(path, layer="mm10") as source:
        assert (dense(source, 7) == counts).all()
        assert source.obs.index[0] == "mouse0"


@pytest.mark.parametrize(
    ("build", "options", "chosen"),
    [
        (lambda c: cells(c), {}, "X"),
        (lambda c: cells(np.log1p(c), layers={"counts": c}), {}, "layers/counts"),
        (lambda c: with_raw(np.log1p(c), c), {}, "raw"),
        (lambda c: with_raw(c, c), {"layer": "raw"}, "raw"),
        (lambda c: cells(c, layers={"spliced": c}), {"layer": "spliced"}, "layers/spliced"),
        (lambda c: cells(np.log1p(c)), {"input": "lognorm"}, "X"),
        (lambda c: with_raw(np.log1p(c) - 0.3, np.log1p(c)), {"input": "lognorm"}, "raw"),
    ],
)
def test_matrix_is_chosen(tmp_path, counts, build, options, chosen):
    path = tmp_path / "cells.h5ad"
    build(counts).write_h5ad(path)
    with open_source(path, **options) as source:
        assert source.matrix == chosen
        assert np.allclose(dense(source, 10), counts if options.get("input") != "lognorm" else np.log1p(counts))


def with_raw(matrix, raw):
    table = cells(raw)
    table.raw = table
    table = table[:, : GENES - 4].copy()
    table.X = matrix[:, : GENES - 4]
    return table


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (lambda c: cells(np.log1p(c)), {}, "X holds log-normalized .*; --layer NAME or ingest with --input lognorm"),
        (lambda c: cells(c * 0.5 - 1, layers={"umi": c}), {}, r"X holds scaled values; --layer NAME \(one of umi\)"),
        (lambda c: cells(c), {"input": "lognorm"}, "X holds counts; --layer NAME or ingest without --input lognorm"),
        (lambda c: cells(c), {"layer": "umi"}, "--layer 'umi' is not there; it has: X"),
        (lambda c: cells(None), {}, "it has no X and no raw"),
    ],
)
def test_file_without_the_wanted_matrix_is_refused_with_the_way_out(tmp_path, counts, build, options, message):
    path = tmp_path / "cells.h5ad"
    build(counts).write_h5ad(path)
    with pytest.raises((DataError, UsageError), match=message) as error:
        open_source(path, **options)
    assert str(path) in str(error.value)


def test_old_encodings_are_read(tmp_path, counts):
    """As anndata 0.6 wrote: compound tables, categories in uns, h5sparse attributes, raw.X at the root."""
    path = tmp_path / "old.h5ad"
    matrix = sp.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        for place in ("X", "raw.X"):
            group = file.create_group(place)
            group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", counts.shape
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(matrix, name)
        obs = [(f"c{i}".encode(), i % 2) for i in range(CELLS)]
        file["obs"] = np.array(obs, [("index", "S5"), ("type", "i1")])
        file["uns/type_categories"] = np.array([b"B", b"T"], "S1")
        for place in ("var", "raw.var"):
            file[place] = np.array([(f"G{i}".encode(),) for i in range(GENES)], [("index", "S5")])
    for layer in (None, "raw"):
        with open_source(path, layer=layer) as source:
            assert (dense(source, 10) == counts).all()
            assert list(source.var.index) == [f"G{i}" for i in range(GENES)]
            assert list(source.obs["type"]) == [("B", "T")[i % 2] for i in range(CELLS)]


def test_content_is_seen_from_values():
    assert content_of(np.array([0.0, 3.0, np.nan])) == "counts"
    assert content_of(np.array([], np.float32)) == "counts"
    assert content_of(np.array([0.5, 3.0])) == "log-normalized values"
    assert content_of(np.array([0.5, -3.0])) == "scaled values"


def truncated(path, counts):
    cells(counts).write_h5ad(path)
    path.write_bytes(path.read_bytes()[:-2000])


def damaged_chunk(path, counts):
    matrix = sp.csr_matrix(counts)
    cells(matrix).write_h5ad(path, compression="gzip")
    with h5py.File(path, "r+") as file:
        place = file["X/data"].id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[place.byte_offset + 8 : place.byte_offset + 40] = b"\xff" * 32
    path.write_bytes(raw)


def wild_index(path, counts):
    cells(sp.csr_matrix(counts)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][0] = GENES + 7


def short_indptr(path, counts):
    cells(sp.csr_matrix(counts)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["X/indptr"][-1] += 5


def not_anndata(path, counts):
    with h5py.File(path, "w") as file:
        file["weights"] = counts


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "HDF5 cannot be read"),
        (damaged_chunk, "X.*cannot be read"),
        (wild_index, "a column index is outside 0..22"),
        (short_indptr, "indptr, indices and data do not fit together"),
        (not_anndata, "is no AnnData: obs and var missing at its root, which holds weights"),
        (lambda path, _: path.write_text("hello"), "HDF5 cannot be read"),
        (lambda path, _: path.mkdir(), "is a folder without Zarr metadata"),
        (lambda path, _: None, "no such file"),
    ],
)
def test_damaged_files_are_refused_in_one_line_that_names_them(tmp_path, counts, spoil, message):
    path = tmp_path / "bad.h5ad"
    spoil(path, counts)
    with pytest.raises(DataError, match=message) as error, open_source(path) as source:
        list(source.blocks(10))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_zarr_group_that_is_no_anndata_is_refused(tmp_path):
    zarr.open_group(tmp_path / "other.zarr", mode="w").create_group("weights")
    with pytest.raises(DataError, match="is no AnnData: obs and var missing at its root, which holds weights"):
        open_source(tmp_path / "other.zarr")


def test_sources_are_found_in_files_folders_and_globs_sorted_by_path(tmp_path, counts):
    for name in ("b.h5ad", "a.h5ad", "deep/c.h5", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    zarr.open_group(tmp_path / "d.zarr", mode="w")
    found = find_sources([str(tmp_path), str(tmp_path / "*.h5ad"), str(tmp_path / "**" / "*.h5")])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.h5ad", "b.h5ad", "d.zarr", "deep/c.h5"]


def test_sources_of_one_name_or_none_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    for path in (tmp_path / "a.h5ad", tmp_path / "x" / "a.h5"):
        path.touch()
    with pytest.raises(DataError, match=r"same name 'a' as .*rename one"):
        find_sources([str(tmp_path), str(tmp_path / "x")])
    with pytest.raises(DataError, match=r"nothing\*: no .h5ad, .h5 or .zarr"):
        find_sources([str(tmp_path / "nothing*")])


def test_what_a_job_writes_into_the_folder_of_its_sources_is_no_source(tmp_path):
    (tmp_path / "a.h5ad").touch()
    for name in (".atlas.zarr.partial", "atlas.zarr"):
        zarr.open_group(tmp_path / name, mode="w")
    own = tmp_path / "atlas.zarr"
    assert find_sources([str(tmp_path)], own) == find_sources([str(tmp_path / "*")], own) == [tmp_path / "a.h5ad"]
    assert find_sources([str(own)], own) == [own]  # it was named, and is refused for what it is


def test_numbers_of_a_categorical_read_the_same_as_plain_ones(tmp_path, counts):
    adata = cells(counts)
    numbers = np.arange(adata.n_obs) % 3
    adata.obs["plain"] = numbers
    adata.obs["category"] = pd.Categorical(np.where(numbers == 2, np.nan, numbers.astype(float)))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with open_source(tmp_path / "cells.h5ad") as source:
        obs = source.obs
    assert list(obs["category"].cat.categories) == ["0", "1"]
    assert list(as_texts(obs["plain"]).categories) == ["0", "1", "2"]
