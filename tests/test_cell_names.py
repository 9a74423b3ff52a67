"""Names of cells that Arrow holds: the same to whoever reads them."""

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr

from unicoord_atlas.loaders import cell_names
from unicoord_atlas.loaders.cell_names import (
    arrow_index,
    put_aside,
    read_names,
    with_python_names,
    write_columns,
    write_frame,
)

NAMES = [f"lung:é{number}" for number in range(10)]


@pytest.mark.parametrize("num_cells", [0, 1, 10])
def test_a_table_is_written_as_anndata_writes_it(tmp_path, monkeypatch, num_cells):
    """In pieces of three names, and whole."""
    monkeypatch.setattr(cell_names, "_AT_ONCE", 3)
    names = NAMES[:num_cells]
    columns = {"x": np.arange(num_cells), "kind": pd.Categorical(names)}
    root = zarr.open_group(tmp_path / "a.zarr", mode="w")
    write_frame(root, "ours", pd.DataFrame(columns, index=arrow_index([names[:4], names[4:]])))
    frame = pd.DataFrame(columns, index=pd.Index(names, dtype=object))
    write_frame(root, "theirs", frame)
    for key in ("ours", "theirs"):
        pd.testing.assert_frame_equal(anndata.io.read_elem(root[key]), frame)
        assert read_names(root[key]).tolist() == names
    ours, theirs = root["ours/_index"], root["theirs/_index"]
    assert dict(ours.attrs) == dict(theirs.attrs) and ours.dtype == theirs.dtype


def test_names_are_read_whoever_wrote_them(tmp_path):
    root = zarr.open_group(tmp_path / "a.zarr", mode="w")
    anndata.io.write_elem(root, "obs", pd.DataFrame({"x": [1, 2]}, index=pd.Index(["a", "b"], name="barcode")))
    assert read_names(root["obs"]).tolist() == ["a", "b"] and read_names(root["obs"]).name == "barcode"
    with anndata.settings.override(allow_write_nullable_strings=True):
        anndata.io.write_elem(root, "obs", pd.DataFrame({"x": [1, 2]}, index=arrow_index([["a", "b"]])))
    assert read_names(root["obs"]).tolist() == ["a", "b"]


def test_names_become_python_s_again():
    ours, theirs = arrow_index([NAMES]), pd.Index(NAMES)
    assert ours.equals(arrow_index([NAMES[:3], NAMES[3:]])) and not ours.equals(arrow_index([NAMES[::-1]]))
    back = with_python_names(pd.DataFrame({"x": range(10)}, index=ours))
    assert back.index.dtype == object and back.index.equals(theirs)
    assert with_python_names(back) is back


@pytest.mark.parametrize("order", [None, np.arange(10)[::-1]])
def test_a_table_put_aside_is_written_again_with_one_more_column(tmp_path, monkeypatch, order):
    monkeypatch.setattr(cell_names, "_AT_ONCE", 4)
    frame = pd.DataFrame({"kind": pd.Categorical(list("abcabcabca")), "flag": [True, None] * 5}, arrow_index([NAMES]))
    frame["flag"] = frame["flag"].astype("boolean")
    aside = put_aside(tmp_path / "aside", frame)
    root = zarr.open_group(tmp_path / "a.zarr", mode="w")
    write_columns(root, "obs", aside.with_column("place", np.arange(10.0), order))
    moved = with_python_names(frame if order is None else frame.iloc[order])
    pd.testing.assert_frame_equal(anndata.io.read_elem(root["obs"]), moved.assign(place=np.arange(10.0)))
