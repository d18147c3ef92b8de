"""Many calls: they are all answered, and nothing is left of them."""

from __future__ import annotations

import gc
import os
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from cas.rpc.handler import EOF, Runtime
from tests.rpc.conftest import Serve
from tests.rpc.serving import (
    PATIENCE,
    REFUSED,
    STREAM_STREAM,
    STREAM_UNARY,
    UNARY_STREAM,
    UNARY_UNARY,
    Endless,
    Result,
    Server,
    code_of,
    eventually,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)


class Kinds:
    """One handler of each kind, and calls of them that check their answer."""

    def __init__(self, serve: Serve) -> None:
        self.contexts: set[type] = set()
        self.server: Server = serve(using=self._handlers, options={"max_concurrent_calls": 1000})
        self.channel = self.server.channel()

    def _handlers(self, runtime: Runtime) -> dict[str, Any]:
        async def unary(request: bytes, context: Any) -> bytes:
            self.contexts.add(type(context))
            return request

        async def waiting(request: bytes, context: Any) -> bytes:
            result = Result()
            # Brought by a helper, after the handler has begun to wait or before.
            await runtime.offload(lambda: threading.Timer(0, result.bring, (request,)).start())
            return bytes(await runtime.wait(result))

        async def download(request: bytes, context: Any) -> None:
            for part in (request, bytes(100_000), request):
                await context.write(part)

        async def upload(request: object, context: Any) -> bytes:
            parts = []
            while (part := await context.read()) is not EOF:
                parts.append(part)
            return b"".join(parts)

        async def echo(request: Any, context: Any) -> Any:
            async for part in request:
                yield part

        async def fail(request: bytes, context: Any) -> bytes:
            return bytes(await context.abort(grpc.StatusCode.NOT_FOUND, "no"))

        return {
            "unary": UNARY_UNARY(unary),
            "waiting": UNARY_UNARY(waiting),
            "download": UNARY_STREAM(download),
            "upload": STREAM_UNARY(upload),
            "echo": STREAM_STREAM(echo),
            "fail": UNARY_UNARY(fail),
        }

    def call(self, number: int) -> None:
        text = b"%d" % number
        parts = [text] * 3
        match number % 8:
            case 0 | 1 | 2:
                assert unary_unary(self.channel, "unary")(text) == text
            case 3:
                assert unary_unary(self.channel, "waiting")(text) == text
            case 4:
                answer = list(unary_stream(self.channel, "download")(text))
                assert answer == [text, bytes(100_000), text]
            case 5:
                assert stream_unary(self.channel, "upload")(iter(parts)) == text * 3
            case 6:
                assert list(stream_stream(self.channel, "echo")(iter(parts))) == parts
            case 7:
                missing = code_of(lambda: unary_unary(self.channel, "fail")(text))
                assert missing == grpc.StatusCode.NOT_FOUND

    def cancel(self, number: int) -> None:
        if number % 2:
            requests = Endless(b"a")
            call = stream_stream(self.channel, "echo")(requests)
            assert next(call) == b"a"
            call.cancel()
            # For the client's own thread, which still waits for a request to send.
            requests.half_close()
        else:
            unary_unary(self.channel, "waiting").future(b"").cancel()

    def left(self) -> list[object]:
        """Contexts and coroutines that are still there; the last may be held by a traceback."""
        gc.collect()
        return [
            each
            for each in gc.get_objects()
            if type(each) in self.contexts
            or (
                isinstance(each, types.CoroutineType | types.AsyncGeneratorType)
                and each.__qualname__.startswith("Kinds.")
            )
        ]


def used() -> tuple[int, int]:
    """Threads and open files."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def grown(before: tuple[int, int]) -> tuple[int, int] | None:
    """How many more threads and files there are than a few that come and go, if any."""
    now = used()
    few = 4  # the second helper, and threads of the client's library
    threads, files = now[0] - before[0], now[1] - before[1]
    return (threads, files) if max(threads, files) > few else None


@pytest.fixture
def kinds(serve: Serve) -> Kinds:
    made = Kinds(serve)
    with ThreadPoolExecutor(16) as clients:
        # What is made once is there before anything is counted.
        list(clients.map(made.call, range(64)))
    return made


def test_calls_in_turn(kinds: Kinds) -> None:
    before = used()
    for number in range(800):
        kinds.call(number)
    assert eventually(lambda: len(kinds.left()) <= 1), kinds.left()
    assert eventually(lambda: not grown(before)), grown(before)


def test_calls_at_once(kinds: Kinds) -> None:
    before = used()
    with ThreadPoolExecutor(32) as clients:
        list(clients.map(kinds.call, range(2000)))
    assert eventually(lambda: len(kinds.left()) <= 1), kinds.left()
    assert eventually(lambda: not grown(before)), grown(before)


def test_calls_cancelled_at_once(kinds: Kinds) -> None:
    before = used()
    with ThreadPoolExecutor(16) as clients:
        list(clients.map(kinds.cancel, range(400)))
    kinds.call(0)
    assert eventually(lambda: len(kinds.left()) <= 1), kinds.left()
    assert eventually(lambda: not grown(before)), grown(before)


def test_connections_in_turn(kinds: Kinds) -> None:
    before = used()
    for number in range(50):
        with grpc.insecure_channel(
            kinds.server.target, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            assert unary_unary(channel, "unary")(b"%d" % number) == b"%d" % number
    assert eventually(lambda: not grown(before)), grown(before)


def test_engines_in_turn(serve: Serve) -> None:
    async def unary(request: bytes, context: Any) -> bytes:
        return request

    def once() -> None:
        server = serve(unary=UNARY_UNARY(unary))
        assert unary_unary(server.channel(), "unary")(b"x") == b"x"
        server.close()

    # The client's side keeps a little of its first connections.
    for _ in range(3):
        once()
    before = used()
    for _ in range(10):
        once()
    assert not grown(before)


def test_a_drain_under_load(kinds: Kinds) -> None:
    """Each call is answered in full or refused; none hangs."""
    refused: list[grpc.StatusCode] = []
    under_way = threading.Event()

    def call(number: int) -> None:
        try:
            # With a deadline: see below.
            unary_unary(kinds.channel, "unary")(b"x", timeout=PATIENCE / 4)
        except grpc.RpcError as error:
            refused.append(error.code())
        if number > 100:
            under_way.set()

    with ThreadPoolExecutor(16) as clients:
        calls = [clients.submit(call, number) for number in range(600)]
        assert under_way.wait(PATIENCE)
        kinds.server.engine.stop(PATIENCE)
        assert kinds.server.engine.wait_for_termination(PATIENCE)
        for each in calls:
            each.result(PATIENCE)
    # Now and then the client forgets a call whose server, any server, shuts down: one of the 16
    # that are under way then, where a server that does not answer would leave all of them.
    forgotten = refused.count(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert forgotten <= 2
    assert set(refused) - {grpc.StatusCode.DEADLINE_EXCEEDED} <= set(REFUSED)
