import json
import os
import platform
import resource
import subprocess
import sys
import threading
from contextlib import suppress

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from unicoord_atlas.errors import AlreadyDone, DataError
from unicoord_atlas.jobs import check
from unicoord_atlas.jobs.full_disk import full_disk_named
from unicoord_atlas.jobs.workdir import finished_directory, finished_file, scratch_folder
from unicoord_atlas.loaders import row_file
from unicoord_atlas.loaders.row_file import RowFile
from unicoord_atlas.loaders.zarr_layout import MANIFEST


class Killed(BaseException):
    """Stands for a signal."""


def make(out, inputs=(), config=None, text="hello", **settings):
    with finished_directory(out, list(inputs), config or {"a": 1}, **settings) as partial:
        (partial / "result.txt").write_text(text)


def cut_short(out, inputs=(), config=None, resume=True):
    with pytest.raises(Killed), finished_directory(out, list(inputs), config or {"a": 1}, resume) as partial:
        (partial / "half.txt").write_text("half")
        raise Killed


def test_directory_has_its_name_only_when_finished(tmp_path):
    out = tmp_path / "deep" / "out"
    with finished_directory(out, [], {"a": 1}) as partial:
        (partial / "result.txt").write_text("hello")
        assert not out.exists()
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "result.txt"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert check.run(out)["files"] == 1


def test_manifest_depends_on_nothing_but_what_was_done(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("cells")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        make(tmp_path / name / "out", [source], counts={"cells": 5})
    first, second = ((tmp_path / name / "out" / "manifest.json").read_text() for name in ("first", "second"))
    assert first == second
    assert json.loads(first)["counts"] == {"cells": 5}


def test_finished_output_of_the_same_job_is_done_already(tmp_path):
    make(tmp_path / "out")
    with pytest.raises(AlreadyDone, match="finished already"):
        make(tmp_path / "out", text="other")
    assert (tmp_path / "out" / "result.txt").read_text() == "hello"


def test_output_of_another_job_is_refused_and_unharmed(tmp_path):
    make(tmp_path / "out")
    with pytest.raises(DataError, match=r"out exists, made from other config; remove it"):
        make(tmp_path / "out", config={"a": 2}, text="other")
    source = tmp_path / "source.txt"
    source.write_text("cells")
    with pytest.raises(DataError, match="other inputs"):
        make(tmp_path / "out", [source])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="no finished output of unicoord-atlas"):
        make(tmp_path / "foreign")
    assert (tmp_path / "foreign" / "thesis.tex").exists()


def test_resume_keeps_what_the_same_job_left(tmp_path):
    cut_short(tmp_path / "out")
    with finished_directory(tmp_path / "out", [], {"a": 1}, resume=True) as partial:
        assert (partial / "half.txt").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["half.txt", "manifest.json"]


def test_another_job_starts_afresh(tmp_path):
    cut_short(tmp_path / "out")
    make(tmp_path / "out", config={"a": 2}, resume=True)
    assert not (tmp_path / "out" / "half.txt").exists()


def test_a_changed_input_starts_afresh(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("cells")
    cut_short(tmp_path / "out", [source])
    source.write_text("more cells")
    make(tmp_path / "out", [source], resume=True)
    assert not (tmp_path / "out" / "half.txt").exists()


def test_what_a_killed_zarr_was_writing_is_no_part_of_the_output(tmp_path):
    left = "zarr.1a2a2b8c56404179a0db479b34fd4ae5.partial"
    with pytest.raises(Killed), finished_directory(tmp_path / "out", [], {"a": 1}, resume=True) as partial:
        (partial / "obs").mkdir()
        (partial / "obs" / left).write_text("{")
        (partial / "obs" / "zarr.json").write_text("{}")
        raise Killed
    with finished_directory(tmp_path / "out", [], {"a": 1}, resume=True):
        pass
    assert [path.name for path in (tmp_path / "out" / "obs").iterdir()] == ["zarr.json"]
    assert list(json.loads((tmp_path / "out" / MANIFEST).read_text())["files"]) == ["obs/zarr.json"]


def test_a_signal_while_others_write_in_the_directory_is_what_is_told(tmp_path):
    stop = threading.Event()

    def write(folder):
        while not stop.is_set():
            with suppress(OSError):
                folder.mkdir(exist_ok=True)  # as zarr does
                (folder / "zarr.partial").write_text("{")
                (folder / "zarr.partial").rename(folder / "zarr.json")

    with pytest.raises(Killed), finished_directory(tmp_path / "out", [], {"a": 1}) as partial:
        for number in range(500):
            (partial / str(number)).touch()
        writer = threading.Thread(target=write, args=(partial,))
        writer.start()
        threading.Timer(0.3, stop.set).start()
        raise Killed
    stop.set()
    writer.join()
    assert list(tmp_path.iterdir()) == []


def test_failure_without_resume_leaves_nothing(tmp_path):
    cut_short(tmp_path / "out", resume=False)
    assert list(tmp_path.iterdir()) == []


def test_two_jobs_cannot_write_one_output(tmp_path):
    with finished_directory(tmp_path / "out", [], {"a": 1}, resume=True):
        with pytest.raises(DataError, match="being written by another process"):
            make(tmp_path / "out", resume=True)


def test_full_disk_is_told_in_one_line(tmp_path):
    with pytest.raises(DataError, match="the disk is full; free some space"):
        with finished_directory(tmp_path / "out", [], {}):
            with open("/dev/full", "w") as full:
                full.write("x" * 10)


def test_a_full_disk_that_a_library_tells_in_words_is_told_in_one_line(tmp_path):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatL2(50)
    index.add(np.zeros((20_000, 50), np.float32))
    with pytest.raises(DataError, match="the disk is full; free some space"), full_disk_named(tmp_path):
        faiss.write_index(index, "/dev/full")


def append_row(folder):
    RowFile(folder / "rows", 100_000, 4, "float32").append(np.zeros((100_000, 4), np.float32))


def save_weights(folder):
    save_file({"weights": np.zeros(100_000)}, folder / "model.safetensors")


def write_hdf5(folder):
    with h5py.File(folder / "cells.h5ad", "w") as file:
        file["x"] = np.zeros(100_000)


@pytest.mark.parametrize("write", [append_row, save_weights, write_hdf5])
def test_a_file_that_cannot_grow_is_told_in_one_line(tmp_path, write):
    """As on a full disk; HDF5 and safetensors tell of it in words of their own.  In a child, for HDF5 stays broken."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        try:
            with finished_directory(tmp_path / "out", [], {}) as partial:
                write(partial)
        except DataError as error:
            os._exit(7 if "may not be so large" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert list(tmp_path.iterdir()) == []


def test_missing_input_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.h5ad: no such file"):
        make(tmp_path / "out", [tmp_path / "nowhere.h5ad"])


def test_file_has_its_name_only_when_finished(tmp_path):
    out = tmp_path / "mapped.h5ad"
    with finished_file(out) as partial:
        partial.write_text("cells")
        assert partial.suffix == ".h5ad" and not out.exists()
    assert out.read_text() == "cells"
    with pytest.raises(DataError, match="exists already"), finished_file(out):
        pass
    with pytest.raises(Killed), finished_file(tmp_path / "other.csv") as partial:
        partial.write_text("half")
        raise Killed
    assert os.listdir(tmp_path) == ["mapped.h5ad"]


def test_check_names_files_that_changed(tmp_path):
    make(tmp_path / "out")
    (tmp_path / "out" / "result.txt").write_text("jello")
    with pytest.raises(DataError, match=r"result.txt has a wrong checksum"):
        check.run(tmp_path / "out")
    (tmp_path / "out" / "result.txt").write_text("hello there")
    with pytest.raises(DataError, match=r"result.txt has 11 bytes, not 5"):
        check.run(tmp_path / "out")
    (tmp_path / "out" / "result.txt").unlink()
    with pytest.raises(DataError, match=r"result.txt is missing"):
        check.run(tmp_path / "out")


def test_rows_put_in_place_go_on_where_a_kill_stopped_them(tmp_path, monkeypatch):
    monkeypatch.setattr(row_file, "_ROWS", 3)
    values, places = np.arange(20, dtype=np.float32).reshape(10, 2), np.random.default_rng(0).permutation(10)
    source, target = (RowFile(tmp_path / name, 10, 2, np.float32) for name in ("source", "target"))
    source.append(values)
    append = RowFile.append

    def killed(table, rows):
        if table.next_row == 6:
            raise Killed
        append(table, rows)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RowFile, "append", killed)
        target.put_in_place(source, places)
    again = RowFile(tmp_path / "target", 10, 2, np.float32)
    assert again.next_row == 6
    again.put_in_place(source, places)
    np.testing.assert_array_equal(again[:][places], values)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize(("limit", "expected"), [({}, "True"), ({"MALLOC_ARENA_MAX": "3"}, "False")])
def test_one_heap_for_all_threads_unless_the_environment_says_otherwise(limit, expected):
    code = "from unicoord_atlas.allocator import share_one_heap; print(share_one_heap())"
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | limit
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected


def test_a_scratch_folder_is_one_job_s(tmp_path):
    left = tmp_path / ".atlas.zarr.scratch" / "left"
    left.mkdir(parents=True)
    with scratch_folder(tmp_path / "atlas.zarr") as folder:
        assert not left.exists()
        (folder / "mine").touch()
        with pytest.raises(DataError, match="written by another process"), scratch_folder(tmp_path / "atlas.zarr"):
            pass
        assert (folder / "mine").exists()
    assert not list(tmp_path.iterdir())


def test_two_jobs_cannot_write_one_file(tmp_path):
    out = tmp_path / "out.csv"
    with finished_file(out) as partial:
        partial.write_text("first")
        with pytest.raises(DataError, match=r"out\.csv is being written by another process"), finished_file(out):
            pass
    assert out.read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]
