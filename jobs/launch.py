"""launch: a command on several processes, a thin wrapper of torchrun that keeps exit codes.

torchrun itself exits 1 whatever its workers said.  A scheduler that restarts jobs has to tell a setting that will
never work (78) from data that is damaged (65), peers that are gone (75) and a termination (143).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unicoord_atlas.cores import usable_cores
from unicoord_atlas.errors import ConfigError, DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

PEERS_LOST = 75
_TOLD = (UsageError.exit_code, DataError.exit_code, ConfigError.exit_code)
_STOPPED = (143, 130)


@dataclass(frozen=True)
class LaunchOptions:
    """What `unicoord-atlas launch` is asked to do."""

    command: list[str]
    """The command and its options, as they would follow `unicoord-atlas`."""
    processes: int = 1
    """On this node."""
    nnodes: int = 1
    rdzv_endpoint: str = ""
    rdzv_id: str = "unicoord-atlas"
    local_addr: str | None = None
    node_rank: int | None = None
    """Node 0 is where the others meet; None: the one whose address is that of the endpoint."""

    def __post_init__(self) -> None:
        if not self.command or self.command[0] == "launch":
            raise UsageError("launch: give the command to run, like `launch --processes 2 train atlas.zarr --out run`")
        if self.processes < 1 or self.nnodes < 1:
            raise UsageError(f"launch: --processes {self.processes} --nnodes {self.nnodes}: both are at least 1")
        if self.nnodes > 1 and not self.rdzv_endpoint:
            raise UsageError("launch: several nodes meet at --rdzv-endpoint HOST:PORT, one of them, the same for all")
        if self.node_rank is not None and not 0 <= self.node_rank < self.nnodes:
            raise UsageError(f"launch: --node-rank {self.node_rank} is not in 0..{self.nnodes - 1}")


def run(options: LaunchOptions) -> int:
    """Exit code of the command: that of the worker whose failure explains the others'."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    threads = max(usable_cores() // options.processes, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    launch = elastic_launch(_launch_config(options), entrypoint=sys.executable)
    try:
        launch("-m", "unicoord_atlas.jobs.cli", *options.command)
    except ChildFailedError as failed:
        return exit_code(failure.exitcode for failure in failed.failures.values())
    except RendezvousError as error:
        print(f"unicoord-atlas: launch: the nodes did not meet at {options.rdzv_endpoint}: {error}", file=sys.stderr)
        return PEERS_LOST
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


def _launch_config(options: LaunchOptions) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=options.nnodes,
        max_nodes=options.nnodes,
        nproc_per_node=options.processes,
        run_id=options.rdzv_id,
        rdzv_backend="c10d",
        rdzv_endpoint=options.rdzv_endpoint or "localhost:0",
        rdzv_configs={} if options.node_rank is None else {"is_host": options.node_rank == 0},
        local_addr=options.local_addr,
        max_restarts=0,
        shutdown_timeout=300,  # a large checkpoint is written to the end
    )


def exit_code(codes: Iterable[int]) -> int:
    """One exit code for those of all workers that failed; a negative one is the signal that killed a worker.

    A bad setting or bad data explains all else; then a stop that was asked for; a worker that was killed, or that lost
    another one, is worth another try; what is left is an error of the program.
    """
    seen = list(codes)
    for code in (*_TOLD, *_STOPPED):
        if code in seen:
            return code
    if any(code < 0 or code == PEERS_LOST for code in seen):
        return PEERS_LOST
    return 1
