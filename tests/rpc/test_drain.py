"""Start, drain, end; and whether the engine says that it lives."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from cas.rpc.handler import Runtime
from tests.rpc.conftest import Serve
from tests.rpc.serving import (
    PATIENCE,
    REFUSED,
    STREAM_UNARY,
    UNARY_UNARY,
    Endless,
    Result,
    code_of,
    eventually,
    make_engine,
    service,
    stream_unary,
    unary_unary,
)


class Held:
    """A handler that is held until `result` is brought, and how it ended."""

    def __init__(self, serve: Serve) -> None:
        self.result = Result()
        self.ended: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.server = serve(using=self._handlers)
        self.engine = self.server.engine
        self.channel = self.server.channel()

    def _handlers(self, runtime: Runtime) -> dict[str, Any]:
        async def hold(request: object, context: Any) -> bytes:
            try:
                value = await runtime.wait(self.result)
            except BaseException as error:
                self.ended.put(error)
                raise
            self.ended.put("returned")
            return bytes(value)

        return {"hold": UNARY_UNARY(hold)}

    def begin(self) -> Any:
        call = unary_unary(self.channel, "hold").future(b"")
        assert self.result.waited_for.wait(PATIENCE)
        return call


def test_running_calls_finish_and_new_ones_are_refused(serve: Serve) -> None:
    held = Held(serve)
    call = held.begin()
    held.engine.stop(PATIENCE)
    assert not held.engine.wait_for_termination(0.05)
    assert code_of(lambda: unary_unary(held.server.channel(), "hold")(b"")) in REFUSED
    assert eventually(lambda: code_of(lambda: unary_unary(held.channel, "hold")(b"")) in REFUSED)
    held.result.bring(b"finished")
    assert call.result(PATIENCE) == b"finished"
    assert held.engine.wait_for_termination(PATIENCE)
    assert held.ended.get_nowait() == "returned"


@pytest.mark.parametrize("grace", [None, 0.0, 0.2])
def test_what_is_left_is_cancelled(serve: Serve, grace: float | None) -> None:
    held = Held(serve)
    call = held.begin()
    held.engine.stop(grace)
    assert held.engine.wait_for_termination(PATIENCE)
    # The handler has ended, and cleaned up, before the engine.
    error = held.ended.get_nowait()
    assert isinstance(error, BaseException)
    assert not isinstance(error, Exception)
    assert code_of(call.result) in REFUSED
    held.result.bring(b"too late")


def test_a_second_stop_may_shorten_the_first(serve: Serve) -> None:
    held = Held(serve)
    call = held.begin()
    held.engine.stop(1000)
    assert not held.engine.wait_for_termination(0.05)
    held.engine.stop(1000)
    held.engine.stop(None)
    assert held.engine.wait_for_termination(PATIENCE)
    assert code_of(call.result) in REFUSED
    held.engine.stop(None)
    held.engine.stop(1)
    assert held.engine.wait_for_termination(0)


def test_stop_comes_from_many_threads(serve: Serve) -> None:
    held = Held(serve)
    call = held.begin()
    threads = [
        threading.Thread(target=held.engine.stop, args=(grace,)) for grace in (1000, 5, None, 0.1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held.engine.wait_for_termination(PATIENCE)
    assert code_of(call.result) in REFUSED


def test_a_drain_waits_for_what_cleans_up(serve: Serve) -> None:
    order: queue.SimpleQueue[str] = queue.SimpleQueue()
    begun = threading.Event()
    result = Result()

    def using(runtime: Runtime) -> dict[str, Any]:
        async def slow_to_end(request: object, context: Any) -> bytes:
            try:
                begun.set()
                await context.read()
            finally:
                await runtime.wait(result)
                order.put("handler")
            return b""

        return {"slow": STREAM_UNARY(slow_to_end)}

    server = serve(using=using)
    call = stream_unary(server.channel(), "slow").future(Endless())
    assert begun.wait(PATIENCE)
    server.engine.stop(None)
    assert result.waited_for.wait(PATIENCE)
    assert not server.engine.wait_for_termination(0.05)
    result.bring()
    assert server.engine.wait_for_termination(PATIENCE)
    assert order.get_nowait() == "handler"
    assert code_of(call.result) in REFUSED


def test_an_idle_server_ends_at_once(serve: Serve) -> None:
    server = serve()
    channel = server.channel()
    assert code_of(lambda: unary_unary(channel, "none")(b"")) == grpc.StatusCode.UNIMPLEMENTED
    server.engine.stop(1000)
    assert server.engine.wait_for_termination(PATIENCE)
    assert code_of(lambda: unary_unary(channel, "none")(b"")) == grpc.StatusCode.UNAVAILABLE


def test_an_engine_that_never_started(engine_name: str) -> None:
    engine = make_engine(engine_name)
    engine.add_generic_rpc_handlers([service()])
    engine.add_insecure_port("127.0.0.1:0")
    engine.stop(None)
    assert engine.wait_for_termination(PATIENCE)
    assert not engine.alive(0.01)


def test_alive(serve: Serve) -> None:
    begun, release = threading.Event(), threading.Event()

    async def block(request: bytes, context: Any) -> bytes:
        begun.set()
        release.wait(PATIENCE)
        return b""

    server = serve(block=UNARY_UNARY(block))
    assert server.engine.alive(PATIENCE)
    call = unary_unary(server.channel(), "block").future(b"")
    assert begun.wait(PATIENCE)
    # What blocks the loop is what liveness is about.
    assert not server.engine.alive(0.3)
    release.set()
    assert call.result(PATIENCE) == b""
    assert server.engine.alive(PATIENCE)
    server.engine.stop(None)
    assert server.engine.wait_for_termination(PATIENCE)
    assert not server.engine.alive(0.01)


def test_names(serve: Serve, engine_name: str) -> None:
    assert serve().engine.name == engine_name


SERVE = """
import signal, sys
from tests.rpc.serving import make_engine, service

engine = make_engine(sys.argv[1])
engine.add_insecure_port("127.0.0.1:0")
engine.start()
signal.signal(signal.SIGTERM, lambda *_: engine.stop(None))
print("ready", flush=True)
engine.wait_for_termination()
print("ended", flush=True)
"""


def test_signal_handlers_run_while_it_serves(engine_name: str) -> None:
    """The main thread waits for the engine, and Python runs signal handlers there only."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, engine_name],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGTERM)
        try:
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert out == "ended\n"
    assert process.returncode == 0
