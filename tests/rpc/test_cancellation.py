"""Calls that end before their handler does: cancelled, out of time, disconnected."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from cas.rpc.handler import EOF, Runtime
from tests.rpc.conftest import Serve
from tests.rpc.serving import (
    PATIENCE,
    STREAM_STREAM,
    STREAM_UNARY,
    UNARY_STREAM,
    UNARY_UNARY,
    Endless,
    Result,
    code_of,
    eventually,
    relay,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)

CHUNK = bytes(1 << 20)


class Stages:
    """Handlers that each wait at one stage of a call, and what became of them."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.result = Result()
        self.reached: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[tuple[str, object, bool]] = queue.SimpleQueue()
        self.callbacks: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def handlers(self) -> dict[str, Any]:
        return {
            "read_first": STREAM_UNARY(self.watched(self.read_first)),
            "read_next": STREAM_UNARY(self.watched(self.read_next)),
            "read_after_write": STREAM_STREAM(self.watched(self.read_after_write)),
            "write_first": UNARY_STREAM(self.watched(self.write_first)),
            "wait": UNARY_UNARY(self.watched(self.wait)),
            "wait_after_write": UNARY_STREAM(self.watched(self.wait_after_write)),
            "wait_in_stream": STREAM_UNARY(self.watched(self.wait_in_stream)),
            "offload": UNARY_UNARY(self.watched(self.offload)),
        }

    def watched(self, stage: Callable[..., Any]) -> Any:
        async def handler(request: Any, context: Any) -> Any:
            context.add_done_callback(lambda call: self.callbacks.put(call.cancelled()))
            how: object = "returned"
            try:
                return await stage(request, context)
            except BaseException as error:
                how = error
                raise
            finally:
                self.ended.put((stage.__name__, how, context.cancelled()))

        return handler

    async def read_first(self, request: object, context: Any) -> bytes:
        self.reached.put("read_first")
        return b"EOF" if await context.read() is EOF else b"message"

    async def read_next(self, request: object, context: Any) -> bytes:
        await context.read()
        self.reached.put("read_next")
        return b"EOF" if await context.read() is EOF else b"message"

    async def read_after_write(self, request: object, context: Any) -> None:
        await context.write(b"x")
        self.reached.put("read_after_write")
        while await context.read() is not EOF:
            pass
        # May come first, once something was written.
        await self.runtime.wait(self.result)

    async def write_first(self, request: object, context: Any) -> None:
        self.reached.put("write_first")
        while True:
            await context.write(CHUNK)

    async def wait(self, request: object, context: Any) -> bytes:
        self.reached.put("wait")
        await self.runtime.wait(self.result)
        return b""

    async def wait_after_write(self, request: object, context: Any) -> None:
        await context.write(b"x")
        self.reached.put("wait_after_write")
        await self.runtime.wait(self.result)

    async def wait_in_stream(self, request: object, context: Any) -> bytes:
        while await context.read() is not EOF:
            pass
        self.reached.put("wait_in_stream")
        await self.runtime.wait(self.result)
        return b""

    async def offload(self, request: object, context: Any) -> bytes:
        self.reached.put("offload")
        await self.runtime.offload(eventually, context.cancelled)
        return b""


STAGES = (
    "read_first",
    "read_next",
    "read_after_write",
    "write_first",
    "wait",
    "wait_after_write",
    "wait_in_stream",
    "offload",
)


def begin(channel: grpc.Channel, stage: str, **arguments: Any) -> Any:
    """A call that stays at `stage` until something ends it."""
    match stage:
        case "read_first":
            return stream_unary(channel, stage).future(Endless(), **arguments)
        case "read_next":
            return stream_unary(channel, stage).future(Endless(b"a"), **arguments)
        case "read_after_write":
            return stream_stream(channel, stage)(Endless(b"a"), **arguments)
        case "write_first" | "wait_after_write":
            return unary_stream(channel, stage)(b"", **arguments)
        case "wait_in_stream":
            return stream_unary(channel, stage).future(iter([b"a"]), **arguments)
        case _:
            return unary_unary(channel, stage).future(b"", **arguments)


@pytest.fixture
def stages(serve: Serve) -> tuple[Stages, Any]:
    made: list[Stages] = []

    def using(runtime: Runtime) -> dict[str, Any]:
        made.append(Stages(runtime))
        return made[0].handlers()

    server = serve(using=using)
    return made[0], server


def outcome(stages: Stages) -> tuple[str, object, bool, bool]:
    """Stage, how it ended, whether the context said cancelled then, and in the callback."""
    stage, how, cancelled = stages.ended.get(timeout=PATIENCE)
    return stage, how, cancelled, stages.callbacks.get(timeout=PATIENCE)


def assert_cancelled(stages: Stages, expected: str) -> None:
    stage, how, cancelled, in_callback = outcome(stages)
    assert stage == expected
    assert isinstance(how, BaseException), how
    assert not isinstance(how, Exception), how
    assert cancelled
    assert in_callback


@pytest.mark.parametrize("stage", STAGES)
def test_cancelled_by_the_client(stages: tuple[Stages, Any], stage: str) -> None:
    handlers, server = stages
    channel = server.channel()
    for _ in range(3):
        going = begin(channel, stage)
        assert handlers.reached.get(timeout=PATIENCE) == stage
        going.cancel()
        assert_cancelled(handlers, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_deadline(stages: tuple[Stages, Any], stage: str) -> None:
    handlers, server = stages
    # Kept: a call that nobody holds is cancelled.
    going = begin(server.channel(), stage, timeout=0.2)
    assert handlers.reached.get(timeout=PATIENCE) == stage
    assert_cancelled(handlers, stage)
    assert code_of(going.result if hasattr(going, "result") else lambda: list(going)) == (
        grpc.StatusCode.DEADLINE_EXCEEDED
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_client_vanishes(stages: tuple[Stages, Any], stage: str) -> None:
    handlers, server = stages
    with relay(server.target) as (target, wire):
        channel = server.channels.enter_context(grpc.insecure_channel(target))
        going = begin(channel, stage)
        assert handlers.reached.get(timeout=PATIENCE) == stage
        wire.cut()
        assert_cancelled(handlers, stage)
        assert code_of(going.result if hasattr(going, "result") else lambda: list(going)) == (
            grpc.StatusCode.UNAVAILABLE
        )


def test_half_close_and_cancellation_are_told_apart(stages: tuple[Stages, Any]) -> None:
    """The stream of requests ends alike for both, so this is tried often."""
    handlers, server = stages
    channel = server.channel()
    for _ in range(100):
        going = begin(channel, "read_next")
        handlers.reached.get(timeout=PATIENCE)
        going.cancel()
        assert_cancelled(handlers, "read_next")
        assert stream_unary(channel, "read_next")(iter([b"a"])) == b"EOF"
        handlers.reached.get(timeout=PATIENCE)
        assert outcome(handlers)[1:] == ("returned", False, False)


def test_cancelled_streams_that_both_sides_wrote_to(stages: tuple[Stages, Any]) -> None:
    handlers, server = stages
    channel = server.channel()
    for _ in range(10):
        going = begin(channel, "read_after_write")
        assert next(going) == b"x"
        handlers.reached.get(timeout=PATIENCE)
        going.cancel()
        assert_cancelled(handlers, "read_after_write")


def test_cancelled_before_the_handler_could_wait(serve: Serve) -> None:
    """The cancellation may arrive before, with or after the request."""
    ended = []

    async def quick(request: bytes, context: Any) -> bytes:
        ended.append(request)
        return request

    channel = serve(quick=UNARY_UNARY(quick)).channel()
    for number in range(200):
        unary_unary(channel, "quick").future(b"%d" % number).cancel()
    assert unary_unary(channel, "quick")(b"last") == b"last"
    assert ended[-1] == b"last"


def test_what_was_offloaded_ends_first(serve: Serve) -> None:
    """Where a call is cancelled, its cleaning up never meets its own offloaded work."""
    events: queue.SimpleQueue[str] = queue.SimpleQueue()

    def using(runtime: Runtime) -> dict[str, Any]:
        async def handler(request: bytes, context: Any) -> bytes:
            def work() -> None:
                events.put("begun")
                assert eventually(context.cancelled)
                # Long enough for a handler that did not wait to be quicker.
                time.sleep(0.05)
                events.put("ended")

            try:
                await runtime.offload(work)
            except BaseException as error:
                events.put(type(error).__name__)
                raise
            return b""

        return {"handler": UNARY_UNARY(handler)}

    channel = serve(using=using).channel()
    for _ in range(3):
        going = unary_unary(channel, "handler").future(b"")
        assert events.get(timeout=PATIENCE) == "begun"
        going.cancel()
        assert events.get(timeout=PATIENCE) == "ended"
        assert events.get(timeout=PATIENCE) == "CancelledError"


def test_what_was_not_begun_is_not_done(serve: Serve) -> None:
    done: list[bytes] = []
    release = threading.Event()
    ended: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def using(runtime: Runtime) -> dict[str, Any]:
        async def handler(request: bytes, context: Any) -> bytes:
            def work() -> None:
                done.append(request)
                release.wait(PATIENCE)

            try:
                await runtime.offload(work)
            finally:
                ended.put(request)
            return b""

        return {"handler": UNARY_UNARY(handler)}

    channel = serve(using=using, options={"helper_threads": 1}).channel()
    first = unary_unary(channel, "handler").future(b"first")
    assert eventually(lambda: done)
    second = unary_unary(channel, "handler").future(b"second", timeout=0.3)
    assert code_of(second.result) == grpc.StatusCode.DEADLINE_EXCEEDED
    # While the only helper is still at work.
    assert ended.get(timeout=PATIENCE) == b"second"
    release.set()
    assert first.result(PATIENCE) == b""
    assert done == [b"first"]


def test_cleaning_up_may_wait(serve: Serve) -> None:
    """After the cancellation a handler may still use the runtime, and is left in peace."""
    cleaned: queue.SimpleQueue[object] = queue.SimpleQueue()
    begun: queue.SimpleQueue[None] = queue.SimpleQueue()

    def using(runtime: Runtime) -> dict[str, Any]:
        async def handler(request: object, context: Any) -> bytes:
            try:
                begun.put(None)
                await context.read()
            finally:
                later = Result()
                threading.Timer(0.05, later.bring, ("brought",)).start()
                cleaned.put((await runtime.wait(later), await runtime.offload(abs, -1)))
                try:
                    await context.write(b"")
                except BaseException as error:  # noqa: BLE001 - any would do
                    cleaned.put(isinstance(error, Exception))
            return b""

        return {"handler": STREAM_STREAM(handler)}

    channel = serve(using=using).channel()
    for _ in range(5):
        going = stream_stream(channel, "handler")(Endless())
        begun.get(timeout=PATIENCE)
        going.cancel()
        assert cleaned.get(timeout=PATIENCE) == ("brought", 1)
        assert cleaned.get(timeout=PATIENCE) is False


def test_a_handler_may_swallow_its_cancellation(serve: Serve) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def stubborn(request: object, context: Any) -> bytes:
        begun.set()
        try:
            await context.read()
        except BaseException:  # noqa: BLE001 - what handlers should not do
            ended.set()
        return b"anyway"

    async def fine(request: bytes, context: Any) -> bytes:
        return b"fine"

    channel = serve(stubborn=STREAM_UNARY(stubborn), fine=UNARY_UNARY(fine)).channel()
    going = stream_unary(channel, "stubborn").future(Endless())
    assert begun.wait(PATIENCE)
    going.cancel()
    assert ended.wait(PATIENCE)
    assert unary_unary(channel, "fine")(b"") == b"fine"


def test_generators_are_closed(serve: Serve) -> None:
    closed = threading.Event()

    async def generate(request: bytes, context: Any) -> Any:
        try:
            while True:
                yield CHUNK
        finally:
            closed.set()

    going = unary_stream(serve(generate=UNARY_STREAM(generate)).channel(), "generate")(b"")
    next(going)
    going.cancel()
    assert closed.wait(PATIENCE)


def test_time_remaining(serve: Serve) -> None:
    seen: list[float | None] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.append(context.time_remaining())
        return b""

    channel = serve(look=UNARY_UNARY(look)).channel()
    unary_unary(channel, "look")(b"", timeout=100)
    unary_unary(channel, "look")(b"")
    with_deadline, without = seen
    assert with_deadline is not None
    # On the wire it is rounded up, to no more than a hundredth.
    assert 0 < with_deadline <= 101.5
    assert without is None


def test_done_callbacks(serve: Serve) -> None:
    order: queue.SimpleQueue[object] = queue.SimpleQueue()

    async def handler(request: bytes, context: Any) -> bytes:
        def fail(call: Any) -> None:
            raise ValueError("a callback's own trouble")

        context.add_done_callback(fail)
        context.add_done_callback(lambda call: order.put(call is context))
        context.add_done_callback(lambda call: order.put((call.done(), call.cancelled())))
        order.put((context.done(), context.cancelled()))
        return b""

    channel = serve(handler=UNARY_UNARY(handler)).channel()
    unary_unary(channel, "handler")(b"")
    assert order.get(timeout=PATIENCE) == (False, False)
    assert order.get(timeout=PATIENCE) is True
    assert order.get(timeout=PATIENCE) == (True, False)


def test_nothing_stays_behind(stages: tuple[Stages, Any]) -> None:
    """Results that come after their waiter has gone reach nobody and harm nobody."""
    handlers, server = stages
    channel = server.channel()
    for _ in range(20):
        handlers.result = Result()
        going = begin(channel, "wait")
        handlers.reached.get(timeout=PATIENCE)
        assert handlers.result.waited_for.wait(PATIENCE)
        going.cancel()
        handlers.result.bring("late or in time")
        outcome(handlers)
    assert eventually(lambda: code_of(lambda: channel.unary_unary("/none")(b"")) is not None)
