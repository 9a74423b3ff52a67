"""What the browser's server refuses before it looks at a request.

A page of another site can make a browser ask a server on this machine; names in Host and Origin tell such requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_MOST_QUERY = 4_000
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """Stands before an app: right names, no other site, nothing oversize."""

    app: ASGIApp
    names: frozenset[str]
    """Host names that this server is called by."""
    most_bytes: int
    """Of a request's body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on and add headers to the answer."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        if scope["type"] != "http":
            return  # no websocket is spoken here
        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if (_name(f"//{host}") or "") not in self.names:
            return PlainTextResponse(f"Host {host!r} is no name of this server\n", 421)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("requests of other sites are refused\n", 403)
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and headers.get("sec-fetch-mode") != "navigate":  # a link to the page may be followed
            return PlainTextResponse("requests of other sites are refused\n", 403)
        if len(scope["query_string"]) > _MOST_QUERY or len(scope["path"]) > _MOST_QUERY:
            return PlainTextResponse("the address is too long\n", 414)
        if scope["method"] != "POST":
            return None
        length = headers.get("content-length", "")
        if not length.isdigit():
            return PlainTextResponse("say Content-Length\n", 411)
        if int(length) > self.most_bytes:
            return PlainTextResponse(f"the request is larger than {self.most_bytes:,} bytes\n", 413)
        return None


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
