"""Servers and a proxy for the client's tests.

Rule: real sockets throughout.  The HTTP server is aiohttp's with a dictionary behind it: the
plain protocol that Bazel speaks, with what the client must cope with as switches.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ssl import SSLContext

from aiohttp import web

PATIENCE = 40.0


class Proxy:
    """Passes TCP bytes on, and cuts connections when told to.

    `allowance()` is asked for each connection: how many bytes it may carry in both directions
    before it is reset; None for no limit.  With `ssl` it ends TLS, as a proxy before a server does.
    """

    def __init__(
        self,
        target: str,
        allowance: Callable[[], int | None] = lambda: None,
        ssl: SSLContext | None = None,
    ) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._allowance = allowance
        self._ssl = ssl
        self._tasks: set[asyncio.Task[None]] = set()
        self.cuts = 0
        self.address = ""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._ssl)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *unused: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._allowance()
        there, back = await asyncio.open_connection(self._host, self._port)
        writers = (writer, back)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal left
            while data := await source.read(1 << 16):
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        self.cuts += 1
                        for end in writers:
                            end.transport.abort()
                        return
                sink.write(data)
                await sink.drain()

        try:
            with contextlib.suppress(OSError):
                both = [copy(reader, back), copy(there, writer)]
                tasks = [asyncio.ensure_future(one) for one in both]
                _done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in rest:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for end in writers:
                end.transport.abort()


def random_cuts(seed: int, count: int, low: int, high: int) -> Callable[[], int | None]:
    """`count` connections that end after a random number of bytes, then sound ones."""
    chosen = random.Random(seed)
    left = [chosen.randint(low, high) for _ in range(count)]
    return lambda: left.pop() if left else None


@dataclass
class HttpCache:
    """Bazel's HTTP cache protocol, in memory."""

    ranges: bool = True
    authorization: str = ""
    read_only: bool = False
    date: str = ""
    fail: int = 0
    """So many requests are answered 503 first."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(f"{request.method} {request.path}")
        if self.fail:
            self.fail -= 1
            return web.Response(status=503, text="busy")
        if self.authorization and request.headers.get("Authorization") != self.authorization:
            return web.Response(status=401, text="who are you?")
        if self.read_only and request.method == "PUT":
            return web.Response(status=403, text="read only")
        if request.method == "PUT":
            self.blobs[request.path] = await request.read()
            return web.Response()
        data = self.blobs.get(request.path)
        if data is None:
            return web.Response(status=404, headers={"Date": self.date} if self.date else None)
        wanted = request.headers.get("Range") if self.ranges else None
        if wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            return web.Response(status=206, body=data[start:])
        return web.Response(body=data)


@contextlib.asynccontextmanager
async def serving(cache: HttpCache, ssl: SSLContext | None = None) -> AsyncIterator[str]:
    """Serves it on a free port; host:port."""
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", cache.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()
