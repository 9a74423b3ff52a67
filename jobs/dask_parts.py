"""A job in parts on a Dask cluster: its workers do the parts, each as `--part` would."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from unicoord_atlas.errors import AlreadyDone, UsageError

from .dask_client import dask_client, in_order_on
from .dask_job import K8S
from .parts import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from .export_latents import ExportLatentsOptions
    from .map_query import MapQueryOptions

Options = TypeVar("Options", "ExportLatentsOptions", "MapQueryOptions")

CELLS = 32_768
"""Of a part.  A killed job finds its parts again, so their number does not follow the cluster's size."""


def run_in_parts(
    address: str, run: Callable[[Options], dict[str, Any]], options: Options, num_cells: int
) -> dict[str, Any]:
    """Do all parts of a job on the cluster; returns what the one says that joined them.

    Parameters
    ----------
    run
        The job, which is given the options with one part.

    Raises
    ------
    AlreadyDone
        If the output was there.
    UsageError
        If the address is `k8s`, the options name a part, or nobody answers.
    """
    if address == K8S:
        raise UsageError(f"--dask {K8S}: in an Indexed Job each pod does its own --part (k8s/base)")
    if options.part is not None:
        raise UsageError(f"--dask {address}: makes parts by itself; leave out --part")
    count = -(-num_cells // CELLS)
    shares = [replace(options, part=Part(index, count), dask=None) for index in range(count)]
    with dask_client(address) as client:
        results = list(in_order_on(client, partial(_one, run), shares))
    whole = [result for result in results if len(result) > 1]
    if not whole:
        raise AlreadyDone(options.out)
    return {name: value for name, value in whole[0].items() if name != "part"}


def _one(run: Callable[[Options], dict[str, Any]], share: Options) -> dict[str, Any]:
    """A part; nothing of one that finds all joined by another, as after a kill."""
    try:
        return run(share)
    except AlreadyDone:
        return {}
