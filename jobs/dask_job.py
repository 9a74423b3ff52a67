"""`--dask k8s`: the pods of one Indexed Job are the cluster; index 0 is scheduler and driver, the others are workers.

All run the same command.  Where the scheduler listens is told by UNICOORD_SCHEDULER, which pod this is by
JOB_COMPLETION_INDEX.  A worker whose scheduler is gone looks whether the output is there: only then has it succeeded.
Otherwise the driver was lost, and both start anew; what was written before stays.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn

from unicoord_atlas.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

K8S = "k8s"
_INDEX, _SCHEDULER = "JOB_COMPLETION_INDEX", "UNICOORD_SCHEDULER"
_PATIENCE = 60
"""Seconds in which a worker finds its scheduler; then it is started anew."""


def require_dask() -> None:
    """ConfigError if Dask is not installed."""
    if find_spec("distributed") is None:
        raise ConfigError("--dask needs Dask, which is not installed: pip install 'unicoord-atlas[dask]'")


def is_worker(address: str | None) -> bool:
    """Whether this process of an Indexed Job works for another."""
    return address == K8S and _told(_INDEX) != "0"


def work_until_done(check: Callable[[], None]) -> NoReturn:
    """Do the tasks of the driver until it ends.

    Parameters
    ----------
    check
        Raises AlreadyDone if the output is finished.

    Raises
    ------
    AlreadyDone
        If the driver has finished.
    PeersLost
        If it has not.
    """
    from unicoord_atlas.training.ranks import PeersLost

    check()
    require_dask()
    address = _told(_SCHEDULER)
    try:
        asyncio.run(_work(address))
    except (OSError, TimeoutError) as error:
        check()
        raise PeersLost(f"{address}: no scheduler answers there ({error})") from error
    check()
    raise PeersLost(f"{address}: the scheduler is gone and the output is not finished; the same command goes on")


@contextmanager
def job_client() -> Iterator[Any]:
    """A scheduler in this process, and a client of it; workers come when they come."""
    require_dask()
    from distributed import Client, LocalCluster

    if is_worker(K8S):
        raise UsageError(f"--dask {K8S}: this command has no workers in a Job; give ingest or build-graph to it")
    address = _told(_SCHEDULER)
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not (host and port.isdigit()):
        raise UsageError(f"{_SCHEDULER}={address}: write it as tcp://HOST:PORT, index 0 of this Job")
    with (
        LocalCluster(n_workers=0, host=host, scheduler_port=int(port), dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


async def _work(address: str) -> None:
    from distributed import Worker
    from distributed.system import MEMORY_LIMIT

    # In the pod's memory limit, which is read from its cgroup: beyond it the kernel would kill the pod.
    async with Worker(
        address, nthreads=1, memory_limit=MEMORY_LIMIT, death_timeout=_PATIENCE, dashboard=False
    ) as worker:
        await worker.finished()


def _told(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise UsageError(f"--dask {K8S}: {name} is not set; this is for the pods of an Indexed Job (k8s/base)")
    return value
