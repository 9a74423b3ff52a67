"""A SOMA Experiment as a store, against the Zarr store of the same cells and against tiledbsoma's own reading."""

import gc
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from cells import counts_of_types
from references import random_reference
from stores import plain_columns, random_counts

from unicoord_atlas.config import RunConfig
from unicoord_atlas.coordinate_changes import Changes
from unicoord_atlas.errors import AlreadyDone, ConfigError, DataError, UsageError
from unicoord_atlas.generate import Generation
from unicoord_atlas.jobs import (
    cached_store,
    convert,
    export_latents,
    export_reference,
    figure,
    generate,
    info,
    ingest,
    map_query,
    train,
)
from unicoord_atlas.loaders import soma_written
from unicoord_atlas.loaders.byte_cache import ByteCache
from unicoord_atlas.loaders.soma_open import fragments
from unicoord_atlas.loaders.soma_written import write_experiment
from unicoord_atlas.loaders.store import CsrBuffer, open_store
from unicoord_atlas.loaders.stream import CellStream
from unicoord_atlas.loaders.zarr_copy import require_equal
from unicoord_atlas.training.metrics import read_metrics

tiledbsoma = pytest.importorskip("tiledbsoma")
io = pytest.importorskip("tiledbsoma.io")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the library's own
NUM_CELLS, NUM_GENES = 500, 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """cells.h5ad, atlas.zarr of it, and atlas.soma of that."""
    folder = tmp_path_factory.mktemp("soma")
    counts, types = counts_of_types(NUM_CELLS, NUM_GENES)
    counts[5] = 0
    names = np.array(["B", "T", "NK"])[types].astype(object)
    names[::10] = "unknown"
    tissue = np.where(np.arange(NUM_CELLS) % 4 < 2, "lung", "blood")
    obs = pd.DataFrame(
        {"cell_type": names, "tissue": tissue, "age": np.arange(NUM_CELLS) / 8},
        index=[f"cell{i}" for i in range(NUM_CELLS)],
    )
    var = pd.DataFrame({"gene_ids": [f"ENSG{i:011}" for i in range(NUM_GENES)]}, [f"GENE{i}" for i in range(NUM_GENES)])
    anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=var).write_h5ad(folder / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(folder / "cells.h5ad")], folder / "atlas.zarr", labels=["cell_type"]))
    convert.run(convert.ConvertOptions(folder / "atlas.zarr", folder / "atlas.soma"))
    return folder


@pytest.fixture(scope="module")
def foreign(folder):
    """The cells as tiledbsoma itself writes them."""
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    cells.X = cells.X.astype(np.float32)
    io.from_anndata(str(folder / "foreign.soma"), cells, "RNA")
    return folder / "foreign.soma"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unicoord-atlas"


def config(*more):
    return RunConfig.load(
        None,
        [
            'latent.discrete=["cell_type"]',
            "model.hidden=[16]",
            "train.epochs=2",
            "train.batch_size=32",
            "train.precision=fp32",
            *more,
        ],
    )


def assert_same_rows(one, other):
    for part in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


def test_rows_are_those_of_the_zarr_store_in_any_order(folder):
    soma, atlas = open_store(folder / "atlas.soma"), open_store(folder / "atlas.zarr")
    buffer = CsrBuffer()
    for ranges in ([[0, NUM_CELLS]], [[300, 340], [0, 20], [310, 320]], [[7, 7]], [[4, 7], [90, 91]], []):
        ranges = np.array(ranges, np.int64).reshape(-1, 2)
        assert_same_rows(soma.read_ranges(ranges, buffer), atlas.read_ranges(ranges))
    rows = soma.read_ranges(np.array([[0, 3]]))
    assert (rows.data.dtype, rows.indices.dtype) == (np.uint8, np.uint16)


def test_facts_are_those_of_the_zarr_store(folder):
    soma, atlas = pickle.loads(pickle.dumps(open_store(folder / "atlas.soma"))), open_store(folder / "atlas.zarr")
    assert soma.schema == atlas.schema
    np.testing.assert_array_equal(soma.size_factors, atlas.size_factors)
    for field in ("mean_g", "variance_g", "mean_fraction_g", "highly_expressed_g"):
        np.testing.assert_array_equal(getattr(soma.normalization, field), getattr(atlas.normalization, field))
    pd.testing.assert_frame_equal(soma.obs(), atlas.obs())
    pd.testing.assert_frame_equal(soma.var(), atlas.var())
    assert info.run(folder / "atlas.soma")["labels"] == info.run(folder / "atlas.zarr")["labels"]
    with pytest.raises(UsageError, match="no column 'organ'"):
        soma.obs(["organ"])
    with pytest.raises(UsageError, match="obsm has no 'X_pca'; it has: nothing"):
        soma.obsm("X_pca")


def test_minibatches_are_those_of_the_zarr_store(folder):
    streams = [
        CellStream(
            store, plain_columns(store), batch_size=16, seed=3, window_cells=128, block_cells=16, memory_bytes=1 << 40
        )
        for store in (open_store(folder / "atlas.soma"), open_store(folder / "atlas.zarr"))
    ]
    for epoch in range(2):
        batches = [list(stream) for stream in streams]
        assert len(batches[0]) == len(batches[1]) > 20
        for one, other in zip(*batches, strict=True):
            for part in ("indptr", "indices", "data"):
                assert getattr(one.counts, part).equal(getattr(other.counts, part))
            assert one.rows_n.equal(other.rows_n), epoch


def test_training_losses_are_those_of_the_zarr_store_to_the_last_bit(folder, tmp_path):
    losses = []
    for name in ("atlas.zarr", "atlas.soma"):
        train.run(train.TrainOptions(folder / name, tmp_path / name, config()))
        metrics = list(read_metrics(tmp_path / name / "metrics.jsonl"))
        losses.append([{key: value for key, value in line.items() if "loss" in key} for line in metrics])
    assert losses[0] == losses[1] and len(losses[0]) >= 2 and losses[0][0]
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("atlas.zarr", "atlas.soma")]
    assert weights[0] == weights[1]

    latents = []
    for name in ("atlas.zarr", "atlas.soma"):
        out = tmp_path / f"{name}-latents.zarr"
        export_latents.run(export_latents.ExportLatentsOptions(folder / name, tmp_path / "atlas.zarr", out))
        latents.append(anndata.read_zarr(out).obsm["X_unicoord"])
    np.testing.assert_array_equal(*latents)

    export_reference.run(export_reference.ExportReferenceOptions(tmp_path / "atlas.soma", tmp_path / "reference"))
    for name in ("atlas.zarr", "atlas.soma"):
        out = tmp_path / f"{name}-mapped.h5ad"
        map_query.run(map_query.MapQueryOptions(folder / name, tmp_path / "reference", out))
    one, other = (anndata.read_h5ad(tmp_path / f"{n}-mapped.h5ad") for n in ("atlas.zarr", "atlas.soma"))
    np.testing.assert_array_equal(one.obsm["X_unicoord"], other.obsm["X_unicoord"])

    copy = shutil.copytree(folder / "atlas.soma", tmp_path / "copy.soma")
    written = convert.add_latents(convert.AddLatentsOptions(tmp_path / "atlas.soma-latents.zarr", copy))
    assert "X_unicoord" in written["obsm"]
    np.testing.assert_array_equal(open_store(copy).obsm("X_unicoord"), latents[1])
    assert open_store(copy).fingerprint == open_store(folder / "atlas.soma").fingerprint
    with tiledbsoma.Experiment.open(str(copy)) as experiment:
        read = io.to_anndata(experiment, "RNA")
    np.testing.assert_array_equal(read.obsm["X_unicoord"], latents[1])
    with pytest.raises(AlreadyDone):
        convert.add_latents(convert.AddLatentsOptions(tmp_path / "atlas.soma-latents.zarr", copy))


def test_a_filter_takes_its_cells_only(folder, tmp_path):
    atlas = open_store(folder / "atlas.zarr")
    lung = open_store(f'{folder}/atlas.soma?measurement=RNA&filter=tissue == "lung"')
    chosen = np.flatnonzero(atlas.obs()["tissue"] == "lung")
    assert lung.n_obs == len(chosen) == 250
    assert list(lung.obs().index) == list(atlas.obs().index[chosen])
    assert_same_rows(
        lung.read_ranges(np.array([[100, 130], [3, 9]])),
        atlas.read_ranges(np.stack([chosen, chosen + 1], axis=1)[np.r_[100:130, 3:9]]),
    )
    np.testing.assert_array_equal(lung.size_factors, atlas.size_factors[chosen])
    label = lung.schema.label("cell_type")
    assert label.categories == atlas.schema.label("cell_type").categories
    assert sum(label.counts) + label.num_unlabelled == 250
    assert lung.fingerprint != open_store(folder / "atlas.soma").fingerprint
    out = tmp_path / "lung.zarr"
    convert.run(convert.ConvertOptions(Path(lung.uri), out))
    assert_same_rows(open_store(out).read_ranges(np.array([[0, 250]])), lung.read_ranges(np.array([[0, 250]])))


def test_cells_of_a_filter_are_generated_from_and_drawn(folder, tmp_path):
    reference = random_reference()
    genes = tuple(f"GENE{i}" for i in range(reference.schema.num_genes))
    reference.schema = reference.schema.model_copy(update={"genes": genes})
    reference.save(tmp_path / "reference")
    lung, cells = Path(f'{folder}/atlas.soma?filter=tissue == "lung"'), anndata.read_h5ad(folder / "cells.h5ad")
    how = Generation(reconstruct=True, sample="mode")
    generate.run(generate.GenerateOptions(lung, tmp_path / "reference", tmp_path / "made.h5ad", how))
    made = anndata.read_h5ad(tmp_path / "made.h5ad")
    expected = reference.generate(cells[cells.obs["tissue"] == "lung"].copy(), how)
    np.testing.assert_allclose(made.X.toarray(), expected.X.toarray(), rtol=1e-4, atol=1e-5)
    assert set(made.obs["tissue"]) == {"lung"}
    to_b = Generation(Changes({"cell_type": "B"}))
    options = figure.FigureOptions(
        "markers", lung, tmp_path / "reference", tmp_path / "b.png", to_b, "cell_type", ["GENE1"], 60
    )
    assert figure.run(options)["cells"] == 60


def test_there_and_back_is_the_same_store(folder, tmp_path):
    result = convert.run(convert.ConvertOptions(folder / "atlas.soma", tmp_path / "back.zarr"))
    assert (result["cells"], result["already_done"]) == (NUM_CELLS, False)
    back, atlas = open_store(tmp_path / "back.zarr"), open_store(folder / "atlas.zarr")
    assert back.fingerprint == atlas.fingerprint and back.schema == atlas.schema
    pd.testing.assert_frame_equal(back.obs(), atlas.obs())
    assert convert.run(convert.ConvertOptions(folder / "atlas.soma", tmp_path / "back.zarr"))["already_done"]


def test_tiledbsoma_reads_what_was_written(folder):
    with tiledbsoma.Experiment.open(str(folder / "atlas.soma")) as experiment:
        read = io.to_anndata(experiment, "RNA")
        assert len(list((folder / "atlas.soma/ms/RNA/X/data/__fragments").iterdir())) == 1
    atlas = anndata.read_zarr(folder / "atlas.zarr")
    np.testing.assert_array_equal(read.X.toarray(), atlas.X.toarray())
    pd.testing.assert_frame_equal(read.obs, atlas.obs, check_names=False)
    pd.testing.assert_frame_equal(read.var, atlas.var, check_names=False)
    assert read.uns["unicoord"]["schema"][0] == atlas.uns["unicoord"]["schema"][0]


def test_an_experiment_of_another_program_is_measured_once(folder, foreign, cache, monkeypatch):
    soma, atlas = open_store(foreign), open_store(folder / "atlas.zarr")
    assert (soma.schema.genes, soma.schema.aliases) == (atlas.schema.genes, atlas.schema.aliases)
    assert soma.schema.label("cell_type") == atlas.schema.label("cell_type")
    assert_same_rows(soma.read_ranges(np.array([[0, NUM_CELLS]])), atlas.read_ranges(np.array([[0, NUM_CELLS]])))
    np.testing.assert_array_equal(soma.size_factors, atlas.size_factors)
    np.testing.assert_array_equal(soma.normalization.highly_expressed_g, atlas.normalization.highly_expressed_g)
    for field in ("mean_g", "variance_g", "mean_fraction_g"):
        np.testing.assert_allclose(getattr(soma.normalization, field), getattr(atlas.normalization, field), rtol=1e-12)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("unicoord_atlas.loaders.soma_facts.measure", None)
    np.testing.assert_array_equal(open_store(foreign).indptr, soma.indptr)


def test_values_that_are_no_counts_are_refused(folder, tmp_path):
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    cells.X = cells.X.astype(np.float32) * 0.3
    io.from_anndata(str(tmp_path / "log.soma"), cells, "RNA")
    with pytest.raises(DataError, match=r"no counts; choose another matrix by \?layer=NAME"):
        open_store(tmp_path / "log.soma")


def test_rows_in_tiles_of_some_genes_are_sorted(tmp_path):
    counts = random_counts(60, 40, density=0.4)
    obs, var = (pd.DataFrame(index=[f"{kind}{i}" for i in range(n)]) for kind, n in (("cell", 60), ("GENE", 40)))
    cells = anndata.AnnData(counts.astype(np.float32), obs, var)
    tiles = tiledbsoma.TileDBCreateOptions(dims={"soma_dim_0": {"tile": 7}, "soma_dim_1": {"tile": 6}}, capacity=50)
    io.from_anndata(str(tmp_path / "a.soma"), cells, "RNA", platform_config=tiles)
    read = open_store(tmp_path / "a.soma").read_ranges(np.array([[3, 50], [1, 2]]))
    expected = counts[np.r_[3:50, 1:2]]
    np.testing.assert_array_equal(read.indices, expected.indices)
    np.testing.assert_array_equal(read.data, expected.data)


def test_faults_name_the_experiment_and_the_way_out(folder, tmp_path, monkeypatch):
    for address, message in (
        ("?measurement=ATAC", r"measurement ATAC: it has RNA"),
        ("?layer=raw", r"layer raw: it has data"),
        ("?matrix=data", r"'matrix=data' cannot be read"),
        ('?filter=organ == "lung"', r"filter 'organ == \"lung\"' cannot be used"),
        ('?filter=tissue == "brain"', r"filter 'tissue == \"brain\"' takes no cell"),
    ):
        with pytest.raises(UsageError, match=message):
            open_store(f"{folder}/atlas.soma{address}")
    with pytest.raises(DataError, match="no such store"):
        open_store(tmp_path / "none.soma")
    with pytest.raises(UsageError, match=r"ends in \.zarr"):
        convert.run(convert.ConvertOptions(folder / "atlas.soma", tmp_path / "again.soma"))
    broken = shutil.copytree(folder / "atlas.soma", tmp_path / "broken.soma")
    shutil.rmtree(broken / "obs")
    with pytest.raises(DataError, match=r"broken\.soma: cannot be opened"):
        open_store(broken)
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(ConfigError, match=r"pip install 'unicoord-atlas\[soma\]'"):
        open_store(folder / "atlas.soma")


def test_tables_of_cells_come_along_with_their_columns(folder, tmp_path):
    atlas = open_store(folder / "atlas.zarr")
    cells = anndata.read_zarr(folder / "atlas.zarr")
    cells.X = None
    rng = np.random.default_rng(0)
    cells.obsm["X_pca"] = rng.random((NUM_CELLS, 3), np.float32)
    cells.obsm["X_sets"] = pd.DataFrame(rng.random((NUM_CELLS, 2)), cells.obs_names, ["GO:1 a/b", "c"])
    cells.obsp["distances"] = sp.random(NUM_CELLS, NUM_CELLS, 0.01, "csr", rng=rng)
    write_experiment(tmp_path / "a.soma", atlas, cells, int)
    soma = open_store(f'{tmp_path}/a.soma?filter=tissue == "lung"')
    chosen = np.flatnonzero(cells.obs["tissue"] == "lung")
    np.testing.assert_array_equal(soma.obsm("X_pca"), cells.obsm["X_pca"][chosen])
    pd.testing.assert_frame_equal(soma.obsm("X_sets"), cells.obsm["X_sets"].iloc[chosen])
    read = soma.to_anndata(lazy=False)
    np.testing.assert_array_equal(read.X.toarray(), anndata.read_zarr(folder / "atlas.zarr").X.toarray()[chosen])
    with tiledbsoma.Experiment.open(str(tmp_path / "a.soma")) as experiment:
        distances = io.to_anndata(experiment, "RNA").obsp["distances"]
    assert (distances != cells.obsp["distances"]).nnz == 0


def test_damaged_counts_are_named(folder, tmp_path):
    copy = shutil.copytree(folder / "atlas.soma", tmp_path / "copy.soma")
    store = open_store(copy)
    (values,) = copy.glob("ms/RNA/X/data/__fragments/*/a0.tdb")
    values.write_bytes(values.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"X/data: cannot be read"):
        store.read_ranges(np.array([[0, NUM_CELLS]]))


@pytest.mark.parametrize("part", ["d0", "d1", "a0"])
def test_a_changed_byte_of_cells_genes_or_counts_is_noticed(folder, tmp_path, part):
    """Of ingest, too, which writes by the same function."""
    copy = shutil.copytree(folder / "atlas.soma", tmp_path / "copy.soma")
    store = open_store(copy)
    (values,) = copy.glob(f"ms/RNA/X/data/__fragments/*/{part}.tdb")
    content = bytearray(values.read_bytes())
    content[-1] ^= 1  # of the last tile's data, not of what TileDB says of it
    values.write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)X/data: cannot be read .*[Cc]hecksum") as noticed:
        store.read_ranges(np.array([[0, NUM_CELLS]]))
    assert noticed.value.exit_code == 65


def test_counts_changed_behind_their_normalization_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder / "atlas.soma", tmp_path / "copy.soma")
    one = {"soma_dim_0": [0], "soma_dim_1": [0], "soma_data": pa.array([3], pa.uint8())}
    with tiledbsoma.Experiment.open(str(copy), "w") as experiment:
        experiment.ms["RNA"].X["data"].write(pa.table(one))
    with pytest.raises(DataError, match="changed after its normalization was computed"):
        open_store(copy)


def test_ingest_writes_what_convert_does(folder, tmp_path):
    options = ingest.IngestOptions(
        [str(folder / "cells.h5ad")], tmp_path / "direct.soma", labels=["cell_type"], format="soma"
    )
    ingest.run(options)
    require_equal(open_store(folder / "atlas.zarr"), open_store(tmp_path / "direct.soma"), lambda num_cells: None)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["direct.soma"]
    assert ingest.run(options)["already_done"]
    with tiledbsoma.Experiment.open(str(tmp_path / "direct.soma")) as experiment:
        assert len(fragments(experiment.ms["RNA"].X["data"])) == 1
        read = io.to_anndata(experiment, "RNA", X_layer_name="data")
    atlas = anndata.read_zarr(folder / "atlas.zarr")
    assert (read.X.tocsr() != atlas.X.astype(read.X.dtype)).nnz == 0
    assert read.obs["cell_type"].dtype == "category"
    with pytest.raises(UsageError, match="give it another ending"):
        replace(options, out=tmp_path / "o.zarr")


@pytest.mark.parametrize("pattern", ["atlas.soma", "atlas.soma?layer=data", "*.soma"])
def test_ingest_sends_who_gives_a_soma_to_convert(folder, tmp_path, pattern):
    with pytest.raises(DataError, match=r"is a SOMA, .*`unicoord-atlas convert` makes"):
        ingest.run(ingest.IngestOptions([f"{folder}/{pattern}"], tmp_path / "o.zarr"))


def test_a_killed_ingest_of_a_soma_goes_on_behind_its_last_block(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(soma_written, "_ROWS_TOGETHER", 100)
    written = []
    write = tiledbsoma.SparseNDArray.write

    def write_some(matrix, table, **more):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(table.num_rows)
        return write(matrix, table, **more)

    options = ingest.IngestOptions(
        [str(folder / "cells.h5ad")], tmp_path / "o.soma", labels=["cell_type"], shuffle=True, format="soma"
    )
    monkeypatch.setattr(tiledbsoma.SparseNDArray, "write", write_some)
    with pytest.raises(KeyboardInterrupt):
        ingest.run(options)
    assert not (tmp_path / "o.soma").exists()
    monkeypatch.setattr(
        tiledbsoma.SparseNDArray, "write", lambda *given, **more: written.append(0) or write(*given, **more)
    )
    ingest.run(options)
    assert len(written) == 3 + 3  # the last block of before once more, and the two behind it
    ingest.run(replace(options, out=tmp_path / "o.zarr", format="zarr"))
    require_equal(open_store(tmp_path / "o.zarr"), open_store(tmp_path / "o.soma"), lambda num_cells: None)
    assert not list(tmp_path.glob(".*"))


def test_half_a_beginning_is_begun_anew(folder, tmp_path, monkeypatch):
    out = tmp_path / "o.soma"
    monkeypatch.setattr(soma_written, "_new_matrix", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.run(convert.ConvertOptions(folder / "atlas.zarr", out))
    monkeypatch.undo()
    convert.run(convert.ConvertOptions(folder / "atlas.zarr", out))
    require_equal(open_store(folder / "atlas.zarr"), open_store(out), lambda num_cells: None)


def test_a_cached_soma_is_copied_once_and_trains_the_same(folder, tmp_path, capsys):
    cache = ByteCache(tmp_path / "kept", 1 << 30)
    path = f'{folder / "atlas.soma"}?filter=tissue == "lung"'
    near, far = open_store(path), cached_store.open_cached(path, cache)
    (copy,) = (tmp_path / "kept/somas").glob("*.zarr")
    modified = (copy / "X/data").stat().st_mtime_ns
    far = pickle.loads(pickle.dumps(cached_store.open_cached(path, cache)))
    assert (copy / "X/data").stat().st_mtime_ns == modified
    ranges = np.array([[60, 64], [0, 7]])
    assert_same_rows(near.read_ranges(ranges), far.read_ranges(ranges))
    assert (near.fingerprint, near.uri) == (far.fingerprint, far.uri)
    losses = []
    for name, used in (("without", None), ("with", cache)):
        train.run(train.TrainOptions(Path(path), tmp_path / name, config(), cache=used))
        metrics = list(read_metrics(tmp_path / name / "metrics.jsonl"))
        losses.append([{key: value for key, value in line.items() if "loss" in key} for line in metrics])
    assert losses[0] == losses[1]
    train.run(train.TrainOptions(Path(path), tmp_path / "with", config()))  # goes on without the cache
    assert "is finished already" in capsys.readouterr().err


def test_copies_of_somas_make_room_for_each_other(folder, tmp_path):
    paths = [f'{folder / "atlas.soma"}?filter=tissue == "{name}"' for name in ("lung", "blood")]
    most = open_store(paths[0])
    room = 2 * int(most.indptr[-1]) * most.entry_bytes
    cache = ByteCache(tmp_path / "kept", room)
    first = cached_store.open_cached(Path(paths[0]), cache)
    with pytest.raises(UsageError, match="may take more than --cache-size"):
        cached_store.open_cached(Path(paths[1]), ByteCache(tmp_path / "kept", 100))
    with pytest.raises(UsageError, match="other runs use what --cache-size allows"):
        cached_store.open_cached(Path(paths[1]), cache)
    del first
    gc.collect()
    killed = tmp_path / "kept/somas/.0123.zarr.partial"
    killed.mkdir()
    cached_store.open_cached(Path(paths[1]), cache)
    assert len(list((tmp_path / "kept/somas").iterdir())) == 1  # nothing of the killed one is left either


def test_ingest_of_a_soma_without_the_library_writes_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    options = ingest.IngestOptions([str(folder / "cells.h5ad")], tmp_path / "o.soma", format="soma")
    with pytest.raises(ConfigError, match=r"pip install 'unicoord-atlas\[soma\]'"):
        ingest.run(options)
    assert not list(tmp_path.glob(".*")) and not options.out.exists()


def test_a_copy_that_was_finished_is_never_removed(folder, tmp_path):
    shutil.copytree(folder / "atlas.zarr", tmp_path / "atlas.zarr")
    options = convert.ConvertOptions(tmp_path / "atlas.zarr", tmp_path / "copy.soma")
    convert.run(options)
    with tiledbsoma.Experiment.open(str(tmp_path / "copy.soma")) as experiment:
        uri, table = experiment.obs.uri, experiment.obs.read().concat()
    number = table.column_names.index("age")
    with tiledbsoma.open(uri, "w") as obs:
        obs.write(table.set_column(number, "age", pa.array(table["age"].to_numpy() + 1)))
    with pytest.raises(DataError, match="obs column 'age' differs; if the copy is the wrong one"):
        convert.run(options)
    assert (tmp_path / "copy.soma").exists()  # it may be the good one


def test_facts_that_cannot_be_kept_are_used_all_the_same(folder, foreign, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made in it
    assert open_store(foreign).n_obs == NUM_CELLS
    assert "the next run measures again" in capsys.readouterr().err
