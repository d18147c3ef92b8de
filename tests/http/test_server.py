"""The server's own: connections and the tasks that serve them."""

from __future__ import annotations

import asyncio
import http.client
import socket

from aiohttp import web

from cas.http.server import HttpServer, task_unless_request
from tests.http.serving import PATIENCE


class _Noting:
    """A handler that notes which tasks there are while it runs."""

    def __init__(self) -> None:
        self.busy: set[web.RequestHandler] = set()
        self.draining = False
        self.drained = asyncio.Event()
        self.own: list[asyncio.Task[object] | None] = []
        self.unfinished: list[int] = []

    async def __call__(self, request: web.BaseRequest, /) -> web.StreamResponse:
        self.own.append(asyncio.current_task())
        # Goes to the loop and comes back, as whoever waits for a store does.
        await asyncio.sleep(0)
        self.unfinished.append(sum(not task.done() for task in asyncio.all_tasks()))
        return web.Response(text="well")


def test_a_request_is_served_without_a_turn_of_the_loop_for_its_task() -> None:
    handlers: list[_Noting] = []

    def make(_: asyncio.AbstractEventLoop) -> _Noting:
        handlers.append(_Noting())
        return handlers[0]

    server = HttpServer(make)
    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    server.add_socket(bound)
    server.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for _ in range(3):
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"well")
        connection.close()
    finally:
        server.stop(0)
        assert server.wait_for_termination(PATIENCE)
    [noted] = handlers
    assert len(noted.own) == 3
    assert None not in noted.own
    # The server's, the connection's, and, where aiohttp can start one at once (Python 3.12), the
    # request's.
    eager = hasattr(asyncio, "eager_task_factory")
    assert noted.unfinished == [2 + eager] * 3
    if not eager:
        assert len(set(noted.own)) == 1


def test_what_is_no_request_gets_a_task() -> None:
    async def other() -> str:
        return "done"

    async def run() -> None:
        asyncio.get_running_loop().set_task_factory(task_unless_request)
        task = asyncio.create_task(other(), name="other")
        assert isinstance(task, asyncio.Task)
        assert task.get_name() == "other"
        assert await task == "done"

    asyncio.run(run())
