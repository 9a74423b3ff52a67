"""A job in parts: the last part joins, any may be done again, and a kill between any two lines is made good."""

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unicoord_atlas.coordinates import MemoryTable
from unicoord_atlas.errors import AlreadyDone, DataError, UsageError
from unicoord_atlas.jobs import write_coordinates
from unicoord_atlas.jobs.part_files import copy_tables, table_maker, with_columns, write_columns
from unicoord_atlas.jobs.parts import Part, do_part
from unicoord_atlas.loaders.row_file import RowFile

CELLS = 10


class Job:
    """Writes numbers; the output is the numbers of all parts in order."""

    def __init__(self, folder: Path, config=None) -> None:
        self.out = folder / "out.txt"
        self.input = folder / "input.txt"
        self.input.touch()
        self.config = config or {}
        self.written: list[int] = []
        self.joined = 0

    def do(self, index: int, count: int = 3) -> bool:
        part = Part(index, count)

        def write(folder: Path) -> None:
            self.written.append(index)
            (folder / "cells.txt").write_text("".join(f"{row} " for row in range(*part.rows(CELLS))))

        def join(folders) -> None:
            self.joined += 1
            text = "".join((folder / "cells.txt").read_text() for folder in folders)
            partial = self.out.with_suffix(".partial")
            partial.write_text(text)
            partial.rename(self.out)

        return do_part(part, self.out, [self.input], self.config, write, join)

    @property
    def whole(self) -> bool:
        return self.out.read_text().split() == [str(row) for row in range(CELLS)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_last_part_joins_in_whatever_order(tmp_path, order):
    job = Job(tmp_path)
    assert [job.do(index) for index in order] == [False, False, True]
    assert job.whole and job.joined == 1
    (folder,) = tmp_path.glob(".out.txt.*.parts")
    assert {path.name for path in folder.iterdir()} == {"joining", "joined"}


def test_a_part_is_done_once_and_found_again(tmp_path):
    job = Job(tmp_path)
    for index in (0, 0, 1, 0, 2):
        job.do(index)
    assert job.written == [0, 1, 2] and job.whole
    for index in range(3):
        with pytest.raises(AlreadyDone):
            job.do(index)
    job.out.unlink()  # somebody wants it anew
    assert [job.do(index) for index in range(3)] == [False, False, True]
    assert job.whole and job.joined == 2


@pytest.mark.parametrize("after_output", [False, True])
def test_a_kill_while_joining_is_made_good_by_any_part(tmp_path, monkeypatch, after_output):
    job = Job(tmp_path)
    job.do(0), job.do(1)
    real = Path.touch

    def touch(path, *given, **named):
        if path.name == ("joined" if after_output else "joining"):
            raise KeyboardInterrupt
        real(path, *given, **named)

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(KeyboardInterrupt):
        job.do(2)
    monkeypatch.setattr(Path, "touch", real)
    assert job.out.exists() is after_output
    assert job.do(0) is True
    assert job.whole and job.joined == 1 and job.written == [0, 1, 2]


def test_parts_at_the_same_moment_join_once(tmp_path):
    job, count = Job(tmp_path), 8
    threads = [threading.Thread(target=job.do, args=(index, count)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert job.whole and job.joined == 1


def test_parts_of_another_job_are_not_taken(tmp_path):
    one, other = Job(tmp_path, {"a": 1}), Job(tmp_path, {"a": 2})
    one.do(0), one.do(1)
    assert other.do(2) is False
    assert one.do(2, 4) is False
    assert one.do(2) is True
    with pytest.raises(DataError, match=r"out\.txt exists"):
        other.do(0)


def test_cells_are_dealt_once_and_evenly():
    for count in (1, 3, 7, 13):
        rows = [Part(index, count).rows(CELLS) for index in range(count)]
        assert [row for first, last in rows for row in range(first, last)] == list(range(CELLS))
        assert max(last - first for first, last in rows) - min(last - first for first, last in rows) <= 1


def test_a_part_is_named_by_option_or_by_launch(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Part.of(None) is None
    assert Part.of("2/3") == Part(2, 3)
    for bad in ("3/3", "1", "a/3", "-1/3", "0/0"):
        with pytest.raises(UsageError, match="--part"):
            Part.of(bad)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert Part.of(None) == Part(3, 4)


def test_columns_and_tables_of_parts_are_put_together(tmp_path):
    """Cells of one name, a category that a part lacks, a part without cells: the rows stay where they are."""
    obs = pd.DataFrame({"own": range(5)}, index=["a", "a", "b", "c", "a"])
    predicted = pd.Categorical(["T", "T", "B", "T", "NK"], ["B", "NK", "T", "never"])
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    folders = [tmp_path / str(index) for index in range(3)]
    for folder, rows in zip(folders, (slice(0, 3), slice(3, 3), slice(3, 5))):
        folder.mkdir()
        write_columns(folder, pd.DataFrame({"predicted": predicted[rows]}, index=obs.index[rows]))
        if rows.start < rows.stop:
            table = table_maker(folder)("X_a", rows.stop - rows.start, 2)
            table.append(values[rows])
    pd.testing.assert_frame_equal(with_columns(obs, folders), obs.assign(predicted=predicted))
    made = {}

    def make(key, num_rows, width):
        made[key] = MemoryTable(key, num_rows, width)
        return made[key]

    copy_tables(folders, make)
    np.testing.assert_array_equal(made["X_a"].values, values)


def test_parquet_has_the_types_of_all_rows(tmp_path, monkeypatch):
    """A column whose first rows are all missing, and a class that comes late only."""
    monkeypatch.setattr(write_coordinates, "_ROWS", 3)
    obs = pd.DataFrame(
        {"note": [None] * 5 + ["late"] * 2, "type": pd.Categorical(["a"] * 6 + ["b"])}, [f"c{i}" for i in range(7)]
    )
    table = RowFile(tmp_path / "t.f32", 7, 2, "float32")
    table.append(np.arange(14, dtype=np.float32).reshape(7, 2))
    write_coordinates.write_parquet(tmp_path / "t.parquet", obs, ["x", "time"], table)
    read = pd.read_parquet(tmp_path / "t.parquet")
    assert read.index.tolist() == obs.index.tolist() and read["type"].tolist() == obs["type"].tolist()
    assert read["note"].isna().tolist() == [True] * 5 + [False] * 2 and read["note"].iloc[-1] == "late"
    assert read["unicoord_time"].tolist() == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0]
