import numpy as np
import pandas as pd
import pytest

from unicoord_atlas.columns import continuous_values, label_codes, label_column
from unicoord_atlas.errors import ConfigError, DataError, UsageError
from unicoord_atlas.hierarchy import hierarchy_of_columns, parse_hierarchy
from unicoord_atlas.schema import AtlasSchema, LabelColumn, Source, fold_rare


def _schema() -> AtlasSchema:
    measured = np.array([True, False, True])
    return AtlasSchema(
        gene_key="symbol",
        genes=("A", "B", "C"),
        aliases={"ENSG1": 0, "ENSG3": 2},
        labels=(LabelColumn(name="t", categories=("x", "y"), counts=(3, 1)),),
        sources=(Source.of("one", 4, measured), Source.of("two", 2, ~measured)),
    )


def test_schema_survives_json():
    schema = AtlasSchema.from_json(_schema().to_json())
    assert schema == _schema()
    assert schema.measured_sg().tolist() == [[True, False, True], [False, True, False]]


def test_subset_keeps_names_aliases_and_measured_genes_together():
    part = _schema().subset(np.array([1, 2]))
    assert part.genes == ("B", "C")
    assert part.aliases == {"ENSG3": 1}
    assert part.measured_sg().tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-5],
        lambda text: text.replace('"A"', '"B"'),
        lambda text: text.replace('"format_version":1', '"format_version":99'),
        lambda text: text.replace('"ENSG3":2', '"ENSG3":7'),
        lambda text: text.replace('"gene_key"', '"key"'),
        lambda text: "[]",
    ],
)
def test_a_damaged_schema_is_refused_by_name(change):
    with pytest.raises(DataError, match="where it was"):
        AtlasSchema.from_json(change(_schema().to_json()), where="where it was")


def test_measured_bits_that_do_not_fit_are_refused():
    hostile = Source.of("one", 1, np.ones(10**6, np.bool_))
    with pytest.raises(DataError, match="one"):
        hostile.measured(3)


def test_fold_rare_joins_small_classes_and_those_called_other():
    column = LabelColumn(name="t", categories=("B", "Others", "T", "rare"), counts=(50, 5, 60, 3))
    folded, new_code = fold_rare(column, np.array([50, 5, 60, 3]), 20)
    assert folded.categories == ("B", "T", "other")
    assert folded.counts == (50, 60, 8)
    assert folded.folded == {"rare": 3}
    assert new_code.tolist() == [0, 2, 1, 2]
    with pytest.raises(UsageError, match=r"folded into 'other'.*B, T, other"):
        folded.code("rare")


def test_nothing_to_fold_makes_no_other():
    column = LabelColumn(name="t", categories=("B", "T"), counts=(50, 60))
    assert fold_rare(column, np.array([50, 60]), 20)[0].categories == ("B", "T")


def test_codes_follow_the_column_s_categories():
    obs = pd.DataFrame({"t": pd.Categorical(["y", "x", None, "z", "y"])})
    column = LabelColumn(name="t", categories=("x", "y"), counts=(1, 2))
    assert label_codes(obs, column).tolist() == [1, 0, -1, -1, 1]
    assert label_column(obs, "t") == LabelColumn(
        name="t", categories=("x", "y", "z"), counts=(1, 2, 1), num_unlabelled=1
    )


def test_continuous_values_take_numbers_in_any_dress():
    obs = pd.DataFrame({"a": [1, 2], "b": pd.Categorical(["0.5", None])}, index=["c1", "c2"])
    titles, values = continuous_values(obs, {"S": pd.DataFrame({"set": [3.0, 4.0]})}, ["a", "b", "obsm:S"])
    assert titles == ("a", "b", "set")
    np.testing.assert_array_equal(values, [[1, 0.5, 3], [2, np.nan, 4]])
    with pytest.raises(DataError, match=r"'late'.*c1"):
        continuous_values(pd.DataFrame({"t": ["late"]}, index=["c1"]), {}, ["t"])
    with pytest.raises(UsageError, match=r"'x'.*a, b"):
        continuous_values(obs, {}, ["x"])


def test_parse_hierarchy_reads_chains():
    assert [chain.pairs for chain in parse_hierarchy(["a > b > c"])] == [(("a", "b"), ("b", "c"))]
    with pytest.raises(ConfigError, match="parent_column > child_column"):
        parse_hierarchy(["a"])


def test_hierarchy_of_columns_reads_the_tree_off_the_cells():
    parent = LabelColumn(name="class", categories=("L", "M"), counts=(3, 2))
    child = LabelColumn(name="type", categories=("B", "Mono", "other"), counts=(2, 1, 2))
    tree = hierarchy_of_columns(parent, child, np.array([0, 0, 1, 0, 1]), np.array([0, 0, 1, 2, 2]))
    assert tree.parents_kp.tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    with pytest.raises(DataError, match=r"'B' has more than one parent: 'L'.*'M'"):
        hierarchy_of_columns(parent, child, np.array([0, 1]), np.array([0, 0]))
