"""Reading windows ahead: in a thread, into two buffers that take turns, or in processes; and computing ahead."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING, TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .store import CsrBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Task = TypeVar("Task")
Result = TypeVar("Result")


def read_ahead(tasks: Iterable[Task], read: Callable[[Task, CsrBuffer], Result]) -> Iterator[Result]:
    """Yield ``read(task, buffer)`` of each task, the next one being read meanwhile.

    A result may lie in its buffer: it is good until the next one is asked for.  What `read` raises is raised here.
    """
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        pending: Future[Result] | None = None
        for task, buffer in zip(tasks, cycle((CsrBuffer(), CsrBuffer())), strict=False):
            done, pending = pending, thread.submit(read, task, buffer)
            if done is not None:
                yield done.result()
        if pending is not None:
            yield pending.result()


def computed_ahead(items: Iterable[Result]) -> Iterator[Result]:
    """The items, the next one being computed in a thread while the caller works on this one."""
    end, iterator = object(), iter(items)
    with ThreadPoolExecutor(1, "compute-ahead") as thread:
        pending = thread.submit(next, iterator, end)
        while (item := pending.result()) is not end:
            pending = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def read_in_workers(
    tasks: Sequence[Task], read: Callable[[Task, CsrBuffer], Result], num_workers: int
) -> Iterator[Result]:
    """Yield ``read(task, buffer)`` of each task, in order, from processes; `read` must pickle.

    They are spawned: a forked child hangs at its next parallel operation once torch has run one in the parent.
    """
    yield from DataLoader(
        _Reads(tasks, read),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="spawn",
        prefetch_factor=1,
        collate_fn=_as_it_is,
    )


class _Reads(IterableDataset[Result]):
    """Every so-manieth task in each worker, which is the order in which DataLoader takes them from the workers."""

    def __init__(self, tasks: Sequence[Task], read: Callable[[Task, CsrBuffer], Result]) -> None:
        self._tasks, self._read = tasks, read

    def __iter__(self) -> Iterator[Result]:
        worker = get_worker_info()
        assert worker is not None
        for task in self._tasks[worker.id :: worker.num_workers]:
            yield self._read(task, CsrBuffer())


def _as_it_is(result: Result) -> Result:
    return result
