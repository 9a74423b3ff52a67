"""Inputs that are not what they should be: each puts its files in a folder and says the command that meets them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from unicoord_atlas.errors import ConfigError, DataError
from unicoord_atlas.jobs.workdir import file_checksums

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CELLS, GENES = 12, 20
DATA, CONFIG = DataError.exit_code, ConfigError.exit_code
DEEP = 100_000
HUGE = "9" * 5000
"""More digits than Python turns into a number."""
Damage = "Callable[[Path], object]"


def sound_cells() -> anndata.AnnData:
    """Cells that any command takes."""
    counts = np.random.default_rng(0).poisson(1.0, (CELLS, GENES)).astype(np.float32)
    obs = pd.DataFrame({"cell_type": ["B", "T"] * (CELLS // 2)}, index=[f"c{i}" for i in range(CELLS)])
    return anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(GENES)]))


def replaced(name: str, values: Any) -> Damage:
    """An HDF5 dataset with other values."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            attributes = dict(file[name].attrs)
            del file[name]
            file[name] = values
            if isinstance(file[name], h5py.Dataset):
                file[name].attrs.update(attributes)

    return damage


def edited(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """An HDF5 dataset with its values changed."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            values = edit(file[name][:])
        replaced(name, values)(path)

    return damage


def first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """The first value is this one."""
    return lambda values: np.concatenate([np.array([value], np.asarray(value).dtype), values[1:]])


def without(name: str) -> Damage:
    """An HDF5 element is gone."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]

    return damage


def told(name: str, **attributes: Any) -> Damage:
    """An HDF5 element says something else of itself."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file[name].attrs.update(attributes)

    return damage


def written(content: bytes | str) -> Damage:
    """The file holds this and nothing else."""
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def cut(share: float) -> Damage:
    """The file ends early."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def linked_to_itself(path: Path) -> None:
    """A symbolic link in a circle."""
    path.unlink()
    path.symlink_to(path)


def linked_to_nothing(path: Path) -> None:
    """A symbolic link to a file that is not there."""
    path.unlink()
    path.symlink_to("/nowhere/at/all.h5ad")


def linked_outside(path: Path) -> None:
    """Counts that HDF5 would read from another file of the machine."""
    size = path.stat().st_size
    with h5py.File(path, "r+") as file:
        length = len(file["X/data"])
        del file["X/data"]
        file["X"].create_dataset("data", (length,), np.uint8, external=[(os.fspath(path.with_name("other")), 0, size)])
    path.with_name("other").write_bytes(bytes(size))


def names(values: list[str], table: str) -> Damage:
    """Other names of cells or genes."""
    return replaced(f"{table}/_index", np.array(values, object))


H5AD: dict[str, Damage] = {
    "NaN": edited("X/data", first(np.nan)),
    "infinite": edited("X/data", first(np.inf)),
    "negative": edited("X/data", first(-1.0)),
    "fraction": edited("X/data", first(0.5)),
    "over uint32": edited("X/data", first(1e12)),
    "complex": edited("X/data", lambda values: values.astype(np.complex64)),
    "texts as counts": edited("X/data", lambda values: values.astype("S4")),
    "compound": edited("X/data", lambda values: values.astype([("a", "f4"), ("b", "f4")])),
    "three dimensions": replaced("X", np.ones((CELLS, GENES, 2), np.float32)),
    "one dimension": replaced("X", np.ones(CELLS, np.float32)),
    "dense of another shape": replaced("X", np.ones((CELLS + 1, GENES), np.float32)),
    "a scalar": replaced("X", 3.0),
    "no X": without("X"),
    "no obs": without("obs"),
    "no var": without("var"),
    "no indptr": without("X/indptr"),
    "obs is a number": replaced("obs", 3),
    "obs without its index": without("obs/_index"),
    "obs column missing": without("obs/cell_type"),
    "obs of another length": names(["a", "b"], "obs"),
    "var of another length": names(["a", "b"], "var"),
    "cell names twice": names(["same"] * CELLS, "obs"),
    "huge cell name twice": names(["x" * 1_000_000] * CELLS, "obs"),
    "control characters twice": names(["\x1b[2Jname\r\n"] * CELLS, "obs"),
    "indptr too short": edited("X/indptr", lambda values: values[:-1]),
    "indptr falls": edited("X/indptr", lambda values: np.concatenate([values[:1], values[1:-1][::-1], values[-1:]])),
    "indptr past the end": edited("X/indptr", lambda values: values * 1000),
    "indptr of floats that are NaN": edited("X/indptr", lambda values: np.full(len(values), np.nan)),
    "a gene past the last": edited("X/indices", first(GENES)),
    "a gene below 0": edited("X/indices", first(-1)),
    "fewer counts than genes": edited("X/data", lambda values: values[:-3]),
    "shape is a lie": told("X", shape=np.array([CELLS, 10**15])),
    "shape is negative": told("X", shape=np.array([CELLS, -1])),
    "shape is text": told("X", shape="many"),
    "unknown encoding": told("X", **{"encoding-type": "coo_matrix"}),
    "unknown version": told("obs", **{"encoding-version": "99.0"}),
    "cut off": cut(0.6),
    "cut off at the start": cut(0.01),
    "empty": written(b""),
    "text": written("gene,cell\n" * 50),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"X": [1, 2]})),
    "a circle of links": linked_to_itself,
    "a link to nothing": linked_to_nothing,
    "counts in another file": linked_outside,
}
"""What may be wrong with an .h5ad; both `ingest` and `map-query` refuse it."""


def damaged_json(name: str, change: Callable[[Any], Any]) -> Damage:
    """A JSON file of a directory with its content changed."""

    def damage(path: Path) -> None:
        file = path / name
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return damage


def said(name: str, content: str | bytes) -> Damage:
    """A file of a directory that holds this."""
    return lambda path: written(content)(path / name)


def with_file_entry(name: str) -> Damage:
    """A manifest that names one more file, of one byte."""
    entry = {name: {"bytes": 1, "crc32c": "00000000"}}
    return damaged_json("manifest.json", lambda found: {**found, "files": {**found["files"], **entry}})


def array_said(name: str, **facts: Any) -> Damage:
    """Zarr metadata of an array that say something else."""

    def damage(path: Path) -> None:
        damaged_json(f"{name}/zarr.json", lambda found: {**found, **facts})(path)
        whole = json.loads((path / "zarr.json").read_text())
        if name in whole.get("consolidated_metadata", {}).get("metadata", {}):
            whole["consolidated_metadata"]["metadata"][name].update(facts)
            (path / "zarr.json").write_text(json.dumps(whole))

    return damage


def array_values(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """A Zarr array with its values changed."""

    def damage(path: Path) -> None:
        array = zarr.open_array(path / name, mode="r+")
        array[:] = edit(array[:])

    return damage


def flipped(name: str) -> Damage:
    """One byte in the middle of a file."""

    def damage(path: Path) -> None:
        whole = bytearray((path / name).read_bytes())
        whole[len(whole) // 3] ^= 0xFF
        (path / name).write_bytes(whole)

    return damage


def resealed(path: Path) -> None:
    """A manifest that tells every file as it is now: what is wrong is then met where it is read."""
    damaged_json("manifest.json", lambda found: {**found, "files": file_checksums(path)})(path)


def with_additions(additions: Any, **more: Any) -> Damage:
    """A manifest that tells this of what was added."""
    return damaged_json("manifest.json", lambda found: {**found, **more, "additions": additions})


MANIFESTS: dict[str, Damage] = {
    "a list": said("manifest.json", "[]"),
    "a number": said("manifest.json", "3"),
    "cut off": said("manifest.json", '{"format_version": 1,'),
    "empty": said("manifest.json", ""),
    "not UTF-8": said("manifest.json", b'{"format_version": "\xff\xfe"}'),
    "deep": said("manifest.json", '{"files":' * DEEP),
    "a huge number": said("manifest.json", f'{{"format_version": {HUGE}}}'),
    "another version": damaged_json("manifest.json", lambda found: {**found, "format_version": 99}),
    "version is a table": damaged_json("manifest.json", lambda found: {**found, "format_version": {}}),
    "no files": damaged_json("manifest.json", lambda found: {"format_version": 1}),
    "files is a list": damaged_json("manifest.json", lambda found: {**found, "files": ["X"]}),
    "a file without facts": damaged_json("manifest.json", lambda found: {**found, "files": {"zarr.json": 3}}),
    "no checksum": damaged_json(
        "manifest.json", lambda found: {**found, "files": {name: {"bytes": 1} for name in found["files"]}}
    ),
    "a file above": with_file_entry("../outside"),
    "a file above, hidden": with_file_entry("X/../../outside"),
    "an absolute file": with_file_entry("/etc/hostname"),
    "a NUL in a name": with_file_entry("X/\x00"),
    "is a folder": lambda path: ((path / "manifest.json").unlink(), (path / "manifest.json").mkdir()),
    "additions are a list": with_additions([], replaced={}),
    "an addition is a number": with_additions({"graph": 3}, replaced={}),
    "an addition without settings": with_additions({"graph": {"files": []}}, replaced={}),
    "an addition of no file of the store": with_additions({"graph": {"config": {}, "files": ["x"]}}, replaced={}),
    "an addition of a list": with_additions({"graph": {"config": {}, "files": [[]]}}, replaced={}),
    "additions that replaced nothing known": with_additions({}),
    "additions that replaced a number": with_additions({}, replaced={"zarr.json": 3}),
}
"""What may be wrong with the manifest of a store; `check` and whatever reads the store refuse it."""


STORES: dict[str, Damage] = {
    "no metadata": lambda path: (path / "zarr.json").unlink(),
    "metadata are text": said("zarr.json", "hello"),
    "metadata are deep": said("zarr.json", '{"a":' * DEEP),
    "metadata are a list": said("zarr.json", "[]"),
    "counts are longer": array_said("X/data", shape=[10**12]),
    "counts are shorter": array_said("X/data", shape=[1]),
    "counts have no shape": array_said("X/data", shape="many"),
    "counts of another type": array_said("X/data", data_type="float64"),
    "counts of an unknown type": array_said("X/data", data_type="quaternion"),
    "counts of an unknown codec": array_said("X/data", codecs=[{"name": "evil"}]),
    "genes of another type": array_said("X/indices", data_type="uint64"),
    "indptr is longer": array_said("X/indptr", shape=[10**13]),
    "indptr falls": array_values("X/indptr", lambda values: np.concatenate([values[:1], values[-2:0:-1], values[-1:]])),
    "indptr is negative": array_values("X/indptr", lambda values: np.where(np.arange(len(values)) == 1, -5, values)),
    "genes past the last": array_values("X/indices", lambda values: np.full(len(values), GENES + 500)),
    "schema is text": lambda path: zarr.open_array(path / "uns/unicoord/schema", mode="r+").__setitem__((), "hello"),
    "schema of another version": lambda path: change_schema(path, format_version=99),
    "schema with a bomb": lambda path: change_schema(path, sources=[bomb()]),
    "schema of fewer genes": lambda path: change_schema(path, genes=["G0"], aliases={}),
    "a flipped byte": flipped("X/data/c/0"),
    "a flipped byte beside X": flipped("obs/size_factor/c/0"),
    "a shard cut off": lambda path: cut(0.5)(path / "X/data/c/0"),
    "a shard missing": lambda path: (path / "X/indices/c/0").unlink(),
    "obs is missing": lambda path: shutil.rmtree(path / "obs"),
    "obs of another length": array_said("obs/size_factor", shape=[3]),
    "labels are no zstd": said("obs/cell_type/codes/c/0", b"\x28\xb5\x2f\xfd" + b"\xff" * 30),
    "X says another gene": array_said(
        "X", attributes={"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [60, GENES + 1]}
    ),
    "X says another cell": array_said(
        "X", attributes={"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [61, GENES]}
    ),
    "no schema": lambda path: shutil.rmtree(path / "uns/unicoord/schema"),
}
"""What may be wrong with the rest of a store of 60 cells."""
OTHER_VALUES = ("a flipped byte", "a flipped byte beside X")
"""Of these, those that nobody can see where the manifest tells the files as they are."""


def bomb() -> dict[str, Any]:
    """A source whose genes are a hundred megabytes in a few bytes."""
    import base64
    import zlib

    packed = base64.b64encode(zlib.compress(bytes(100_000_000), 9)).decode()
    return {"name": "one", "num_cells": 1, "measured_bits": packed}


def change_schema(path: Path, **facts: Any) -> None:
    """The schema of a store with other facts."""
    array = zarr.open_array(path / "uns/unicoord/schema", mode="r+")
    array[...] = json.dumps({**json.loads(array[()].item()), **facts})


TOMLS: dict[str, str | bytes] = {
    "a huge number": f"[train]\nseed = {HUGE}\n",
    "a large number": "[train]\nseed = 99999999999999999999999\n",
    "a large batch": "[train]\nbatch_size = 1e400\n",
    "deep lists": f"a = {'[' * DEEP}\n",
    "deep tables": "a = " + "{a = " * DEEP + "\n",
    "deep dotted keys": ".".join(["a"] * 2_000) + " = 1\n",
    "not UTF-8": "[train]\nseed = 1 # \xe9".encode("latin-1"),
    "a NUL": "[train]\nseed = \x00\n",
    "a key twice": "[train]\nseed = 1\nseed = 2\n",
    "unknown section": "[trane]\nseed = 1\n",
    "unknown key": "[train]\nsead = 1\n",
    "huge unknown key": f"[train]\n{'x' * 1_000_000} = 1\n",
    "a text for a number": '[train]\nseed = "one"\n',
    "a huge text": f'[train]\nseed = "{"x" * 1_000_000}"\n',
    "a date": "[train]\nepochs = 1979-05-27T07:32:00Z\n",
    "a list for a section": "train = [1, 2]\n",
    "recipe is a table": "[recipe]\na = 1\n",
    "unknown recipe": 'recipe = "\x7f"\n'.replace("\x7f", "best"),
    "sizes below 0": "[model]\nhidden = [-1]\n",
    "NaN": "[loss]\nbeta = nan\n",
    "JSON": '{"train": {"seed": 1}}',
    "a pickle": pickle.dumps({"train": 1}),
}
"""What may be wrong with a file of settings; exit code 78."""

SETTINGS = {
    "a huge number": f"train.seed={HUGE}",
    "deep lists": f"train.seed={'[' * DEEP}",
    "deep sections": ".".join(["a"] * DEEP) + "=1",
    "no section": "=3",
    "an empty section": "train..seed=1",
    "control characters": "train.seed=\x1b[2J\n",
}

REFERENCES: dict[str, Damage] = {
    "config is a list": said("config.json", "[1]"),
    "config is a list of pairs": said("config.json", '["ab"]'),
    "config is a list of words": said("config.json", '["abc"]'),
    "config is deep": said("config.json", '{"a":' * DEEP),
    "config has a huge number": said("config.json", f'{{"format_version": {HUGE}}}'),
    "config of another version": damaged_json("config.json", lambda found: {**found, "format_version": 99}),
    "config not UTF-8": said("config.json", b"\xff\xfe"),
    "an enormous network": damaged_json(
        "config.json", lambda found: {**found, "network": {**found["network"], "num_genes": 10**15}}
    ),
    "an enormous label path": damaged_json(
        "config.json", lambda found: {**found, "network": {**found["network"], "label_path": [10**13, 8]}}
    ),
    "a path of no label": damaged_json(
        "config.json", lambda found: {**found, "network": {**found["network"], "path_labels": [9]}}
    ),
    "more genes than the schema": damaged_json(
        "config.json", lambda found: {**found, "network": {**found["network"], "num_genes": 61}}
    ),
    "no config": lambda path: (path / "config.json").unlink(),
    "no weights": lambda path: (path / "model.safetensors").unlink(),
    "weights are a pickle": lambda path: written(pickle.dumps({"a": 1}))(path / "model.safetensors"),
    "weights cut off": lambda path: cut(0.5)(path / "model.safetensors"),
    "weights with a false header": said("model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    "normalization is text": said("normalization.safetensors", "hello"),
    "schema is deep": said("schema.json", "[" * DEEP),
    "schema has a gene twice": damaged_json("schema.json", lambda found: {**found, "genes": ["A"] * 60}),
    "novelty is empty": said("novelty.safetensors", b""),
}
"""What may be wrong with a reference."""

TABLES: dict[str, tuple[str, str | bytes]] = {
    "genes: empty": ("--genes", ""),
    "genes: not UTF-8": ("--genes", b"\xff\xfeG0\n"),
    "genes: others": ("--genes", "A\nB\n"),
    "genes: twice": ("--genes", "G0\nG0\n"),
    "genes: a huge line": ("--genes", "G" * 1_000_000 + "\n"),
    "genes: a pickle": ("--genes", pickle.dumps(["G0"])),
    "labels: empty": ("--label-map", ""),
    "labels: other columns": ("--label-map", "a,b,c\n1,2,3\n"),
    "labels: not UTF-8": ("--label-map", "source,column,label,cell_type\ncells,é,B,B\n".encode("latin-1")),
    "labels: a short line": ("--label-map", "source,column,label,cell_type\ncells\n"),
    "labels: a huge field": ("--label-map", f"source,column,label,cell_type\ncells,cell_type,{'x' * 200_000},B\n"),
    "ids: empty": ("--gene-table", ""),
    "ids: not UTF-8": ("--gene-table", b"\xff\xfe\tA\n"),
    "ids: one column": ("--gene-table", "ENSG00000000001\n"),
}
"""What may be wrong with a file that `ingest` takes beside cells."""

TREES: dict[str, str | bytes] = {
    "empty": "",
    "not UTF-8": b"father,child\n\xff,\xfe\n",
    "other columns": "a,b\n1,2\n",
    "a circle": "father,child\nB,T\nT,B\n",
    "deep": '{"a":' * DEEP,
    "a huge number": f'{{"a": {HUGE}}}',
    "a list of terms": '{"a": [1]}',
    "ancestors are a list": '{"CL:1": {"label": "B", "ancestors": [1]}}',
    "damaged zstd": b"\x28\xb5\x2f\xfd" + b"\x00" * 50,
    "a bomb of zstd": b"\x28\xb5\x2f\xfd\xe0" + (1 << 44).to_bytes(8, "little") + b"\x03\x00\x10",
    "a huge field": f"father,child\n{'x' * 200_000},B\n",
}
"""What may be wrong with a tree of labels."""

GENE_SETS: dict[str, str | bytes] = {
    "empty": "",
    "not UTF-8": b"set\t\xff\xfe\tG0\n",
    "too few columns": "set\n",
    "a set twice": "set\t-\tgene-0\nset\t-\tgene-1\n",
    "no gene known": "set\t-\tnothing\n",
    "a pickle": pickle.dumps([1]),
}
"""What may be wrong with a file of gene sets."""
