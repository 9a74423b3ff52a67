import itertools
import json

import numcodecs.zstd
import numpy as np
import pandas as pd
import pytest

from unicoord_atlas.errors import ConfigError, DataError
from unicoord_atlas.hierarchy import hierarchy_of_tree, parse_hierarchy
from unicoord_atlas.label_tree import read_tree
from unicoord_atlas.lineage import Tie, agreement, chain_above, consistent_codes, hierarchical_f1
from unicoord_atlas.schema import LabelColumn
from unicoord_atlas.tree_levels import level_columns

LINES = """uhafID,father,child
0,,Cell
1,Cell,Blood
2,Cell,Tissue
3,Blood,Lymphoid
4,Blood,Myeloid
5,Lymphoid,B
6,Lymphoid,T
7,Myeloid,Mono
8,Tissue,Fibro
9,Tissue,pDC
10,Myeloid,pDC
"""


@pytest.fixture
def tree_file(tmp_path):
    file = tmp_path / "tree.csv"
    file.write_text("\ufeff" + LINES, encoding="utf-8")
    return file


def column(name: str, *categories: str, **facts) -> LabelColumn:
    return LabelColumn(name=name, categories=categories, counts=(1,) * len(categories), **facts)


def test_uhaf_is_read_with_its_many_parents(shared_data):
    tree = read_tree(shared_data / "heca_v1" / "uhafOBO_0621.csv")
    assert len(tree.with_many_parents) == 14
    assert tree.parents["Enteroendocrine cell"] == ("Fundic gland", "Endocrine cell")
    assert "Connective tissue" in tree.ancestors(["CD4 T cell"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("11,Nowhere,X\n", r"tree\.csv: 'X' is an orphan: its father 'Nowhere'"),
        ("11,Mono,Blood\n", r"a cycle: ('Blood' < 'Mono' < 'Myeloid' < 'Blood'|'Myeloid' < 'Blood'|'Mono' < )"),
        ("11,Blood,\n", "line 13: no child"),
    ],
)
def test_what_is_wrong_with_a_tree_is_named(tree_file, lines, message):
    tree_file.write_text(LINES + lines)
    with pytest.raises(DataError, match=message):
        read_tree(tree_file)


def test_a_file_that_is_no_tree_is_named(tmp_path):
    file = tmp_path / "x.csv"
    for text, word in (("a,b\n1,2\n", "father and child"), ('{"CL:1": {"label": "x"}}', "ancestors"), ("", "father")):
        file.write_text(text)
        with pytest.raises(DataError, match=f"x.csv.*{word}"):
            read_tree(file)


def test_labels_that_are_not_in_the_tree_are_named_with_what_is_close(tree_file):
    tree = read_tree(tree_file)
    assert tree.find("mono", "t") == "Mono"
    with pytest.raises(DataError, match=r"'Myeloids' of 'cell_type' is not in the tree \(did you mean 'Myeloid'"):
        tree.find("Myeloids", "cell_type")


def test_ontology_knows_ids_labels_and_synonyms(tmp_path):
    terms = {
        "CL:0": {"label": "cell", "ancestors": {}},
        "CL:1": {"label": "lymphocyte", "ancestors": {"CL:0": 1}},
        "CL:2": {"label": "B cell", "ancestors": {"CL:1": 1, "CL:0": 2}, "synonyms": ["B lymphocyte", "cell"]},
        "CL:3": {"label": "gone", "ancestors": {"CL:9": 1}, "deprecated": True},
    }
    file = tmp_path / "cl.json.zst"
    file.write_bytes(numcodecs.zstd.Zstd().encode(json.dumps(terms).encode()))
    tree = read_tree(file)
    assert [tree.find(name, "t") for name in ("CL:2", "B cell", "b lymphocyte", "cell")] == ["CL:2"] * 3 + ["CL:0"]
    assert tree.parents["CL:2"] == ("CL:1",)
    with pytest.raises(DataError, match="'gone'"):
        tree.find("gone", "t")


def test_ontology_as_a_graph_of_nodes_and_edges_is_a_tree_of_its_classes(tmp_path):
    def at(term: str) -> str:
        return f"http://purl.obolibrary.org/obo/{term}"

    synonyms = [{"pred": "hasExactSynonym", "val": "B lymphocyte"}, {"pred": "hasBroadSynonym", "val": "white cell"}]
    nodes = [
        {"id": at("CL_0000000"), "lbl": "cell", "type": "CLASS"},
        {"id": at("CL_0000542"), "lbl": "lymphocyte", "type": "CLASS"},
        {"id": at("CL_0000236"), "lbl": "B cell", "type": "CLASS", "meta": {"synonyms": synonyms}},
        {"id": at("CL_0000001"), "lbl": "gone", "type": "CLASS", "meta": {"deprecated": True}},
        {"id": at("BFO_0000050"), "lbl": "part of", "type": "PROPERTY"},
        {"id": at("CARO_0000013")},
    ]
    edges = [
        {"sub": at("CL_0000236"), "pred": "is_a", "obj": at("CL_0000542")},
        {"sub": at("CL_0000236"), "pred": at("BFO_0000050"), "obj": at("CL_0000000")},
        {"sub": at("CL_0000542"), "pred": "is_a", "obj": at("CL_0000000")},
        {"sub": at("CL_0000000"), "pred": "is_a", "obj": at("CARO_0000013")},
    ]
    file = tmp_path / "cl.json"
    file.write_text(json.dumps({"graphs": [{"nodes": nodes, "edges": edges}]}))
    tree = read_tree(file)
    assert tree.parents == {"CL:0000000": (), "CL:0000542": ("CL:0000000",), "CL:0000236": ("CL:0000542",)}
    assert [tree.find(name, "t") for name in ("CL:0000236", "b cell", "B lymphocyte")] == ["CL:0000236"] * 3
    assert tree.title_of["CL:0000236"] == "B cell"
    with pytest.raises(DataError, match="'white cell' of 't' is not in the tree"):
        tree.find("white cell", "t")
    for wrong in ([1], [{"nodes": [{"lbl": "cell"}]}], 1):
        file.write_text(json.dumps({"graphs": wrong}))
        with pytest.raises(DataError, match=r"cl\.json: .* is it the Cell Ontology"):
            read_tree(file)


def test_cell_ontology_ties_blood_cells(shared_data):
    tree = read_tree(next((shared_data / "cell_ontology").glob("*.zst")))
    labels = pd.Series(["CL:0000236", "CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "monocyte"])
    levels = level_columns(tree, labels.rename("cell_type"), 9)
    finest = list(levels.values())[-1]
    assert finest[1] == finest[2] != finest[0]


def test_a_child_with_two_parents_gives_half_to_each(tree_file):
    tree = read_tree(tree_file)
    assert tree.with_many_parents == ("pDC",)
    assert tree.shares("pDC", {"Blood", "Tissue"}) == {"Tissue": 0.5, "Blood": 0.5}
    parent, child = column("organ", "Blood", "Tissue"), column("type", "B", "pDC", "Fibro")
    found = hierarchy_of_tree(tree, parent, child, np.array([0, 1]), np.array([0, 2]))
    assert found.parents_kp.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    with pytest.raises(DataError, match=r"'B' of 'type' does not lie below 'Tissue', as 2 cells say"):
        hierarchy_of_tree(tree, parent, child, np.array([1, 1]), np.array([0, 0]))
    with pytest.raises(DataError, match=r"'Fibro' of 'type' does not lie below any of the labels of 'lineage'"):
        hierarchy_of_tree(tree, column("lineage", "Lymphoid"), column("type", "B", "Fibro"), *[np.array([0])] * 2)


def test_folded_labels_go_to_other(tree_file):
    tree = read_tree(tree_file)
    parent = column("organ", "Blood", "other", folded={"Tissue": 3})
    child = column("type", "B", "Fibro", "other")
    found = hierarchy_of_tree(tree, parent, child, np.array([0, 0, 1]), np.array([0, 2, 2]))
    assert found.parents_kp.tolist() == [[1, 0], [0, 1], [0.5, 0.5]]


def test_levels_are_made_from_the_top_and_only_where_they_tell_labels_apart(tree_file):
    tree = read_tree(tree_file)
    labels = pd.Series(["B", "T", "Mono", "Fibro", "pDC", None, "other"], name="type")
    levels = level_columns(tree, labels, 5)
    assert list(levels) == ["type_level1", "type_level2"]
    coarse, fine = (values.astype(object).fillna("").tolist() for values in levels.values())
    assert coarse == ["Blood", "Blood", "Blood", "Tissue", "", "", ""]
    assert fine == ["Lymphoid", "Lymphoid", "Myeloid", "Fibro", "", "", ""]
    assert list(level_columns(tree, labels, 1)) == ["type_level1"]
    with pytest.raises(ConfigError, match="no level above the 2 labels of 'type'"):
        level_columns(tree, pd.Series(["B", "T"], name="type"), 2)


def test_hierarchies_are_read_in_all_forms(tree_file):
    chains = parse_hierarchy(["a > b", str(tree_file), f"{tree_file}: x", f"{tree_file}: y > z"], ["first", "second"])
    assert [(chain.columns, chain.tree) for chain in chains] == [
        (("a", "b"), ""),
        (("first",), str(tree_file)),
        (("x",), str(tree_file)),
        (("y", "z"), str(tree_file)),
    ]
    for wrong in ("a", "a >", "no.csv: x"):
        with pytest.raises(ConfigError, match="is no hierarchy"):
            parse_hierarchy([wrong], ["first"])


TIES = (
    Tie(parent="mid", child="fine", parents=((0,), (0, 1), (1,), (2,))),
    Tie(parent="top", child="mid", parents=((0,), (1,), (1,))),
)


def test_consistent_codes_are_the_most_probable_choice_in_which_all_agree():
    rng = np.random.default_rng(0)
    probabilities = {
        name: rng.dirichlet(np.full(size, 0.5), 60).astype(np.float32)
        for name, size in (("fine", 4), ("other", 3), ("top", 2), ("mid", 3))
    }
    codes = consistent_codes(probabilities, TIES)
    choices = [
        (top, mid, fine)
        for top, mid, fine in itertools.product(range(2), range(3), range(4))
        if mid in TIES[0].parents[fine] and top in TIES[1].parents[mid]
    ]
    logs = {name: np.log(values.astype(float) + 1e-30) for name, values in probabilities.items()}
    for cell in range(60):
        worth = [logs["top"][cell, t] + logs["mid"][cell, m] + logs["fine"][cell, f] for t, m, f in choices]
        assert (codes["top"][cell], codes["mid"][cell], codes["fine"][cell]) == choices[int(np.argmax(worth))]
    np.testing.assert_array_equal(codes["other"], probabilities["other"].argmax(axis=1))
    with pytest.raises(ConfigError, match="'fine' is tied to 'mid' and 'top'"):
        consistent_codes(probabilities, [TIES[0], Tie(parent="top", child="fine", parents=((0,),) * 4)])


def test_a_parent_without_children_can_be_predicted():
    """Its cells keep the type that looks best by itself."""
    tie = Tie(parent="organ", child="type", parents=((0,), (0,)))  # no type belongs to organ 1
    types = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    organs = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    codes = consistent_codes({"type": types, "organ": organs}, [tie])
    assert codes["organ"].tolist() == [1, 0]
    assert codes["type"].tolist() == [0, 1]


def test_hierarchical_f1_and_agreement_by_hand():
    chain = chain_above("fine", TIES)
    assert [tie.parent for tie in chain] == ["mid", "top"]
    # lineages: 0 = {f0, m0, t0}; 1 = {f1, m0, m1, t0, t1}; 2 = {f2, m1, t1}; 3 = {f3, m2, t1}
    assert hierarchical_f1(np.array([0, 1]), np.array([0, 1]), chain, [3, 2]) == 1
    assert hierarchical_f1(np.array([2]), np.array([3]), chain, [3, 2]) == pytest.approx(2 * 1 / 6)
    assert hierarchical_f1(np.array([0, 2]), np.array([1, 2]), chain, [3, 2]) == pytest.approx(2 * (2 + 3) / (6 + 8))
    assert agreement(np.array([0, 1, 2, 3]), np.array([0, 1, 0, 2]), TIES[0]) == 0.75
