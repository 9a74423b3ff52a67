"""Generation: what is set comes out exactly, draws depend on seed and row only, files hold what memory does."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from references import CLASSES, NUM_GENES, random_cells, random_reference

from unicoord_atlas import generated, scene
from unicoord_atlas.coordinate_changes import Changes, Jitter, resolve_changes
from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.decoded import count_rows, value_rows
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.generate import Generation, with_changes
from unicoord_atlas.jobs import figure, generate, ingest
from unicoord_atlas.loaders import growing_writer
from unicoord_atlas.loaders.picked_rows import PickedRows
from unicoord_atlas.loaders.query_cells import open_query
from unicoord_atlas.memory import AnnDataCells
from unicoord_atlas.model.joint_vae import JointVAE
from unicoord_atlas.points import Points, between, encode_points
from unicoord_atlas.query import QueryBatches
from unicoord_atlas.reference import ReferenceModel
from unicoord_atlas.seeds import MAX_SEEDS, Seeds, choose_seeds, seed_rows

REFERENCE = random_reference()


def points_of(cells: anndata.AnnData) -> Points:
    (points,) = encode_points(
        REFERENCE.model, QueryBatches(AnnDataCells(cells), REFERENCE.schema, REFERENCE.normalization), REFERENCE.device
    )
    return points


def changed(cells: anndata.AnnData, changes: Changes, **how) -> Points:
    return with_changes(points_of(cells), resolve_changes(REFERENCE, changes, cells.obs), Generation(changes, **how))


def test_a_set_coordinate_is_exact_and_the_others_stay():
    cells, before = random_cells(), points_of(random_cells())
    after = changed(cells, Changes({"cell_type": "NK"}, {"time": 7.0}))
    assert after.discrete[0].tolist() == [[0.0, 1.0, 0.0]] * 30
    assert after.mean[:, 0].tolist() == [7.0] * 30
    np.testing.assert_array_equal(after.variance, before.variance)
    np.testing.assert_array_equal(after.mean[:, 1:], before.mean[:, 1:])
    np.testing.assert_array_equal(after.discrete[1], before.discrete[1])
    assert set(np.unique(before.discrete[1])) == {0.0, 1.0}
    exact = changed(cells, Changes({}, {"time": 7.0}), exact=True)
    assert not exact.variance[:, 0].any()
    np.testing.assert_array_equal(exact.variance[:, 1:], before.variance[:, 1:])


def test_the_decoder_gets_standardized_values():
    after = changed(random_cells(), Changes({}, {"time": 7.0}))
    assert after.decoder_input(REFERENCE.model)[:, 5].tolist() == [1.0] * 30  # (7 - 5) / 2, behind 3 + 2 categories


def test_a_column_sets_each_cell_and_leaves_those_without_a_value():
    cells, before = random_cells(), points_of(random_cells())
    after = changed(cells, Changes({"cell_type": "@wanted"}, {"time": "@time"}))
    for row, wanted in enumerate(cells.obs["wanted"]):
        expected = before.discrete[0][row] if wanted is None else np.eye(3)[CLASSES.index(wanted)]
        assert after.discrete[0][row].tolist() == expected.tolist()
    assert after.mean[1:, 0].tolist() == list(range(1, 30))
    assert after.mean[0, 0] == before.mean[0, 0]


def test_jitter_is_added_to_the_label_or_else_to_the_encoded_mean():
    cells, before = random_cells(), points_of(random_cells())
    added = changed(cells, Changes(jitter={"time": Jitter.parse("U(-0.5,0.5)")})).mean[:, 0]
    base = cells.obs["time"].to_numpy(np.float32)
    base[0] = before.mean[0, 0]
    assert (np.abs(added - base) <= 0.5).all()
    assert np.unique(np.round(added - base, 4)).size > 20
    about = changed(cells, Changes({}, {"time": 3.0}, {"time": Jitter.parse("N(0.1)")})).mean[:, 0]
    assert about.mean() == pytest.approx(3, abs=0.1)
    assert about.std() == pytest.approx(0.1, rel=0.5)
    assert str(Jitter.parse(" U( -1 , 2 ) ")) == "U(-1,2)"


@pytest.mark.parametrize("text", ["0.5", "U(1)", "U(2,1)", "N(-1)", "N(1,2)", "U(a,b)", "U(0,inf)", "N(nan)"])
def test_a_jitter_that_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError, match="--jitter"):
        Jitter.parse(text)


@pytest.mark.parametrize("wrong", [{"min_value": float("nan")}, {"seed": -1}, {"counts": True, "depth": float("inf")}])
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match=r"--(min-value|seed|depth)"):
        Generation(**wrong)


def test_draws_have_each_cell_s_mean_and_variance():
    n = 4000
    points = Points(
        np.arange(n),
        (),
        np.full((n, 2), 3, np.float32),
        np.tile(np.array([[0.25, 4.0]], np.float32), (n, 1)),
        np.ones(n, np.float32),
    )
    drawn = points.sampled(5).mean
    np.testing.assert_allclose(drawn.mean(axis=0), 3, atol=0.1)
    np.testing.assert_allclose(drawn.var(axis=0), [0.25, 4.0], rtol=0.1)
    np.testing.assert_array_equal(points.take(np.array([7, 99])).sampled(5).mean, drawn[[7, 99]])
    assert not np.array_equal(points.sampled(6).mean, drawn)


@pytest.mark.parametrize("counts", [False, True])
def test_cells_are_the_same_however_they_are_cut(monkeypatch, counts):
    how = Generation(Changes({"cell_type": "B"}, jitter={"time": Jitter("U", -1, 1)}), counts=counts)
    whole = REFERENCE.generate(random_cells(), how)
    monkeypatch.setattr(generated, "BATCH", 7)
    monkeypatch.setattr("unicoord_atlas.generate.CELLS_AT_ONCE", 3)
    pieces = REFERENCE.generate(random_cells(), how)
    np.testing.assert_allclose(whole.X.toarray(), pieces.X.toarray(), rtol=1e-4, atol=1e-5)
    other = REFERENCE.generate(random_cells(), replace(how, seed=1))
    assert not np.array_equal(whole.X.toarray(), other.X.toarray())


def test_a_reconstruction_is_the_decoded_mode():
    with pytest.raises(UsageError, match="nothing is set"):
        REFERENCE.generate(random_cells(), Generation())
    made = REFERENCE.generate(random_cells(), Generation(reconstruct=True, sample="mode", min_value=0))
    batch = next(iter(QueryBatches(AnnDataCells(random_cells()), REFERENCE.schema, REFERENCE.normalization)))
    with torch.no_grad():
        posterior = REFERENCE.model.encode(REFERENCE.model.normalized(batch), REFERENCE.model.center(batch))
        expected = REFERENCE.model.decode(posterior.mode()).numpy()
    np.testing.assert_allclose(made.X.toarray(), expected, rtol=1e-3)  # the encoder's first layer is in float16


def test_a_sweep_has_every_point_of_every_cell():
    changes = Changes({"platform": "10x"}, sweeps={"time": "0:10:3", "cell_type": "B:T:2"})
    made = REFERENCE.generate(random_cells(4), Generation(changes, sample="mode"))
    assert made.n_obs == 4 * 3 * 2
    assert list(made.obs_names[:6]) == [f"cell0-{i}" for i in range(6)]
    assert made.obs["time_generated"].tolist() == [0, 0, 5, 5, 10, 10] * 4
    assert made.obs["cell_type_generated"].tolist() == ["B:T:0", "B:T:1"] * 12
    one = REFERENCE.generate(
        random_cells(4), Generation(Changes({"platform": "10x", "cell_type": "T"}, {"time": 5}), sample="mode")
    )
    np.testing.assert_allclose(made.X.toarray()[3::6], one.X.toarray(), rtol=1e-4, atol=1e-5)


def test_points_between_two_cells_begin_and_end_with_them():
    points = points_of(random_cells())
    way = between(points.take(np.array([2])), points.take(np.array([5])), 5)
    ends = points.take(np.array([2, 5]))
    np.testing.assert_allclose(way.mean[[0, -1]], ends.mean, rtol=1e-6)
    np.testing.assert_allclose(way.mean[2], ends.mean.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(way.discrete[0].sum(axis=1), 1)


def test_cells_between_two_of_an_anndata_are_those_of_the_command(tmp_path):
    REFERENCE.save(tmp_path / "reference")
    random_cells().write_h5ad(tmp_path / "cells.h5ad")
    how = Generation(Changes({"platform": "10x"}, jitter={"time": Jitter("U", -1, 1)}), seed=3)
    options = generate.GenerateOptions(
        tmp_path / "cells.h5ad", tmp_path / "reference", tmp_path / "way.h5ad", how, between=("cell9", "cell2"), steps=4
    )
    generate.run(options)
    way = anndata.read_h5ad(tmp_path / "way.h5ad")
    made = REFERENCE.generate(random_cells(), how, between=("cell9", "cell2"), steps=4)
    np.testing.assert_allclose(made.X.toarray(), way.X.toarray(), rtol=1e-4, atol=1e-5)
    assert list(made.obs_names) == list(way.obs_names)
    assert made.obs["share"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert made.obs["platform_generated"].tolist() == ["10x"] * 4
    assert list(made.uns["unicoord"]["between"]) == ["cell9", "cell2"]
    assert REFERENCE.generate(random_cells(), between=("cell9", "cell9")).n_obs == 11
    for wrong, error, words in (
        ({"between": ("cell9", "cell99")}, DataError, "the AnnData given: has no cell 'cell99'"),
        ({"between": ("cell9", "cell2"), "steps": 1}, UsageError, "--steps 1"),
        ({"between": ("cell9", "cell2"), "num": 5}, UsageError, "each cell is taken"),
        ({"between": ("cell9", "cell2"), "like": {"cell_type": "B"}}, UsageError, "either"),
    ):
        with pytest.raises(error, match=words):
            REFERENCE.generate(random_cells(), **wrong)
    with pytest.raises(UsageError, match="so give the AnnData"):
        REFERENCE.generate(like={"cell_type": "B"}, between=("cell9", "cell2"))


def test_cells_without_a_file_are_like_the_seeds_asked_for():
    points, obs = choose_seeds(REFERENCE, {"cell_type": "NK", "platform": "Drop-seq"}, 6, seed=3)
    assert obs["cell_type"].tolist() == ["NK"] * 6
    assert obs["platform"].tolist() == ["Drop-seq"] * 6
    seeds = REFERENCE.seeds
    found = [row for row in range(40) if row % 3 == 1 and row % 2 == 1]
    assert sorted(obs["time"]) == found[:6] if len(found) == 6 else set(obs["time"]) <= set(found)
    assert len(set(obs["time"])) == 6  # each once, as long as there are enough
    np.testing.assert_array_equal(points.mean, seeds.mean[obs["time"].astype(int)])
    many = REFERENCE.generate(like={"cell_type": "NK"}, num=50)
    assert many.n_obs == 50
    assert many.obs["cell_type_generated"].tolist() == ["NK"] * 50
    assert len({tuple(row) for row in many.X.toarray()}) == 50  # a seed that comes again is drawn anew


def test_what_can_be_set_is_listed():
    cells = random_cells()
    for changes, words in (
        (Changes({"cell_type": "ILC"}), "only 3 cells.*folded.*B, NK, T"),
        (Changes({"organ": "lung"}), "cell_type, platform"),
        (Changes({"cell_type": "@missing"}), "wanted, time"),
        (Changes({}, {"day": 1.0}), "time, or one of unsupervised_0 ... unsupervised_2"),
        (Changes({}, {"time": "inf"}), "finite"),
        (Changes({}, {"time": 1e300}), "finite"),  # infinite in float32
        (Changes(sweeps={"time": "0:inf:3"}), "finite"),
        (Changes(sweeps={"time": "nan:1:3"}), "finite"),
        (Changes(sweeps={"time": "0:1"}), "FIRST:LAST:POINTS"),
        (Changes(sweeps={"cell_type": "B:Z:3"}), "B, NK, T"),
        (Changes({}, {"time": 1.0}, sweeps={"time": "0:1:3"}), "leave one"),
    ):
        with pytest.raises(UsageError, match=words):
            REFERENCE.generate(cells, Generation(changes))
    cells.obs.loc["cell4", "wanted"] = "ILC"
    with pytest.raises(DataError, match="cell4: cell_type='ILC' is unknown"):
        REFERENCE.generate(cells, Generation(Changes({"cell_type": "@wanted"})))
    for like, num, error in (
        ({"cell_type": "Z"}, 1, "B, NK, T"),
        ({"organ": "lung"}, 1, "cell_type"),
        ({"cell_type": "B"}, 0, "--num"),
    ):
        with pytest.raises(UsageError, match=error):
            REFERENCE.generate(like=like, num=num)
    with pytest.raises(DataError, match="no seeds"):
        random_reference(0).generate(like={"cell_type": "B"})
    with pytest.raises(UsageError, match="depth"):
        Generation(depth=1000.0)


def test_small_values_are_dropped_unless_all_are_wanted():
    decoded = np.array([[0.0, 0.005, 0.01, 2.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    kept, everything = value_rows(decoded, 0.01), value_rows(decoded, 0)
    assert (kept.indptr.tolist(), kept.indices.tolist()) == ([0, 2, 2], [2, 3])
    assert (everything.indptr.tolist(), everything.indices.tolist()) == ([0, 3, 3], [1, 2, 3])


def test_counts_are_poisson_with_the_decoded_mean():
    decoded = np.tile(np.log1p(np.array([[0.0, 0.5, 40.0, 300.0]], np.float32)), (4000, 1))
    rows = np.arange(4000)
    block = count_rows(decoded, np.full(4000, 5000, np.float32), rows, 0, 1e4)
    counts = sp.csr_matrix((block.data, block.indices, block.indptr), (4000, 4)).toarray()
    np.testing.assert_allclose(counts.mean(axis=0), [0, 0.25, 20, 150], rtol=0.08)
    np.testing.assert_allclose(counts.var(axis=0), [0, 0.25, 20, 150], rtol=0.08)
    again = count_rows(decoded[7:9], np.full(2, 5000, np.float32), rows[7:9], 0, 1e4)
    np.testing.assert_array_equal(
        sp.csr_matrix((again.data, again.indices, again.indptr), (2, 4)).toarray(), counts[7:9]
    )


@pytest.mark.parametrize("decoded", [30.0, 60.0, 1e6, np.inf, np.nan])
def test_counts_that_no_cell_has_are_refused(decoded):
    cells = np.array([[0.0, 1.0], [0.0, decoded]], np.float32)
    with pytest.raises(UsageError, match=r"--counts: the cell of row 8 .* far from all that the model has learned"):
        count_rows(cells, np.full(2, 5000, np.float32), np.array([7, 8]), 0, 1e4)
    assert count_rows(np.full((1, 1), 20, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), 0, 1e4).data > 0


def test_a_value_far_from_all_cells_gives_no_counts():
    far = Generation(Changes(sweeps={"time": "-1e6:1e6:2"}), counts=True)
    with pytest.raises(UsageError, match="--counts: the cell of row 0 "):
        REFERENCE.generate(random_cells(3), far)


def test_every_class_keeps_seeds_and_their_number_is_bounded(tmp_path):
    codes = np.zeros((50_000, 1), np.int32)
    codes[-30:] = 1
    codes[-200:-30] = 2
    rows = np.arange(0, 50_000)
    chosen = seed_rows(rows, codes, 0)
    assert len(chosen) == MAX_SEEDS
    assert (np.diff(chosen) > 0).all()
    assert (codes[chosen] == 1).sum() == 30
    assert (codes[chosen] == 2).sum() >= 100
    assert seed_rows(rows[:100], codes, 0).tolist() == list(range(100))
    REFERENCE.save(tmp_path)
    again = ReferenceModel.load(tmp_path).seeds
    for name in Seeds.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(REFERENCE.seeds, name))
    (tmp_path / "seeds.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"seeds\.safetensors"):
        ReferenceModel.load(tmp_path)


@pytest.mark.parametrize("name", ["made.zarr", "made.h5ad"])
def test_the_file_holds_what_memory_does(tmp_path, name):
    (tmp_path / "reference").mkdir()
    REFERENCE.save(tmp_path / "reference")
    random_cells().write_h5ad(tmp_path / "cells.h5ad")
    how = Generation(
        Changes({"cell_type": "@wanted"}, jitter={"time": Jitter("U", -1, 1)}, sweeps={"platform": "10x:Drop-seq:2"})
    )
    options = generate.GenerateOptions(tmp_path / "cells.h5ad", tmp_path / "reference", tmp_path / name, how)
    assert generate.run(options)["cells"] == 60
    made = (anndata.read_zarr if name.endswith("zarr") else anndata.read_h5ad)(tmp_path / name)
    expected = REFERENCE.generate(random_cells(), how)
    np.testing.assert_allclose(made.X.toarray(), expected.X.toarray(), rtol=1e-4, atol=1e-5)
    assert list(made.obs_names) == list(expected.obs_names)
    for column in ("cell_type_generated", "time_generated", "platform_generated"):
        assert made.obs[column].tolist() == expected.obs[column].tolist()
    assert list(made.var_names) == [f"G{i}" for i in range(NUM_GENES)]
    facts = made.uns["unicoord"]
    assert (facts["reference"], facts["cells"], facts["seed"]) == ("reference", "cells.h5ad", 0)
    assert dict(facts["jitter"]) == {"time": "U(-1,1)"}


def test_cells_between_two_others_and_like_seeds_are_written(tmp_path):
    (tmp_path / "reference").mkdir()
    REFERENCE.save(tmp_path / "reference")
    random_cells().write_h5ad(tmp_path / "cells.h5ad")
    how = Generation(sample="mode")
    options = generate.GenerateOptions(
        tmp_path / "cells.h5ad", tmp_path / "reference", tmp_path / "way.h5ad", how, between=("cell9", "cell2"), steps=4
    )
    generate.run(options)
    way = anndata.read_h5ad(tmp_path / "way.h5ad")
    ends = REFERENCE.generate(random_cells(), Generation(reconstruct=True, sample="mode"))
    np.testing.assert_allclose(way.X.toarray()[[0, -1]], ends.X.toarray()[[9, 2]], rtol=1e-4, atol=1e-5)
    assert way.obs["share"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    with pytest.raises(AlreadyDone):
        generate.run(options)
    with pytest.raises(DataError, match=r"way\.h5ad exists"):  # more steps are another output
        generate.run(replace(options, steps=5))
    with pytest.raises(DataError, match="no cell 'cell99'"):
        generate.run(replace(options, between=("cell99", "cell2"), out=tmp_path / "other.h5ad"))
    like = generate.GenerateOptions(
        None, tmp_path / "reference", tmp_path / "like.zarr", Generation(counts=True), {"cell_type": "T"}, 9
    )
    generate.run(like)
    made = anndata.read_zarr(tmp_path / "like.zarr")
    assert made.obs["cell_type_generated"].tolist() == ["T"] * 9
    assert (made.X.data == np.rint(made.X.data)).all()
    with pytest.raises(AlreadyDone):
        generate.run(like)
    with pytest.raises(DataError, match=r"like\.zarr"):  # more cells are another output
        generate.run(replace(like, num=10))
    for wrong, words in (
        (replace(like, cells=tmp_path / "cells.h5ad"), "either"),
        (replace(like, between=("cell9", "cell2")), "--between"),
        (replace(options, num=5), "--num"),
        (replace(options, out=tmp_path / "x.h5ad", steps=1), "--steps"),
    ):
        with pytest.raises(UsageError, match=words):
            generate.run(wrong)


def test_an_atlas_store_is_generated_from_as_the_file_it_was_made_of(tmp_path):
    REFERENCE.save(tmp_path / "reference")
    random_cells().write_h5ad(tmp_path / "cells.h5ad")
    ingest.run(ingest.IngestOptions([str(tmp_path / "cells.h5ad")], tmp_path / "atlas.zarr"))
    counts = random_cells().X.toarray()
    for cells in ("cells.h5ad", "atlas.zarr"):
        with open_query(tmp_path / cells) as source:
            blocks = list(PickedRows(source, [7, 3, 3, 29]).blocks(3))
            names = list(source.obs.index[[9, 2]])
        picked = [sp.csr_matrix((b.data, b.indices, b.indptr), (b.num_rows, NUM_GENES)).toarray() for b in blocks]
        np.testing.assert_array_equal(np.concatenate(picked), counts[[7, 3, 3, 29]])
        for title, how, ends in (
            ("all", Generation(Changes(sweeps={"time": "0:10:3"})), None),
            ("way", Generation(sample="mode"), (names[0], names[1])),
        ):
            out = tmp_path / f"{title}_{cells}.h5ad"
            options = generate.GenerateOptions(
                tmp_path / cells, tmp_path / "reference", out, how, between=ends, steps=4
            )
            generate.run(options)
    for title, num_cells in (("all", 90), ("way", 4)):
        of_file, of_atlas = (
            anndata.read_h5ad(tmp_path / f"{title}_{name}.h5ad") for name in ("cells.h5ad", "atlas.zarr")
        )
        assert of_atlas.n_obs == num_cells and of_atlas.obs_names.is_unique
        np.testing.assert_allclose(of_atlas.X.toarray(), of_file.X.toarray(), rtol=1e-5, atol=1e-6)
        assert of_atlas.uns["unicoord"]["profile_share"] == 1


def test_a_growing_store_is_whole_over_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("unicoord_atlas.loaders.zarr_layout.MatrixLayout.__init__.__defaults__", (100, 3))
    matrix = sp.random(90, 50, 0.3, format="csr", rng=np.random.default_rng(0), dtype=np.float32)
    for name in ("x.zarr", "x.h5ad"):
        with growing_writer.growing_writer(tmp_path / name, 50) as writer:
            for start in range(0, 90, 13):
                rows = matrix[start : start + 13]
                writer.append(CsrBlock(rows.indptr.astype(np.int64), rows.indices, rows.data))
            cells = random_cells(90).obs.drop(columns="wanted")
            writer.finish(cells, random_cells(3).var[:50], {"unicoord": {}})
    stored = (anndata.read_zarr(tmp_path / "x.zarr"), anndata.read_h5ad(tmp_path / "x.h5ad"))
    for made in stored:
        np.testing.assert_array_equal(made.X.toarray(), matrix.toarray())
    assert len(list((tmp_path / "x.zarr" / "X" / "data" / "c").iterdir())) == -(-matrix.nnz // 300)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float64"])
@pytest.mark.parametrize("name", ["x.zarr", "x.h5ad"])
def test_a_growing_store_keeps_values_and_genes_as_they_are(tmp_path, name, dtype):
    """More entries than a chunk of an .h5ad; a var with missing texts."""
    matrix = sp.csr_matrix(np.random.default_rng(0).integers(0, 3, (2000, NUM_GENES)).astype(dtype))
    var = random_cells(3).var.assign(note=pd.array(["a", None] * (NUM_GENES // 2), "string"))
    with growing_writer.growing_writer(tmp_path / name, NUM_GENES, matrix.dtype) as writer:
        writer.append(CsrBlock(matrix.indptr.astype(np.int64), matrix.indices, matrix.data))
        writer.finish(random_cells(2000).obs.drop(columns="wanted"), var, {"unicoord": {}})
    made = (anndata.read_zarr if name.endswith("zarr") else anndata.read_h5ad)(tmp_path / name)
    assert made.X.dtype == dtype
    np.testing.assert_array_equal(made.X.toarray(), matrix.toarray())
    assert made.var["note"].isna().tolist() == [False, True] * (NUM_GENES // 2)


def cells_and_reference(folder, num_cells):
    """Where both lie now."""
    (folder / "reference").mkdir()
    REFERENCE.save(folder / "reference")
    cells = random_cells(num_cells)
    cells.obs["cell_type"] = np.resize(CLASSES, num_cells)
    cells.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad", folder / "reference"


@pytest.mark.parametrize("kind", ["nearest", "markers", "trajectory", "sweep-gif"])
def test_figures_are_drawn(tmp_path, kind):
    given = cells_and_reference(tmp_path, 120)
    swept = kind in figure.SWEPT
    changes = Changes({"platform": "10x"}, sweeps={"time": "0:10:3"}) if swept else Changes({"cell_type": "B"})
    out = tmp_path / ("made.gif" if kind == "sweep-gif" else "made.png")
    options = figure.FigureOptions(kind, *given, out, Generation(changes), "cell_type", ["G1", "G2"], 90)
    assert figure.run(options)["cells"] == 90
    assert out.read_bytes()[:4] in (b"\x89PNG", b"GIF8")
    for wrong, words in (
        (replace(options, out=tmp_path / "made.pdf"), "ends in"),
        (replace(options, by="organ", out=out.with_name("b" + out.name)), "wanted, time, cell_type"),
        (
            replace(
                options, how=Generation(Changes({"cell_type": "B"}) if swept else Changes(sweeps={"time": "0:1:2"}))
            ),
            "--sweep",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            figure.run(wrong)


@pytest.mark.parametrize("kind", ["nearest", "trajectory", "sweep-gif"])
def test_a_figure_on_a_plane_takes_four_cells_or_more(tmp_path, kind):
    changes = Changes({"cell_type": "B"}) if kind == "nearest" else Changes({}, sweeps={"time": "0:10:3"})
    out = tmp_path / ("made.gif" if kind == "sweep-gif" else "made.png")
    given = (*cells_and_reference(tmp_path, 6), out, Generation(changes), "cell_type", [])
    with pytest.raises(UsageError, match=r"has 6 cells and --max-cells is 3; a plane is laid through 4 or more"):
        figure.run(figure.FigureOptions(kind, *given, 3))
    assert not out.exists()
    assert figure.run(figure.FigureOptions(kind, *given, 4))["cells"] == 4


def test_a_scene_holds_real_cells_and_every_point_of_the_sweep():
    cells = random_cells(20)
    how = Generation(Changes({"cell_type": "B"}, sweeps={"time": "0:10:3"}), sample="mode", min_value=0)
    made = scene.make_scene(REFERENCE, AnnDataCells(cells), cells.obs, how, scene.every_gene)
    expected = REFERENCE.generate(cells, how).X.toarray()
    np.testing.assert_allclose(made.made_pnm[1], expected[1::3], rtol=1e-4, atol=1e-5)
    assert made.titles == (0.0, 5.0, 10.0)
    np.testing.assert_array_equal(scene.nearest_cells(made.real_nm * 3, made.real_nm), np.arange(20))
    centre, directions = scene.principal_components(made.real_nm, 4)
    places = (made.real_nm - centre) @ directions
    singular = np.linalg.svd(made.real_nm - made.real_nm.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(places, axis=0), singular[:4], rtol=1e-3)


def test_a_scene_keeps_of_each_cell_what_the_dense_cells_would_give(monkeypatch):
    monkeypatch.setattr("unicoord_atlas.generate.CELLS_AT_ONCE", 7)
    cells, how = random_cells(20), Generation(Changes({"cell_type": "B"}, sweeps={"time": "0:10:3"}))

    def kept(view_of):
        return scene.make_scene(REFERENCE, AnnDataCells(cells), cells.obs, how, view_of)

    dense, places, genes = kept(scene.every_gene), kept(scene.plane), kept(scene.these_genes([9, 2]))
    assert dense.made_pnm.shape == (3, 20, NUM_GENES)
    centre, directions = scene.principal_components(dense.real_nm, 2)
    np.testing.assert_allclose(places.real_nm, (dense.real_nm - centre) @ directions, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(places.made_pnm, (dense.made_pnm - centre) @ directions, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(genes.real_nm, dense.real_nm[:, [9, 2]])
    np.testing.assert_array_equal(genes.made_pnm, dense.made_pnm[..., [9, 2]])
    assert places.titles == genes.titles == dense.titles


def test_genes_are_found_among_the_model_s_own_by_any_of_their_names():
    spec = REFERENCE.model.spec.model_copy(update={"num_genes": 3, "num_atlas_genes": NUM_GENES})
    model = JointVAE(spec)
    model.start_from(own_genes=torch.tensor([1, 5, 9]))
    schema = REFERENCE.schema.model_copy(update={"aliases": {"ENSG00000000005": 5, "ENSG00000000006": 6}})
    reference = ReferenceModel(model, REFERENCE.config, schema, REFERENCE.normalization)
    assert scene.gene_columns(reference, ["G9", "ENSG00000000005.7", "G5"]) == [2, 1, 1]
    for unknown in ("Z", "G2", "ENSG00000000006"):  # the last two are the atlas's, not the model's
        with pytest.raises(UsageError, match=f"no gene '{unknown}'"):
            scene.gene_columns(reference, ["G1", unknown])
