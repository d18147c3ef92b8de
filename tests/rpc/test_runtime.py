"""Results that other threads bring: `Runtime.wait` and `Runtime.offload`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from cas.rpc.handler import Runtime
from tests.rpc.conftest import Serve
from tests.rpc.serving import (
    PATIENCE,
    STREAM_STREAM,
    UNARY_UNARY,
    Result,
    code_of,
    stream_stream,
    unary_unary,
)

Handler = Callable[[Runtime, bytes], Any]


def run(serve: Serve, body: Handler, **options: Any) -> Any:
    """A client's call whose handler is `body(runtime, request)`."""

    def using(runtime: Runtime) -> dict[str, Any]:
        async def handler(request: bytes, context: Any) -> bytes:
            return bytes(await body(runtime, request))

        return {"run": UNARY_UNARY(handler)}

    return unary_unary(serve(using=using, options=options).channel(), "run")


def test_a_result_that_is_there_already(serve: Serve) -> None:
    async def body(runtime: Runtime, request: bytes) -> bytes:
        result = Result()
        result.bring(request)
        got: bytes = await runtime.wait(result)
        return got

    assert run(serve, body)(b"there") == b"there"


def test_a_result_that_comes_later(serve: Serve) -> None:
    made: queue.SimpleQueue[Result] = queue.SimpleQueue()

    async def body(runtime: Runtime, request: bytes) -> bytes:
        result = Result()
        made.put(result)
        got: bytes = await runtime.wait(result)
        return got

    call = run(serve, body)
    for number in range(50):
        going = call.future(b"")
        result = made.get(timeout=PATIENCE)
        if number % 2:
            # Otherwise it may come while the wait begins.
            assert result.waited_for.wait(PATIENCE)
        result.bring(b"%d" % number)
        assert going.result(PATIENCE) == b"%d" % number


def test_errors_are_raised_where_the_result_is_awaited(serve: Serve) -> None:
    async def body(runtime: Runtime, request: bytes) -> bytes:
        caught = []
        for later in (False, True):
            result = Result()
            if later:
                threading.Timer(0.02, result.bring, (None, KeyError("late"))).start()
            else:
                result.bring(error=KeyError("early"))
            try:
                await runtime.wait(result)
            except KeyError as error:
                caught.append(error.args[0])
        return ",".join(caught).encode()

    assert run(serve, body)(b"") == b"early,late"


def test_many_at_once_from_one_thread(serve: Serve) -> None:
    """As a group commit does it: one thread brings all the results in a burst."""
    made: queue.SimpleQueue[Result] = queue.SimpleQueue()

    async def body(runtime: Runtime, request: bytes) -> bytes:
        result = Result()
        made.put(result)
        got: bytes = await runtime.wait(result)
        return got + request

    call = run(serve, body, max_concurrent_calls=1000)
    for _ in range(5):
        going = [call.future(b"%d" % number) for number in range(100)]
        for result in [made.get(timeout=PATIENCE) for _ in going]:
            result.bring(b"x")
        answers = [each.result(PATIENCE) for each in going]
        assert answers == [b"x%d" % number for number in range(100)]


def test_many_in_turn_in_one_handler(serve: Serve) -> None:
    async def body(runtime: Runtime, request: bytes) -> bytes:
        total = 0
        for number in range(3000):
            result = Result()
            result.bring(number)
            total += await runtime.wait(result)
        return b"%d" % total

    assert run(serve, body)(b"") == b"%d" % sum(range(3000))


def test_one_call_brings_what_another_waits_for(serve: Serve) -> None:
    shared: dict[bytes, Result] = {b"a": Result(), b"b": Result()}

    async def body(runtime: Runtime, request: bytes) -> bytes:
        kind, name = request.split()
        if kind == b"bring":
            shared[name].bring(b"brought")
            return b""
        got: bytes = await runtime.wait(shared[name])
        return got

    call = run(serve, body)
    for name in shared:
        going = call.future(b"wait " + name)
        assert shared[name].waited_for.wait(PATIENCE)
        call(b"bring " + name)
        assert going.result(PATIENCE) == b"brought"


def test_waits_between_messages(serve: Serve) -> None:
    def using(runtime: Runtime) -> dict[str, Any]:
        async def handler(request: Any, context: Any) -> None:
            async for message in request:
                result = Result()
                threading.Thread(target=result.bring, args=(message,)).start()
                await context.write(await runtime.wait(result))
                await context.write(await runtime.offload(bytes.upper, message))

        return {"echo": STREAM_STREAM(handler)}

    channel = serve(using=using).channel()
    messages = [b"m%d" % number for number in range(30)]
    expected = [each for message in messages for each in (message, message.upper())]
    assert list(stream_stream(channel, "echo")(iter(messages))) == expected


def test_offloaded_work(serve: Serve) -> None:
    where: set[str] = set()

    def work(*arguments: bytes) -> bytes:
        where.add(threading.current_thread().name)
        return b"-".join(arguments)

    async def body(runtime: Runtime, request: bytes) -> bytes:
        return await runtime.offload(work, request, b"b")

    call = run(serve, body)
    assert [call(b"%d" % number) for number in range(50)] == [b"%d-b" % n for n in range(50)]
    assert where <= {"rpc-helper_0", "rpc-helper_1"}


def test_an_offloaded_error(serve: Serve) -> None:
    async def body(runtime: Runtime, request: bytes) -> bytes:
        try:
            await runtime.offload(int, "no number")
        except ValueError as error:
            return str(error).encode()
        return b""

    assert b"no number" in run(serve, body)(b"")


def test_no_more_helpers_than_agreed(serve: Serve) -> None:
    running: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()

    def work() -> None:
        release = threading.Event()
        running.put(release)
        assert release.wait(PATIENCE)

    async def body(runtime: Runtime, request: bytes) -> bytes:
        await runtime.offload(work)
        return b"done"

    call = run(serve, body, helper_threads=3)
    going = [call.future(b"") for _ in range(7)]
    at_work = [running.get(timeout=PATIENCE) for _ in range(3)]
    with pytest.raises(queue.Empty):
        running.get(timeout=0.2)
    for _ in range(4):
        at_work.pop().set()
        at_work.append(running.get(timeout=PATIENCE))
    for release in at_work:
        release.set()
    assert [each.result(PATIENCE) for each in going] == [b"done"] * 7


def test_the_engine_serves_while_helpers_work(serve: Serve) -> None:
    release = threading.Event()

    async def body(runtime: Runtime, request: bytes) -> bytes:
        if request == b"slow":
            await runtime.offload(release.wait, PATIENCE)
        return request

    call = run(serve, body)
    slow = [call.future(b"slow") for _ in range(5)]
    assert call(b"quick") == b"quick"
    release.set()
    assert [each.result(PATIENCE) for each in slow] == [b"slow"] * 5


@pytest.mark.parametrize("engine_name", ["cq"])
def test_anything_else_cannot_be_awaited(serve: Serve) -> None:
    """So that a servicer that would only run on asyncio is found."""

    class Foreign:
        def __await__(self) -> Any:
            yield "something"

    cleaned = threading.Event()

    async def body(runtime: Runtime, request: bytes) -> bytes:
        try:
            await Foreign()
        finally:
            cleaned.set()
        return b""

    call = run(serve, body)
    assert code_of(lambda: call(b"")) == grpc.StatusCode.UNKNOWN
    assert cleaned.is_set()
