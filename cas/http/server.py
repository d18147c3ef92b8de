"""The server: aiohttp's HTTP on a loop of its own, in a thread of its own.

Rule: sockets, connections and their end; what is asked and answered is `service`'s.  The
methods are those that a worker's frame needs of an engine: `start`, `alive`, `stop`,
`wait_for_termination`; they are called from another thread than the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Protocol

import uvloop
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

IDLE_SECONDS = 120.0
"""For which a connection may wait between requests, and for the whole of a request's head."""
LINGER_SECONDS = 10.0
"""For which what follows a refused request's head is read and thrown away."""
MAX_LINE = 8190
MAX_FIELD = 8190
MAX_FIELDS = 64
READ_BUFFER = 256 << 10
"""Bytes of a body that wait in memory while others are worked on."""
BACKLOG = 1024


class Handler(Protocol):
    """Answers requests, and says which connections wait for an answer."""

    busy: set[web.RequestHandler]
    draining: bool
    drained: asyncio.Event
    """Set by the handler once it drains and no connection is busy."""

    async def __call__(self, request: web.BaseRequest, /) -> web.StreamResponse: ...


log = logging.getLogger("cas.http")


class HttpServer:
    """Serves one handler on any number of addresses."""

    def __init__(
        self,
        make_handler: Callable[[asyncio.AbstractEventLoop], Handler],
        *,
        tls: ssl.SSLContext | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """`make_handler` is called on the loop's thread, once."""
        self._make_handler = make_handler
        self._tls = tls
        self._idle_seconds = idle_seconds
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="cas-http", daemon=True)
        self._sockets: list[socket.socket] = []
        self._ended = threading.Event()
        self._stop: asyncio.Future[float] = self._loop.create_future()
        self._failure: BaseException | None = None
        self._started = threading.Event()

    def add_socket(self, bound: socket.socket) -> None:
        """Has it listen on a bound socket, which is its own from now on; before `start`."""
        self._sockets.append(bound)

    def start(self) -> None:
        """Serves from now on.  Raises what keeps it from that."""
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def alive(self, timeout: float) -> bool:
        """Whether the loop answers within `timeout` seconds."""
        answered = threading.Event()
        self._loop.call_soon_threadsafe(answered.set)
        return answered.wait(timeout)

    def stop(self, grace: float) -> None:
        """Begins the drain and returns at once: no new connections, requests that run have
        `grace` seconds."""

        def begin() -> None:
            if not self._stop.done():
                self._stop.set_result(grace)

        self._loop.call_soon_threadsafe(begin)

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Whether the drain ended within `timeout` seconds; after it no handler runs."""
        return self._ended.wait(timeout)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = error
            if self._started.is_set():
                log.exception("the HTTP server failed")
        finally:
            self._loop.close()
            self._started.set()
            self._ended.set()

    async def _serve(self) -> None:
        """Start, serve, drain."""
        handler = self._make_handler(self._loop)
        self._loop.set_task_factory(task_unless_request)
        manager = web.Server(
            handler,
            access_log=None,
            logger=_quiet_logger(),
            auto_decompress=False,
            keepalive_timeout=self._idle_seconds,
            lingering_time=LINGER_SECONDS,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
            read_bufsize=READ_BUFFER,
        )
        listeners = [
            await self._loop.create_server(manager, sock=sock, ssl=self._tls, backlog=BACKLOG)
            for sock in self._sockets
        ]
        self._started.set()
        grace = await self._stop
        for listener in listeners:
            listener.close()
        # aiohttp's own shutdown takes no further bytes of bodies that are on their way.
        handler.draining = True
        if not handler.busy:
            handler.drained.set()
        for connection in manager.connections:
            if connection not in handler.busy:
                connection.force_close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await handler.drained.wait()
        await manager.shutdown(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def task_unless_request(loop: asyncio.AbstractEventLoop, served: Any, **options: Any) -> Any:
    """A task factory.  Before Python 3.12 aiohttp has a task made for each request, and waits for
    it in the connection's own: two turns of the loop, 3 of a small GET's 27 µs.  So that one
    serves the request itself; what is made for anything else is a task."""
    if getattr(served, "cr_code", None) is _SERVES:
        return served
    return asyncio.Task(served, loop=loop, **options)


_SERVES = web.RequestHandler._handle_request.__code__


def _quiet_logger() -> logging.Logger:
    """aiohttp's errors, but for what is the client's fault: an unreadable request is answered
    400, and whoever sends millions must not fill the log with tracebacks."""
    logger = logging.getLogger("cas.http.aiohttp")
    if not logger.filters:
        logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (HttpProcessingError, ConnectionError))
