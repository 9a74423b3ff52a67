"""A Dask cluster for a job: `local:N` starts N processes here, `k8s` is the pods of this Job, else an address."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from unicoord_atlas.cores import usable_cores
from unicoord_atlas.errors import UsageError
from unicoord_atlas.loaders.in_order import in_order

from .dask_job import K8S, job_client, require_dask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from unicoord_atlas.loaders.graph_pass import RunPieces

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOCAL = "local:"


@contextmanager
def pieces_runner(address: str | None, threads: int = 0) -> Iterator[RunPieces]:
    """What runs the pieces of a pass: a cluster, or without an address threads of this process.

    Parameters
    ----------
    threads
        0 = as many as there are cores, up to 4.
    """
    if address is None:
        yield partial(in_order, threads=threads_of(threads))
    else:
        with dask_client(address) as client:
            yield partial(in_order_on, client)


def threads_of(asked: int) -> int:
    """The threads asked for; for 0 as many as there are cores, up to 4."""
    return asked or min(4, usable_cores())


@contextmanager
def dask_client(address: str) -> Iterator[Any]:
    """A connected client; a cluster that it started ends with it.

    Raises
    ------
    ConfigError
        If Dask is not installed.
    UsageError
        If the address is none, or nobody answers there.
    """
    require_dask()
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    if address == K8S:
        with job_client() as client:
            yield client
        return
    if not address.startswith(_LOCAL):
        try:
            client = Client(address, timeout=30)
        except (OSError, ValueError) as error:
            raise UsageError(f"--dask {address}: no scheduler answers there ({error})") from error
        with client:
            yield client
        return
    workers = address.removeprefix(_LOCAL)
    if not (workers.isdigit() and int(workers) > 0):
        raise UsageError(f"--dask {address!r}: write local:N with N processes, k8s, or the address of a scheduler")
    count = int(workers)
    limit = MEMORY_LIMIT // count
    with (
        LocalCluster(
            n_workers=count, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=limit
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def in_order_on(client: Any, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` on the cluster, results in order; two tasks a thread are under way, so memory is bounded.

    A worker that is lost costs its tasks, which others do again; one that comes late gets its share.
    """
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(client.submit(function, item, pure=False))
        if len(waiting) > 2 * max(sum(client.nthreads().values()), 1):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
