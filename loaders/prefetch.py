"""Reading one window ahead, in a thread, into two buffers that take turns."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING, TypeVar

from .store import CsrBuffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
