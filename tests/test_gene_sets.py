from functools import partial
from itertools import pairwise

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from stores import random_counts, write_store

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import DataError
from unicoord_atlas.gene_sets.activities import activity_table
from unicoord_atlas.gene_sets.aucell import RankWeights, keys_of, max_rank, mixed, tie_weights
from unicoord_atlas.gene_sets.entropy import NullEntropies, entropies, null_entropies, size_grid
from unicoord_atlas.gene_sets.gmt import GeneSet, gmt_text, present_sets, read_gmt
from unicoord_atlas.gene_sets.mean_z import StandardValues
from unicoord_atlas.gene_sets.score import SetSums
from unicoord_atlas.gene_sets.selection import (
    correlated_groups,
    first_by,
    forest_importance,
    highest_of_groups,
    levels,
    stratified_rows,
)
from unicoord_atlas.loaders import score_pass
from unicoord_atlas.loaders.in_order import in_order
from unicoord_atlas.loaders.row_file import RowFile
from unicoord_atlas.loaders.score_pass import CellScorer, scores_of_rows, write_scores
from unicoord_atlas.loaders.store import open_store
from unicoord_atlas.normalization import Normalization
from unicoord_atlas.schema import AtlasSchema

SIZES = (3, 10, 29, 30, 31, 60)


def block_of(matrix) -> CsrBlock:
    csr = sp.csr_matrix(matrix)
    return CsrBlock(csr.indptr.astype(np.int64), csr.indices, csr.data)


def random_sets(num_genes: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(num_genes, size, replace=False)) for size in SIZES]


def scores_by_hand(weights_ng: np.ndarray, members: list[np.ndarray], rank: int) -> np.ndarray:
    most = [sum(max(rank - r, 0) for r in range(1, len(m) + 1)) for m in members]
    return np.stack([weights_ng[:, m].sum(axis=1) / top for m, top in zip(members, most, strict=True)], axis=1)


def test_aucell_equals_decoupler_without_ties():
    import decoupler

    x = np.random.default_rng(0).permuted(np.tile(np.arange(1.0, 601), (20, 1)), axis=1)
    members = random_sets(600)
    net = pd.DataFrame(
        [(f"s{i}", f"g{gene}", 1.0) for i, genes in enumerate(members) for gene in genes],
        columns=["source", "target", "weight"],
    )
    table = pd.DataFrame(x, columns=[f"g{i}" for i in range(600)], index=[f"c{i}" for i in range(20)])
    theirs, _ = decoupler.mt.aucell(table, net, tmin=1)
    method = RankWeights(np.ones(600, np.bool_))
    ours = SetSums.of(members, method).scores(method.values(block_of(x), None, None))
    np.testing.assert_allclose(ours, theirs[[f"s{i}" for i in range(len(members))]], atol=1e-6)


def test_ties_weigh_what_breaking_them_at_random_gives_on_average():
    counts = np.random.default_rng(0).poisson(0.8, (8, 200)).astype(np.uint8)
    rank = max_rank(200, 0.2)
    assert rank == 40
    rng = np.random.default_rng(1)
    mean = np.zeros((8, 200))
    for _ in range(4000):
        order = np.lexsort((rng.random((8, 200)), -counts.astype(int)), axis=1)
        places = np.argsort(order, axis=1) + 1
        mean += np.where(counts > 0, np.maximum(rank - places, 0), 0) / 4000
    ours = RankWeights(np.ones(200, np.bool_), 0.2).values(block_of(counts), None, None).toarray()
    np.testing.assert_allclose(ours, mean, atol=1.0)
    assert np.abs(ours - mean).mean() < 0.1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
def test_weights_do_not_depend_on_the_type_of_counts(dtype):
    counts = random_counts(30, 80, density=0.5)
    counts.data = np.minimum(counts.data, 250)
    expected = RankWeights(np.ones(80, np.bool_), 0.5).values(block_of(counts), None, None)
    given = RankWeights(np.ones(80, np.bool_), 0.5).values(block_of(counts.astype(dtype)), None, None)
    np.testing.assert_array_equal(given.toarray(), expected.toarray())


def test_near_values_have_their_order_whatever_else_is_in_the_block():
    """4,096 less either of the first two is the same float32."""
    near = [1, np.nextafter(np.float32(1), np.float32(2)), 2]
    ranks = RankWeights(np.ones(3, np.bool_), 1.0)
    for rows in ([near], [near, [4096, 1, 2]]):
        weights = ranks.values(block_of(np.array(rows, np.float32)), None, None).toarray()
        assert weights[0].tolist() == [0, 1, 2]


def test_genes_that_do_not_count_take_no_rank():
    counts = np.array([[9, 5, 7, 0, 1]])
    ranked = np.array([False, True, True, True, True])
    weights = RankWeights(ranked, 1.0).values(block_of(counts), None, None).toarray()
    assert weights.tolist() == [[0, 2, 3, 0, 1]]  # max_rank 4


def test_random_zeros_follow_the_detected_genes_in_the_order_of_their_hashes():
    counts = random_counts(12, 100, density=0.05).toarray()
    names, genes = [f"c{i}" for i in range(12)], [f"g{i}" for i in range(100)]
    method = RankWeights(np.ones(100, np.bool_), 0.3, "random", keys_of(genes))
    ours = method.values(block_of(counts), None, keys_of(names)).toarray()
    plain = RankWeights(np.ones(100, np.bool_), 0.3).values(block_of(counts), None, None).toarray()
    for row, cell_key in enumerate(keys_of(names)):
        hidden = np.flatnonzero(counts[row] == 0)
        hidden = hidden[np.argsort([mixed(np.array([key ^ cell_key]))[0] for key in keys_of(genes)[hidden]])]
        expected, place = plain[row].copy(), 100 - len(hidden)
        for gene in hidden:
            place += 1
            expected[gene] = max(30 - place, 0)
        np.testing.assert_array_equal(ours[row], expected)
    assert not np.array_equal(ours[6], ours[11])  # two empty cells or not, each cell has its own order


def test_mean_z_is_the_mean_of_z_scores():
    counts = random_counts(40, 60, density=0.4).toarray()
    size_factors = counts.sum(axis=1) + 1
    x = np.log1p(1e4 * counts / size_factors[:, None])
    normalization = Normalization(np.zeros(60, np.bool_), np.full(60, 1 / 60), x.mean(axis=0), x.var(axis=0))
    method = StandardValues.of(normalization)
    members = random_sets(60)
    ours = SetSums.of(members, method).scores(method.values(block_of(counts), 1e4 / size_factors, None))
    z = stats.zscore(x, axis=0)
    np.testing.assert_allclose(ours, np.stack([z[:, m].mean(axis=1) for m in members], axis=1), atol=1e-5)


@pytest.mark.parametrize("zeros", ["unranked", "random"])
def test_chunks_threads_and_kills_change_no_score(tmp_path, monkeypatch, zeros):
    store = open_store(write_store(tmp_path / "atlas.zarr", random_counts(300, 80)))
    method = RankWeights(np.ones(80, np.bool_), 0.2, zeros, keys_of(store.schema.genes))
    scorer = CellScorer(store, method, keys_of(store.obs([]).index))
    sets = SetSums.of(random_sets(80), method)
    whole = scores_of_rows(scorer, sets, np.arange(300), map)
    rows = np.array([3, 4, 5, 90, 299])
    np.testing.assert_array_equal(scores_of_rows(scorer, sets, rows, map), whole[rows])
    monkeypatch.setattr(score_pass, "PIECE", 41)
    out = RowFile(tmp_path / "scores.f32", 300, len(SIZES), np.float32)

    def killed(function, items):
        for number, item in enumerate(items):
            if number == 3:
                raise KeyboardInterrupt
            yield function(item)

    with pytest.raises(KeyboardInterrupt):
        write_scores(scorer, sets, out, killed, int)
    again = RowFile(tmp_path / "scores.f32", 300, len(SIZES), np.float32)
    assert again.next_row == 123
    write_scores(scorer, sets, again, partial(in_order, threads=2), int)
    assert again.rows().tobytes() == whole.tobytes()


def test_read_gmt_names_what_is_wrong(tmp_path):
    file = tmp_path / "sets.gmt"
    file.write_text("a\thttp://x\tg1\tg2\tg2\nb\tcell cycle G1/S\tg3\n")
    assert read_gmt(file) == (GeneSet("a", "http://x", ("g1", "g2")), GeneSet("b", "cell cycle G1/S", ("g3",)))
    for text, word in (("a\tx\n", "line 1"), ("a\tx\tg\na\ty\tg\n", "line 2.*'a'"), ("", "holds no gene set")):
        file.write_text(text)
        with pytest.raises(DataError, match=f"sets.gmt.*{word}"):
            read_gmt(file)
    with pytest.raises(DataError, match=r"no\.gmt"):
        read_gmt(tmp_path / "no.gmt")


def test_present_sets_count_genes_that_count_and_have_titles_without_slashes(tmp_path):
    schema = AtlasSchema(gene_key="symbol", genes=("g1", "g2", "g3", "g4"), aliases={"old3": 2})
    sets = (
        GeneSet("a", "na", ("g1", "g2", "old3", "g3")),
        GeneSet("b", "G1/S", ("g1", "g4", "g2")),
        GeneSet("c", "same", ("g1", "g2")),
        GeneSet("d", "same", ("g2", "g3", "unknown")),
        GeneSet("e", "small", ("g4", "g1")),
    )
    found = present_sets(sets, schema, np.array([True, True, True, False]), 2, 3)
    assert [(s.name, s.title, s.members.tolist(), s.num_genes) for s in found] == [
        ("a", "a", [0, 1, 2], 4),
        ("b", "G1-S", [0, 1], 3),
        ("c", "c", [0, 1], 2),
        ("d", "d", [1, 2], 3),
    ]
    (tmp_path / "chosen.gmt").write_text(gmt_text(found, schema.genes))
    again = present_sets(read_gmt(tmp_path / "chosen.gmt"), schema, np.ones(4, np.bool_), 1, 4)
    assert [(s.title, s.members.tolist()) for s in again] == [(s.title, s.members.tolist()) for s in found]
    with pytest.raises(DataError, match=r"none of its 5 sets has 9 to 10 genes.*most of any is 3.*'g1'"):
        present_sets(sets, schema, np.ones(4, np.bool_), 9, 10)


def test_entropies_equal_scipys_of_a_histogram():
    scores = np.random.default_rng(0).beta(2, 5, (400, 7)).astype(np.float32)
    scores[:3] = [[0.0], [1.0], [0.999]]
    expected = [stats.entropy(np.histogram(column.astype(float), 100, (0, 1))[0]) for column in scores.T]
    np.testing.assert_allclose(entropies(scores), expected, rtol=1e-12)
    assert entropies(np.zeros((5, 1), np.float32))[0] == 0
    np.testing.assert_allclose(entropies(np.array([[-2.0], [0.001]], np.float32), (-1, 1), 2), [np.log(2)])


def test_entropies_of_many_sets_are_those_of_each():
    scores = np.random.default_rng(0).random((50, 300), np.float32)
    np.testing.assert_array_equal(entropies(scores)[::70], [entropies(scores[:, [s]])[0] for s in range(0, 300, 70)])


def test_forest_in_parts_ranks_sets_as_one_forest_does():
    rng = np.random.default_rng(0)
    types = rng.integers(0, 3, 300)
    scores = rng.normal(size=(300, 6)).astype(np.float32)
    scores[:, 1] += types
    scores[:, 4] += 2 * types
    found = forest_importance(scores, types, 60, 0, 1)
    whole = RandomForestClassifier(60, random_state=0).fit(scores, types).feature_importances_
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, whole, atol=0.03)
    np.testing.assert_array_equal(found, forest_importance(scores, types, 60, 0, 2))


def test_levels_are_few_and_keep_the_order_of_scores():
    scores = np.random.default_rng(1).normal(size=(2_000, 3)).astype(np.float32)
    scores[:, 1] = np.maximum(scores[:, 1], 0)  # half of them the same
    scores[:, 2] = 1
    found = levels(scores, 64)
    assert [len(np.unique(column)) for column in found.T[[0, 2]]] == [64, 1]
    assert 30 < len(np.unique(found[:, 1])) < 40
    for score_n, level_n in zip(scores.T, found.T, strict=True):
        assert (np.diff(level_n[np.argsort(score_n)]) >= 0).all()
        assert len(np.unique(level_n[score_n == score_n.min()])) == 1
    assert np.bincount(found[:, 0].astype(int)).tolist() == pytest.approx([2_000 / 64] * 64, abs=1)


def test_forest_without_levels_splits_between_all_scores():
    rng = np.random.default_rng(1)
    types = rng.integers(0, 3, 400)
    scores = rng.normal(size=(400, 4)).astype(np.float32)
    scores[:, 2] += types
    found = forest_importance(scores, types, 12, 3, 1, num_levels=0)
    expected = np.zeros(4)
    for first, trees in ((0, 8), (8, 4)):
        drawn = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([3, first])))
        expected += trees * RandomForestClassifier(trees, random_state=drawn).fit(scores, types).feature_importances_
    np.testing.assert_allclose(found, expected / 12, rtol=1e-12)
    of_levels = forest_importance(scores, types, 12, 3, 1)
    assert (found != of_levels).any()
    np.testing.assert_array_equal(of_levels, forest_importance(levels(scores, 64), types, 12, 3, 1, num_levels=0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
def test_ties_weigh_what_their_places_do_on_average(dtype):
    """Many cells of few counts, few of many, some with both: all ways to rank them, against every place by itself."""
    rng = np.random.default_rng(3)
    for rows, highest, high_share in ((40, 6, 0), (2, 250, 0), (40, 6, 0.2), (40, 6, 0.9)):
        indptr = np.cumsum([0, *rng.integers(0, 120, rows), 0])
        data = rng.integers(1, highest, indptr[-1]).astype(dtype)
        is_high = rng.random(len(data)) < high_share
        data[is_high] += rng.integers(1, 240, is_high.sum()).astype(dtype)
        expected = []
        for start, stop in pairwise(indptr):
            place = stats.rankdata(-data[start:stop].astype(np.float64), method="ordinal")
            weight = np.maximum(50 - place, 0)
            expected += [weight[data[start:stop] == value].mean() for value in data[start:stop]]
        np.testing.assert_allclose(tie_weights(indptr, data, 50), expected, rtol=1e-6)
        np.testing.assert_array_equal(tie_weights(indptr, data, 50), tie_weights(indptr, data.astype(np.float32), 50))


def test_p_values_come_from_random_sets_of_the_size():
    null = NullEntropies(np.array([10, 1000]), np.array([[0.0, 1, 2, 3], [2.0, 3, 4, 5]]))
    np.testing.assert_allclose(null.of_size(100), [1, 2, 3, 4])  # half-way in the logarithm
    assert null.of_size(5).tolist() == [0, 1, 2, 3]
    assert null.p_value(100, 2.5) == 3 / 5
    assert null.p_value(100, 4.5) == 1 / 5
    assert size_grid([50, 500, 70], 3).tolist() == [50, 158, 500]
    assert size_grid([50], 12).tolist() == [50]


def test_null_is_the_entropy_of_random_sets_in_any_order_of_work():
    counts = random_counts(60, 50, density=0.5)
    method = RankWeights(np.ones(50, np.bool_), 0.4)
    values = method.values(block_of(counts), None, None)
    present = np.arange(5, 50)
    found = null_entropies(values, present, method, np.array([4, 45]), 700, 3)
    shuffled = null_entropies(
        values, present, method, np.array([4, 45]), 700, 3, lambda f, items: list(map(f, items[::-1]))[::-1]
    )
    np.testing.assert_array_equal(found.sorted_cr, shuffled.sorted_cr)
    only = entropies(SetSums.of([present], method).scores(values))[0]
    np.testing.assert_array_equal(found.sorted_cr[1], np.full(700, only))  # all genes present: the same set each time
    rng = np.random.default_rng(9)
    brute = [
        entropies(SetSums.of([np.sort(rng.choice(present, 4, replace=False))], method).scores(values))[0]
        for _ in range(700)
    ]
    assert stats.ks_2samp(found.sorted_cr[0], brute).pvalue > 0.01


def test_stratified_rows_keep_shares_and_rare_types():
    codes = np.array([0] * 60 + [1] * 36 + [2] * 3 + [-1] * 10)
    rows = stratified_rows(codes, 34, seed=0)
    assert np.bincount(codes[rows]).tolist() == [21, 12, 1]
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, stratified_rows(codes, 34, seed=0))
    assert not np.array_equal(rows, stratified_rows(codes, 34, seed=1))
    np.testing.assert_array_equal(stratified_rows(codes, 500, 0), np.arange(99))
    with pytest.raises(DataError, match="fewer than two types"):
        stratified_rows(np.array([0, 0, -1]), 2, 0)


def test_groups_are_the_planted_ones_and_give_their_highest_entropy():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(500, 3))
    scores = factors[:, [0, 0, 1, 1, 1, 2]] + 0.2 * rng.normal(size=(500, 6))
    groups = correlated_groups(scores.astype(np.float32), 3)
    np.testing.assert_allclose(groups.correlation_tt, np.corrcoef(scores.T), atol=1e-6)
    assert [len(set(groups.group_t[part])) for part in ([0, 1], [2, 3, 4], [5])] == [1, 1, 1]
    assert len(set(groups.group_t)) == 3
    assert highest_of_groups(groups.group_t, np.array([1.0, 2, 5, 9, 9, 0])).tolist() == [1, 3, 5]
    assert first_by(np.array([1.0, 3, 3, 0]), 3).tolist() == [1, 2, 0]
    with pytest.raises(DataError, match="number 1"):
        correlated_groups(np.array([[1, 1], [2, 1], [3, 1]], np.float32), 2)


def test_activities_equal_scanpys_test():
    rng = np.random.default_rng(0)
    types = pd.Series(pd.Categorical(rng.choice(["B", "T", "NK"], 300)), name="cell_type")
    scores = pd.DataFrame(
        5 + rng.normal(size=(300, 5)) + 0.5 * types.cat.codes.to_numpy()[:, None], columns=list("abcde")
    )
    table = activity_table(scores, types)
    cells = anndata.AnnData(
        scores.to_numpy(), obs=pd.DataFrame({"cell_type": types.to_numpy()}, index=map(str, range(300)))
    )
    cells.var_names = scores.columns
    sc.tl.rank_genes_groups(cells, "cell_type", method="t-test")
    for name in ("B", "T", "NK"):
        theirs = sc.get.rank_genes_groups_df(cells, name)
        ours = table[table["type"] == name]
        assert ours["set"].tolist() == theirs["names"].tolist()
        np.testing.assert_allclose(ours["score"], theirs["scores"], rtol=1e-4)
        np.testing.assert_allclose(ours["pval_adj"], theirs["pvals_adj"], rtol=1e-4)
    inside = (types == "B").to_numpy()
    first = table.iloc[0]
    assert first["share_above"] == (scores[first["set"]][inside] > scores[first["set"]].mean()).mean()
    missing = types.astype(object).where(np.arange(300) > 50)
    assert activity_table(scores, missing.rename("t"))["cells"].iloc[0] == (inside[51:]).sum()
    with pytest.raises(DataError, match="cell_type: fewer than two types"):
        activity_table(scores, pd.Series(["B"] * 300, name="cell_type"))
