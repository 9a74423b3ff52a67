"""The browser's server: one page, and the cells as JSON, float32 and Arrow.  Shapes: n cells, m chosen ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from unicoord_atlas.errors import UnicoordError, UsageError

from .browse_guard import Guard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from .browse_cells import BrowsedCells
    from .browse_reconfigure import Reconfiguration

_PAGE = {
    "": ("index.html", "text/html"),
    "atlas.css": ("atlas.css", "text/css"),
    "atlas.js": ("atlas.js", "text/javascript"),
    "page.js": ("page.js", "text/javascript"),
    "plot.js": ("plot.js", "text/javascript"),
    "reconfigure.js": ("reconfigure.js", "text/javascript"),
}
_MOST_ROWS = 500
"""Of a table, and of what a search lists."""


@dataclass(frozen=True)
class Browsed:
    """What one server shows."""

    title: str
    cells: BrowsedCells
    places: NDArray[np.float32]
    """(n, 2)"""
    reconfiguration: Reconfiguration | None


def make_app(browsed: Browsed, names: Iterable[str]) -> ASGIApp:
    """The server behind its guard; `names` are the host names that it answers to."""
    views = _Views(browsed)
    routes = [
        Route("/api/facts", views.facts),
        Route("/api/places", views.places),
        Route("/api/column/{number:int}", views.column),
        Route("/api/cells", views.cells),
        Route("/api/search", views.search),
        Route("/api/export/{kind}", views.export, methods=["POST"]),
        Route("/api/reconfigure", views.reconfigure, methods=["POST"]),
        Route("/{name}", _file),
        Route("/", _file),
    ]
    app = Starlette(routes=routes, exception_handlers={UnicoordError: _refused})
    return Guard(app, frozenset(names), 4 * len(browsed.places) + 65_536)


class _Views:
    """One answer a method."""

    def __init__(self, browsed: Browsed) -> None:
        self._browsed, self._cells = browsed, browsed.cells

    async def facts(self, _request: Request) -> Response:
        """What there is to see."""
        columns = [{"name": each.name, "categories": each.categories} for each in self._cells.columns]
        reconfiguration = self._browsed.reconfiguration
        return JSONResponse(
            {
                "title": self._browsed.title,
                "cells": len(self._browsed.places),
                "columns": columns,
                "reconfigure": reconfiguration.facts if reconfiguration else None,
            }
        )

    async def places(self, _request: Request) -> Response:
        """(n, 2) float32."""
        return _floats(self._browsed.places)

    async def column(self, request: Request) -> Response:
        """(n,) float32 codes or numbers."""
        number = request.path_params["number"]
        if number >= len(self._cells.columns):
            raise UsageError(f"column {number}: must be in 0..{len(self._cells.columns) - 1}")
        return _floats(await run_in_threadpool(self._cells.columns[number].read))

    async def cells(self, request: Request) -> Response:
        """Names and obs of the cells whose numbers are given: ?rows=1,2,3."""
        words = [word for word in request.query_params.get("rows", "").split(",") if word]
        if not all(word.isdecimal() and len(word) < 10 for word in words) or len(words) > _MOST_ROWS:
            raise UsageError(f"rows: write up to {_MOST_ROWS} numbers of cells with commas between")
        return JSONResponse(self._cells.shown(np.array(words, np.int64)))

    async def search(self, request: Request) -> Response:
        """Rows, as uint32, of the cells whose name or class holds ?words=...."""
        words = request.query_params.get("words", "").strip()
        rows = await run_in_threadpool(self._cells.found, words) if words else np.zeros(0, np.int64)
        return Response(rows.astype("<u4").tobytes(), media_type="application/octet-stream")

    async def export(self, request: Request) -> Response:
        """obs_names as text, or obs as an Arrow file, of the uint32 rows in the body."""
        body = await request.body()
        rows = np.frombuffer(body[: len(body) // 4 * 4], "<u4").astype(np.int64)
        if len(rows) and rows.max() >= len(self._cells.obs):
            raise UsageError(f"cell {rows.max()}: must be in 0..{len(self._cells.obs) - 1}")
        part = self._cells.obs.iloc[rows]
        if request.path_params["kind"] == "names.txt":
            return PlainTextResponse("".join(f"{name}\n" for name in part.index))
        if request.path_params["kind"] == "obs.arrow":
            return Response(_arrow(pa.Table.from_pandas(part)), media_type="application/vnd.apache.arrow.file")
        return PlainTextResponse("names.txt or obs.arrow\n", 404)

    async def reconfigure(self, request: Request) -> Response:
        """What changes when a coordinate of a type or a seed is set; nothing is kept."""
        reconfiguration = self._browsed.reconfiguration
        if reconfiguration is None:
            raise UsageError("only a reference can be asked for changes: unicoord-atlas browse REFERENCE")
        try:
            asked = json.loads(await request.body())
        except ValueError:
            raise UsageError("the body must be a JSON object") from None
        return JSONResponse(await run_in_threadpool(reconfiguration.answer, asked))


async def _file(request: Request) -> Response:
    known = _PAGE.get(request.path_params.get("name", ""))
    if known is None:
        return PlainTextResponse("no such page\n", 404)
    name, kind = known
    return Response((files("unicoord_atlas.jobs") / "web" / name).read_bytes(), media_type=kind)


async def _refused(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


def _floats(values: NDArray[np.float32]) -> Response:
    return Response(np.ascontiguousarray(values, "<f4").tobytes(), media_type="application/octet-stream")


def _arrow(table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data
