"""An HTTP server over a real store, in this process, and a client that sends just what it is told.

Rule: no code of the server in the client; http.client reads answers, requests are bytes.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cas.http import operator
from cas.http.bodies import Pace
from cas.http.context import Context, HttpLimits
from cas.http.runtime import LoopRuntime
from cas.http.server import HttpServer
from cas.http.service import Page, Service
from cas.http.writing import Writer
from cas.metrics.board import Board
from cas.metrics.instruments import Metrics
from cas.store.directory import prepare
from cas.store.interface import BlobStore
from cas.store.local import StoreOptions, open_store

PATIENCE = 40.0

MAX_BLOB = 64 << 20
MAX_MESSAGE = 1 << 20


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Served:
    """A running server and its store."""

    store: BlobStore
    server: HttpServer
    port: int
    idle: list[http.client.HTTPConnection] = field(default_factory=list)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        **headers: str,
    ) -> Reply:
        """One request on a connection of its own; ``_`` in a header's name stands for ``-``."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(
                method, path, body, fields, encode_chunked=isinstance(body, Iterator)
            )
            return reply_of(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, None, **headers)

    def put(self, path: str, body: bytes, **headers: str) -> Reply:
        return self.ask("PUT", path, body, **headers)

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as opened:
            yield opened

    def raw(self, sent: bytes, *, method: str = "GET") -> Reply:
        """What is answered to these very bytes; status 0 when the connection just ends."""
        with self.connected() as opened:
            opened.sendall(sent)
            return answer_on(opened, method)


def answer_on(opened: socket.socket, method: str = "GET") -> Reply:
    """The next answer; status 0 when the connection just ends."""
    response = http.client.HTTPResponse(opened, method=method)
    try:
        response.begin()
        return reply_of(response)
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return Reply(0, {}, b"")
    finally:
        response.close()


def reply_of(response: http.client.HTTPResponse) -> Reply:
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


@contextmanager
def serving(
    store: BlobStore,
    *,
    limits: HttpLimits | None = None,
    pages: Mapping[str, Page] | None = None,
    board: Board | None = None,
    metrics: Metrics | None = None,
    idle_seconds: float = 60.0,
) -> Iterator[Served]:
    limits = limits or HttpLimits(max_blob_size=MAX_BLOB, max_message_size=MAX_MESSAGE)
    runtimes: list[LoopRuntime] = []

    def handler(loop: object) -> Service:
        runtimes.append(LoopRuntime(loop, 4))  # type: ignore[arg-type]
        shown = pages if board is None else operator.pages(board, runtimes[0])
        context = Context(store, runtimes[0], limits, Writer(store, runtimes[0]))
        return Service(context, shown, metrics)

    server = HttpServer(handler, idle_seconds=idle_seconds)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server.add_socket(bound)
    server.start()
    try:
        yield Served(store, server, bound.getsockname()[1])
    finally:
        server.stop(1.0)
        assert server.wait_for_termination(PATIENCE)
        for runtime in runtimes:
            runtime.close()


@contextmanager
def local_store(directory: Path, **options: object) -> Iterator[BlobStore]:
    with ExitStack() as stack:
        stack.callback(prepare(directory).close)
        store = open_store(directory, StoreOptions(durability="none", **options))  # type: ignore[arg-type]
        stack.callback(store.close)
        yield store


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def some_bytes(size: int, seed: int = 0) -> bytes:
    """Random ones, the same each time."""
    return random.Random(size * 1000 + seed).randbytes(size)


def slow() -> Pace:
    """The pace of a server that soon loses patience."""
    return Pace(idle=0.5, rate=10_000)
