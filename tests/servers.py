"""Object stores on loopback that tests start: moto's S3, SeaweedFS, and a proxy that makes answers go wrong."""

from __future__ import annotations

import http.client
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "not-a-real-secret-key", "AWS_REGION": "us-east-1"}
WEED = Path(sys.executable).with_name("weed")
_PATIENCE_S, _TRIES = 30, 3
_DEALT_OUT, _FIRST_PORT = Path("/proc/sys/net/ipv4/ip_local_port_range"), 12_000


def free_port() -> int:
    """A port that nobody listens on just now."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Different ports that nobody listens on just now, all held until the last is drawn.

    They lie below those that the system deals out, where there is room: else somebody else might get one before the
    server that is to listen there has begun to.
    """
    room = int(_DEALT_OUT.read_text().split()[0]) - _FIRST_PORT
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < number:
            listener = held.enter_context(socket.socket())
            with suppress(OSError):  # taken, or drawn before
                # Not by `random`: each test begins with the same seed, in all processes that run tests.
                listener.bind(("127.0.0.1", _FIRST_PORT + secrets.randbelow(room) if room > 0 else 0))
                ports.append(int(listener.getsockname()[1]))
    return ports


@contextmanager
def moto(port: int | None = None, **environment: str) -> Iterator[str]:
    """Address of moto's server, with nothing in it."""

    def drawn() -> tuple[int, list[str]]:
        own = port or free_port()
        return own, [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(own)]

    with _running(drawn, {**os.environ, **environment}, "moto-api/data.json") as address:
        yield address


@contextmanager
def seaweedfs(folder: Path, port: int | None = None, megabytes: int = 0) -> Iterator[str]:
    """Address of the S3 server of a SeaweedFS that keeps its data, some so much, in a folder."""

    def drawn() -> tuple[int, list[str]]:
        names = [f"{name}.port" for name in ("s3", "master", "volume", "filer")]
        names += [f"{name}.grpc" for name in names]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports["s3.port"] = port or ports["s3.port"]
        return ports["s3.port"], [
            str(WEED),
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-volume.max={16 + megabytes // 32}",
            "-master.volumeSizeLimitMB=64",
            *(f"-{name}={number}" for name, number in ports.items()),
        ]

    with _running(drawn, dict(os.environ), "healthz") as address:
        yield address


@contextmanager
def _running(drawn: Callable[[], tuple[int, list[str]]], environment: dict[str, str], page: str) -> Iterator[str]:
    """Address of a server that answers; one that ends before, for a port of its was taken, is started on others."""
    command: list[str] = []
    for _ in range(_TRIES):
        port, command = drawn()
        address = f"http://127.0.0.1:{port}"
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if _answers(server, f"{address}/{page}"):
                yield address
                return
        finally:
            server.kill()
            server.wait()
    raise AssertionError(f"{command} ended, {_TRIES} times")


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until a server answers; False if it ends before."""
    for _ in range(_PATIENCE_S * 20):
        if server.poll() is not None:
            return False
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(address)


def upload(endpoint: str, folder: Path, bucket: str, key: str, acl: str = "private") -> str:
    """Copy a folder into a bucket, which is made; its address."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=bucket, ACL=acl)

    def put(path: Path) -> None:
        client.put_object(Bucket=bucket, Key=f"{key}/{path.relative_to(folder)}", Body=path.read_bytes(), ACL=acl)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, (path for path in folder.rglob("*") if path.is_file())))
    return f"s3://{bucket}/{key}"


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server; `fault` says what goes wrong with each, by its number and path.

    503, expired, denied, region: the answer; cut: half of the body, then the connection ends; short: half of the body
    as if it were all; wrong: another byte in the middle; slow: the body in ten parts, over a third of a second; reset:
    no answer; silent: no answer either, but the connection stays for three seconds.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.fault: Callable[[int, str], str | None] = lambda number, path: None
        self.seen: list[str] = []
        self.faults_made = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away, or a server that is down: the client is told by the broken connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.seen.append(self.path)
            fault = self.server.fault(len(self.server.seen), self.path)
            self.server.faults_made += fault is not None
        if fault in ("reset", "silent"):
            time.sleep(3 if fault == "silent" else 0)
            self.close_connection = True
            return
        if fault in _REFUSALS:
            status, code = _REFUSALS[fault]
            key = self.headers.get("Authorization", "")  # as Amazon repeats it
            body = f"<Error><Code>{code}</Code><AWSAccessKeyId>{key}</AWSAccessKeyId></Error>"
            self._answer(status, {}, body.encode())
            return
        self._answer(*self._upstream(), fault)

    do_HEAD = do_GET

    def _upstream(self) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        try:
            connection.request(self.command, self.path, headers=dict(self.headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: str | None = None) -> None:
        half = len(body) // 2
        if fault == "short":
            body = body[:half]
        if fault == "wrong" and body:
            body = body[:half] + bytes([body[half] ^ 255]) + body[half + 1 :]
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        self.send_header("Content-Length", headers.get("Content-Length", "0") if is_head else str(len(body)))
        self.end_headers()
        if is_head:
            return
        sent = body[:half] if fault == "cut" else body
        step = max(len(body) // 10, 1) if fault == "slow" else max(len(body), 1)
        for start in range(0, len(sent), step):
            self.wfile.write(sent[start : start + step])
            time.sleep(0.03 if fault == "slow" else 0)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Nothing."""


_REFUSALS = {
    "503": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "region": (301, "PermanentRedirect"),
}


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy before a server."""
    server = Proxy(upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
