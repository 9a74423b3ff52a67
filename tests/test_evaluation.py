import anndata
import numpy as np
import pandas as pd
import pytest
from references import CLASSES, random_reference
from scipy.stats import ttest_ind
from sklearn.metrics import log_loss, precision_recall_fscore_support, roc_auc_score

from unicoord_atlas import evaluation, lineage
from unicoord_atlas.calls import UNASSIGNED, ParentShares
from unicoord_atlas.coordinate_facts import facts_of
from unicoord_atlas.jobs import evaluate
from unicoord_atlas.lineage import Tie


def labelled(n: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and predicted names of four classes, and probabilities of which the arg-max is the prediction."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, n)
    probabilities = rng.dirichlet(np.ones(4), n) + 2 * np.eye(4)[true] * rng.random((n, 1))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return true, probabilities.argmax(axis=1), probabilities


def test_folded_classes_and_others_in_any_case_are_the_class_other():
    names = np.array(["B", "Megakaryocyte", "Others", "OTHER", "Alien"])
    found = evaluation.as_classes(names, ["B", "other"], {"Megakaryocyte"})
    assert found.tolist() == ["B", "other", "other", "other", "Alien"]
    assert evaluation.as_classes(names, ["B"], {"Megakaryocyte"}).tolist() == names.tolist()
    assert evaluation.as_classes(names[:0], ["B", "other"], {"Megakaryocyte"}).tolist() == []


def test_class_scores_are_scikit_learn_s():
    true, predicted, _ = labelled()
    names = np.array(["a", "b", "c", "d"])
    table = evaluation.class_scores(names[true], names[predicted])
    expected = precision_recall_fscore_support(true, predicted)
    for column, values in zip(("precision", "recall", "f1", "cells"), expected, strict=True):
        np.testing.assert_allclose(table[column], values)


def test_likelihood_and_separation_are_scikit_learn_s():
    true, predicted, probabilities = labelled()
    assert evaluation.negative_log_likelihood(probabilities, true) == pytest.approx(log_loss(true, probabilities))
    scores = np.round(probabilities.max(axis=1), 1)  # with ties
    assert evaluation.separation(predicted != true, scores) == pytest.approx(roc_auc_score(predicted != true, scores))


def test_a_forecaster_that_keeps_its_word_has_no_calibration_error():
    confidence = np.repeat([0.2, 0.6, 1.0], 1500)
    right = np.concatenate([np.arange(1500) % 5 == 0, np.arange(1500) % 5 < 3, np.ones(1500, bool)])
    assert evaluation.calibration_error(evaluation.calibration_bins(right, confidence)) == pytest.approx(0, abs=1e-9)
    boasting = evaluation.calibration_bins(right, np.ones(4500))
    assert len(boasting) == 15
    assert set(boasting["cells"]) == {300}
    assert evaluation.calibration_error(boasting) == pytest.approx(1 - right.mean())


def test_selective_accuracy_leaves_out_the_least_confident():
    right = np.array([True, False, True, True])
    assert evaluation.selective_accuracy(right, np.array([0.9, 0.1, 0.8, 0.7]), 0.75) == 1.0


def test_the_right_parent_is_half_right():
    above = [{"CD4": {"T"}, "CD8": {"T"}, "Mono": {"Myeloid"}}]
    true, predicted = np.array(["CD4", "CD4", "CD4"]), np.array(["CD4", "CD8", "Mono"])
    assert evaluation.hierarchical_f1(true, predicted, above) == pytest.approx((2 + 1 + 0) / 6)


def test_a_class_of_two_parents_counts_under_both(tmp_path):
    """In a file of coordinates, and as the run's own metric of that name counts; an older file knows one parent."""
    shares = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))  # of B, NK and T in 10x and Drop-seq
    reference = random_reference(0)
    tree = ParentShares(parent="platform", child="cell_type", shares=shares)
    reference.config = reference.config.model_copy(update={"parent_shares": (tree,)})
    mapped = anndata.AnnData(obs=pd.DataFrame(index=["a"]), uns={"unicoord": facts_of(reference)})
    mapped.write_h5ad(tmp_path / "mapped.h5ad")
    facts = anndata.read_h5ad(tmp_path / "mapped.h5ad").uns["unicoord"]
    above = evaluate._parents_above(facts, "cell_type")
    assert above == [{"B": {"10x"}, "NK": {"10x", "Drop-seq"}, "T": {"Drop-seq"}}]

    true, predicted = np.array(["NK", "NK", "B", "T"]), np.array(["T", "NK", "NK", "B"])
    found = evaluation.hierarchical_f1(true, predicted, above)
    assert found == pytest.approx(2 * (1 + 3 + 1 + 0) / ((3 + 2) + (3 + 3) + (2 + 3) + (2 + 2)))
    codes = [np.array([CLASSES.index(name) for name in names]) for names in (true, predicted)]
    tie = Tie.of("platform", "cell_type", shares)
    assert found == pytest.approx(lineage.hierarchical_f1(*codes, [tie], [2]))

    obs = pd.DataFrame({"cell_type_call": ["Drop-seq", "10x", "Drop-seq", UNASSIGNED]})
    metrics = evaluate._call_metrics(obs, "cell_type", true, np.ones(4, bool), above)
    assert metrics == {"called": 0.75, "accuracy_of_calls": pytest.approx(2 / 3)}

    del facts["parents"]["cell_type"]["pairs"]
    assert evaluate._parents_above(facts, "cell_type") == [{"B": {"10x"}, "NK": {"10x"}, "T": {"Drop-seq"}}]


def test_a_class_of_no_parent_shares_none_with_another():
    above = [{"CD4": {"T"}, "new": set()}]
    assert evaluation.hierarchical_f1(np.array(["new"]), np.array(["older"]), above) == 0
    assert evaluation.hierarchical_f1(np.array(["new", "CD4"]), np.array(["new", "CD4"]), above) == 1


def test_explained_variance_is_the_share_between_groups_and_the_squared_correlation():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 3, 400)
    time = rng.random(400)
    values = np.stack([groups + 0.1 * rng.normal(size=400), time + rng.normal(size=400)], axis=1).astype(np.float32)
    table = evaluation.explained_by(
        pd.DataFrame({"type": np.array(["x", "y", "z"])[groups], "time": time}), values, ["one", "two"]
    )
    within = sum(((values[groups == g] - values[groups == g].mean(axis=0)) ** 2).sum(axis=0) for g in range(3))
    total = ((values - values.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(table.loc["type"], 1 - within / total, atol=1e-5)
    np.testing.assert_allclose(table.loc["time", "two"], np.corrcoef(time, values[:, 1])[0, 1] ** 2, rtol=1e-5)


def test_cells_without_a_finite_number_and_columns_without_a_value_explain_nothing():
    labels = pd.DataFrame({"none": [None] * 4, "time": [0, 1, np.inf, np.nan], "type": ["x", "x", "y", None]})
    values = np.array([[0], [2], [9], [5]], np.float32)
    table = evaluation.explained_by(labels, values, ["one"])
    assert list(table.index) == ["time", "type"]
    assert table.loc["time", "one"] == pytest.approx(1)
    total = ((values[:3] - values[:3].mean()) ** 2).sum()
    assert table.loc["type", "one"] == pytest.approx(1 - 2 / total)


def test_activities_are_ranked_by_welch_s_t():
    rng = np.random.default_rng(2)
    groups = np.array(["a", "b", "b"])[rng.integers(0, 3, 300)]
    values = rng.normal(size=(300, 2)).astype(np.float32)
    values[groups == "a", 1] += 1
    table = evaluation.activities_by_group(groups, values, ["p", "q"])
    assert table["name"].tolist() == ["q", "p", "p", "q"]
    expected = ttest_ind(values[groups == "a", 1], values[groups != "a", 1], equal_var=False).statistic
    assert table["score"][0] == pytest.approx(expected, rel=1e-5)
