"""browse: cells, and a reference's coordinates, in the browser."""

from __future__ import annotations

import ipaddress
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unicoord_atlas.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from .browse_app import Browsed


@dataclass(frozen=True)
class BrowseOptions:
    """What `unicoord-atlas browse` is asked to do."""

    path: Path
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any that is free."""
    names: tuple[str, ...] = ()
    """Further host names that the server is called by."""
    maps: Path | None = None
    """Folder for a map that is made; beside the cells if None."""


def run(options: BrowseOptions) -> None:
    """Open the cells, make the map if there is none, and serve until Ctrl-C."""
    try:
        import uvicorn

        from .browse_app import make_app
        from .browse_guard import LOOPBACK
    except ImportError as error:
        raise ConfigError(
            f"browse needs {error.name}, which is not installed: pip install 'unicoord-atlas[report]'"
        ) from None
    with _listening(options.host, options.port) as listener:
        browsed = open_browsed(options.path, options.maps)
        app = make_app(browsed, {*LOOPBACK, options.host.lower(), *(name.lower() for name in options.names)})

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                _say_address(options.host, listener.getsockname()[1], len(browsed.places))

        settings = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none")
        with suppress(KeyboardInterrupt):  # on a busy machine uvicorn may end without handing the signal on
            Server(settings).run(sockets=[listener])
        print("ended", file=sys.stderr)


def open_browsed(path: Path, maps: Path | None = None) -> Browsed:
    """Cells and their map; of a reference also its reconfiguration, on the map of its cells or of its seeds.

    A map that is made is kept in the folder `maps`, or beside the cells.

    Raises
    ------
    DataError
        If there are no coordinates here.
    """
    from unicoord_atlas.reference import ReferenceModel

    from .browse_app import Browsed
    from .browse_cells import cells_of_file, cells_of_seeds
    from .browse_map import places_of
    from .browse_reconfigure import Reconfiguration
    from .reference_cells import INDEX, LATENTS, ReferenceCells

    if not (path / "config.json").exists():
        cells = cells_of_file(path)
        return Browsed(path.name, cells, places_of(path, cells, maps), None)
    reference = ReferenceModel.load(path)
    bundled = (path / LATENTS).exists()
    cells = cells_of_file(path / LATENTS) if bundled else cells_of_seeds(reference)
    places = places_of(path, cells, maps)
    search = ReferenceCells.open(path, ()).search if (path / INDEX).exists() else None
    reconfiguration = Reconfiguration(reference, cells.bio(), places, cells, search) if reference.seeds else None
    return Browsed(path.name, cells, places, reconfiguration)


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--host {host} --port {port}: cannot be listened at ({error}); choose another --port"
        ) from None


def _say_address(host: str, port: int, num_cells: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    print(f"{num_cells:,} cells at http://{shown}:{port}/  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if not _is_loopback(host):
        print("whoever reaches this address can see the cells; there is no password", file=sys.stderr, flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
