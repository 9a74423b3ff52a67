import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from unicoord_atlas.csr_block import CsrBlock
from unicoord_atlas.errors import DataError
from unicoord_atlas.gene_names import choose_key, gene_names, guess_gene_key
from unicoord_atlas.genes import (
    GeneMap,
    intersection_space,
    listed_space,
    map_genes,
    read_gene_table,
    remap,
    union_space,
)
from unicoord_atlas.schema import AtlasSchema

E1, E2, E3 = "ENSG00000000001", "ENSG00000000002", "ENSG00000000003"


def var(names, **columns):
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object))


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (["CD3E", "TP53"], "symbol"),
        ([E1, E2 + ".12"], "ensembl"),
        (["ENSMUSG00000051951", "Xkr4", "ENSMUSG00000102851"], "ensembl"),
        (["ENSA", "ENSG"], "symbol"),
    ],
)
def test_gene_key_is_guessed(names, key):
    assert guess_gene_key(names) == key


@given(st.data())
def test_remap_equals_a_dense_sum_over_targets(data):
    num_own, num_genes = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    new_index = np.array(
        data.draw(st.lists(st.integers(-1, num_genes - 1), min_size=num_own, max_size=num_own)), np.int32
    )
    dense = np.array(data.draw(st.lists(st.lists(st.integers(0, 250), min_size=num_own, max_size=num_own), min_size=1)))
    stored = sp.csr_array(np.where(dense == 0, 1, dense))
    stored.data = dense.ravel().astype(np.uint8)  # zeros are stored, columns all present
    if data.draw(st.booleans()):  # columns of a row in descending order
        stored.indices = stored.indices.reshape(dense.shape)[:, ::-1].ravel().copy()
        stored.data = stored.data.reshape(dense.shape)[:, ::-1].ravel().copy()
    block = CsrBlock(stored.indptr.astype(np.int64), stored.indices, stored.data)

    mapped = remap(block, GeneMap.of(new_index, num_genes), num_genes)

    expected = np.zeros((len(dense), num_genes), int)
    for own, target in enumerate(new_index):
        if target >= 0:
            expected[:, target] += dense[:, own]
    assert (
        sp.csr_array((mapped.data, mapped.indices, mapped.indptr), shape=expected.shape).toarray() == expected
    ).all()
    assert mapped.data.all()
    for low, high in zip(mapped.indptr[:-1], mapped.indptr[1:], strict=True):
        assert (np.diff(mapped.indices[low:high]) > 0).all()


@given(st.lists(st.lists(st.sampled_from("ABCDEFGH"), min_size=1, unique=True), min_size=1, max_size=4))
def test_spaces_equal_anndata_concat(gene_lists):
    cells = [anndata.AnnData(np.ones((1, len(names)), np.float32), var=var(names)) for names in gene_lists]
    names = [gene_names(cell.var) for cell in cells]
    assert sorted(union_space(names, "symbol").genes) == sorted(
        anndata.concat(cells, join="outer", index_unique="-").var_names
    )
    assert union_space(names, "symbol").genes == tuple(dict.fromkeys(g for genes in gene_lists for g in genes))
    common = anndata.concat(cells, join="inner", index_unique="-").var_names
    if len(common):
        assert set(intersection_space(names, "symbol").genes) == set(common)
    else:
        with pytest.raises(DataError, match="no gene in common"):
            intersection_space(names, "symbol")


def test_union_joins_a_renamed_gene_through_its_ensembl_id():
    old, new = var(["A", "OLD"], gene_ids=[E1, E2]), var(["NEW", "A"], gene_ids=[E2 + ".7", E1])
    space = union_space([gene_names(old), gene_names(new)], "symbol")
    assert space.genes == ("A", "OLD")
    assert space.aliases == {E1: 0, E2: 1, "NEW": 1}
    assert map_genes(new, space, "new").new_index.tolist() == [1, 0]


def test_union_keeps_two_genes_that_one_source_tells_apart():
    one, two = var(["A", "B"], gene_ids=[E1, E2]), var(["A", "C"], gene_ids=[E1, E1])
    assert union_space([gene_names(one), gene_names(two)], "symbol").genes == ("A", "B", "C")


def test_ensembl_ids_are_not_joined_by_a_shared_symbol():
    one, two = var([E1], symbol=["Y_RNA"]), var([E2], symbol=["Y_RNA"])
    space = union_space([gene_names(one), gene_names(two)], "ensembl")
    assert space.genes == (E1, E2)


def test_versions_are_stripped_and_duplicates_join():
    names = var([E1 + ".1", E2, E1 + ".2"])
    space = union_space([gene_names(names)], "ensembl")
    assert space.genes == (E1, E2)
    gene_map = map_genes(names, space, "s")
    assert (gene_map.new_index.tolist(), gene_map.num_summed, gene_map.num_lost) == ([0, 1, 0], 1, 0)


def test_features_that_are_no_genes_are_lost():
    features = var(["A", "CD3"], feature_types=["Gene Expression", "Antibody Capture"])
    space = union_space([gene_names(features)], "symbol")
    assert space.genes == ("A",)
    assert map_genes(features, space, "s").num_lost == 1


@pytest.mark.parametrize(
    ("text", "key", "genes", "aliases"),
    [
        ("A\nB\n", "symbol", ("A", "B"), {}),
        ("gene\nB\nA\n", "symbol", ("B", "A"), {}),
        (f"Gene Symbol\tLocus Group\tEnsembl ID\nA\tcoding\t{E1}\nB\tcoding\t\n", "symbol", ("A", "B"), {E1: 0}),
        (f"{E2},B\n{E1}.3,A\n", "ensembl", (E2, E1), {"B": 0, "A": 1}),
    ],
)
def test_gene_list_is_read_in_its_order(tmp_path, text, key, genes, aliases):
    path = tmp_path / "genes.txt"
    path.write_text(text)
    space = listed_space(path, key)
    assert (space.genes, space.aliases) == (genes, aliases)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("A\nB\nA\n", "symbol", "'A' is listed twice"),
        ("A\n", "ensembl", "no column of Ensembl ids"),
        ("\n", "symbol", "no genes"),
    ],
)
def test_bad_gene_list_is_refused_by_name(tmp_path, text, key, message):
    path = tmp_path / "genes.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        listed_space(path, key)
    assert str(path) in str(error.value)


def test_query_by_the_other_key_is_mapped_by_aliases_column_or_table(tmp_path):
    schema = AtlasSchema(gene_key="symbol", genes=("A", "B", "C"), aliases={E1: 0, E2: 1})
    assert map_genes(var([E2 + ".9", E1, E3]), schema, "q").new_index.tolist() == [1, 0, -1]
    assert map_genes(var([E1, E3], gene_symbols=["A", "C"]), schema, "q").new_index.tolist() == [0, 2]
    path = tmp_path / "table.tsv"
    path.write_text(f"{E1}\tA\n{E3}\tC\n")
    gene_map = map_genes(var([E3, E1]), schema, "q", read_gene_table(path))
    assert gene_map.new_index.tolist() == [2, 0]
    assert gene_map.measured_g.tolist() == [True, False, True]
    assert gene_map.num_lacking == 1


def test_no_genes_in_common_names_the_source_and_examples():
    schema = AtlasSchema(gene_key="symbol", genes=("A", "B"))
    with pytest.raises(DataError, match=r"mouse.h5ad: no genes in common: it has Xkr4.*wanted are A, B"):
        map_genes(var(["Xkr4"]), schema, "mouse.h5ad")


def test_key_is_one_that_all_sources_know(tmp_path):
    symbols, both, ids = var(["A"]), var(["A"], ensembl=[E1]), var([E1])
    assert choose_key({tmp_path: gene_names(both), tmp_path / "b": gene_names(ids)}, None) == "ensembl"
    assert choose_key({tmp_path: gene_names(both), tmp_path / "b": gene_names(symbols)}, None) == "symbol"
    with pytest.raises(DataError, match=r"/b: most of its genes have no .*--gene-table"):
        choose_key({tmp_path: gene_names(symbols), tmp_path / "b": gene_names(ids)}, None)


def test_heca_list_has_its_43878_genes(shared_data):
    space = listed_space(shared_data / "heca_v1" / "total_gene_list_43878.txt", "symbol")
    assert len(space.genes) == 43_878
    assert space.genes[space.aliases["ENSG00000198851"]] == "CD3E"
