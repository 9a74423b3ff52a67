import numpy as np
import pandas as pd
import pytest

from unicoord_atlas.errors import DataError
from unicoord_atlas.loaders.labels import LabelRules, as_texts, join_labels, labels_of, read_label_map, unseen_values


def texts(categorical):
    return [None if pd.isna(value) else value for value in categorical]


@pytest.mark.parametrize("word", ["", " ", "NA", "n/a", "NaN", "None", "(none)", "null", "Unknown", "unassigned", "?"])
def test_unlabelled_words_are_no_labels(tmp_path, word):
    obs = pd.DataFrame({"cell_type": ["B", word, "T", None]})
    labels = labels_of("s", tmp_path, obs, LabelRules.of(["cell_type"], None))
    assert texts(labels["cell_type"]) == ["B", None, "T", None]


def test_unlabelled_option_adds_words(tmp_path):
    obs = pd.DataFrame({"t": pd.Categorical(["Other", "NA", "other", "B"])})
    labels = labels_of("s", tmp_path, obs, LabelRules.of(["t"], None, unlabelled=["OTHER"]))
    assert texts(labels["t"]) == [None, None, None, "B"]
    assert list(labels["t"].categories) == ["B"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 1], ["1", "2", "1"]),
        ([1.0, np.nan, 2.5], ["1", None, "2.5"]),
        (pd.array([1, None, 3], dtype="Int32"), ["1", None, "3"]),
        ([True, False, True], ["True", "False", "True"]),
        (pd.Categorical([3, 1, None]), ["3", "1", None]),
    ],
)
def test_labels_of_any_type_become_texts(values, expected):
    assert texts(as_texts(pd.Series(values))) == expected


def test_label_map_fills_several_columns_and_leaves_the_rest_unlabelled(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text(
        "source,column,label,cell_type,cell_class\na,type,B cells,B,Lymphoid\na,type,Mono,Mono,Myeloid\na,type,odd,,\n"
    )
    rules = LabelRules.of(["cell_type", "batch"], path)
    assert rules.columns == ("cell_type", "batch", "cell_class")
    obs = pd.DataFrame({"type": ["B cells", "Mono", "odd", "NK"], "batch": [1, 1, 2, 2], "cell_type": "x"})
    labels = labels_of("a", tmp_path, obs, rules)
    assert texts(labels["cell_type"]) == ["B", "Mono", None, None]
    assert texts(labels["cell_class"]) == ["Lymphoid", "Myeloid", None, None]
    assert texts(labels["batch"]) == ["1", "1", "2", "2"]
    assert unseen_values("a", obs.iloc[:1], rules) == ["type=Mono"]


def test_label_map_leaves_other_sources_alone(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("source,column,label,cell_type\na,type,B cells,B\n")
    labels = labels_of("b", tmp_path, pd.DataFrame({"cell_type": ["B cells"]}), LabelRules.of([], path))
    assert texts(labels["cell_type"]) == ["B cells"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must be"),
        ("source,label,cell_type\n", "first line must be"),
        ("source,column,label\n", "first line must be"),
        ("source,column,label,t\na,b\n", "line 2 has 2 cells"),
        ("source,column,label,t\na,b,x,1\na,c,y,2\n", "line 3: t of a is filled by 'b'"),
        ("source,column,label,t\na,b,x,1\na,b,x,2\n", "line 3: 'x' of a is mapped to two"),
    ],
)
def test_bad_label_map_is_refused_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "map.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_label_map(path)
    assert str(path) in str(error.value)


def test_missing_label_column_is_refused_with_the_way_out_or_allowed(tmp_path):
    obs = pd.DataFrame({"other": [1, 2]})
    with pytest.raises(DataError, match=r"no obs column 'cell_type'.*it has: other.*--allow-missing-labels"):
        labels_of("a", tmp_path / "a.h5ad", obs, LabelRules.of(["cell_type"], None))
    labels = labels_of("a", tmp_path, obs, LabelRules.of(["cell_type"], None, allow_missing=True))
    assert texts(labels["cell_type"]) == [None, None]


def test_join_labels_does_not_depend_on_the_order_of_sources(tmp_path):
    parts = [pd.Categorical(["B", None, "A"]), pd.Categorical(["C", "A"]), as_texts(pd.Series([None, None]))]
    forward, column = join_labels("t", parts)
    _, backward = join_labels("t", parts[::-1])
    assert texts(forward) == ["B", None, "A", "C", "A", None, None]
    assert column == backward
    assert (column.categories, column.counts, column.num_unlabelled) == (("A", "B", "C"), (2, 1, 1), 3)
