"""What the metrics say of calls, on either engine."""

from __future__ import annotations

import queue
from typing import Any

import grpc
import pytest

from cas.metrics import families
from cas.metrics.instruments import OTHER, Metrics
from cas.rpc.handler import Runtime
from tests.metrics.reading import numbers, value
from tests.rpc.conftest import Serve
from tests.rpc.serving import (
    PATIENCE,
    STREAM_STREAM,
    STREAM_UNARY,
    UNARY_STREAM,
    UNARY_UNARY,
    Result,
    code_of,
    eventually,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)


def calls(metrics: Metrics, method: str, code: str, instance: str = "") -> float:
    return value(metrics, families.REQUESTS, "grpc", method, code, instance)


def counted(metrics: Metrics, method: str, code: str, count: int, instance: str = "") -> bool:
    """Whether that many calls have been counted: a client may know of an end first."""
    return eventually(lambda: calls(metrics, method, code, instance) == count)


async def double(request: bytes, context: Any) -> bytes:
    context.instance = "main"
    return request * 2


async def refuse(request: bytes, context: Any) -> bytes:
    context.instance = "main"
    await context.abort(grpc.StatusCode.NOT_FOUND, "no")
    return b""


def test_an_answered_call(serve: Serve) -> None:
    metrics = Metrics()
    channel = serve(options={"metrics": metrics}, double=UNARY_UNARY(double)).channel()
    for _ in range(3):
        unary_unary(channel, "double")(b"12345")
    assert counted(metrics, "Service/double", "OK", 3, "main")
    assert value(metrics, families.REQUEST_SECONDS, "grpc", "Service/double") == 3
    assert 0 < numbers(metrics, families.REQUEST_SECONDS, "grpc", "Service/double")[-1] < PATIENCE
    assert value(metrics, families.RECEIVED_BYTES, "grpc", "Service/double") == 15
    assert value(metrics, families.SENT_BYTES, "grpc", "Service/double") == 30


def test_a_refused_call(serve: Serve) -> None:
    metrics = Metrics()
    methods: dict[str, Any] = {"double": UNARY_UNARY(double), "refuse": UNARY_UNARY(refuse)}
    channel = serve(options={"metrics": metrics}, **methods).channel()
    assert code_of(lambda: unary_unary(channel, "refuse")(b"")) is grpc.StatusCode.NOT_FOUND
    assert counted(metrics, "Service/refuse", "NOT_FOUND", 1, OTHER)
    unary_unary(channel, "double")(b"")
    assert counted(metrics, "Service/double", "OK", 1, "main")
    assert code_of(lambda: unary_unary(channel, "refuse")(b"")) is grpc.StatusCode.NOT_FOUND
    assert counted(metrics, "Service/refuse", "NOT_FOUND", 1, "main")


def test_messages_of_streams(serve: Serve) -> None:
    async def receive(request: Any, context: Any) -> bytes:
        return b"%d" % sum([len(message) async for message in request])

    async def send(request: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(bytes(1000))

    async def echo(request: Any, context: Any) -> Any:
        async for message in request:
            yield message

    metrics = Metrics()
    channel = serve(
        options={"metrics": metrics},
        receive=STREAM_UNARY(receive),
        send=UNARY_STREAM(send),
        echo=STREAM_STREAM(echo),
    ).channel()
    assert stream_unary(channel, "receive")(iter([b"abc", b"de"])) == b"5"
    assert len(list(unary_stream(channel, "send")(b"x"))) == 3
    assert list(stream_stream(channel, "echo")(iter([b"1", b"22"]))) == [b"1", b"22"]
    for method, received, sent in (("receive", 5, 1), ("send", 1, 3000), ("echo", 3, 3)):
        name = f"Service/{method}"
        assert counted(metrics, name, "OK", 1)
        assert value(metrics, families.RECEIVED_BYTES, "grpc", name) == received
        assert value(metrics, families.SENT_BYTES, "grpc", name) == sent


def test_a_cancelled_call(serve: Serve) -> None:
    begun: queue.SimpleQueue[Result] = queue.SimpleQueue()

    def using(runtime: Runtime) -> dict[str, Any]:
        async def wait(request: bytes, context: Any) -> bytes:
            result = Result()
            begun.put(result)
            return bytes(await runtime.wait(result))

        return {"wait": UNARY_UNARY(wait)}

    metrics = Metrics()
    channel = serve(options={"metrics": metrics}, using=using).channel()
    call = unary_unary(channel, "wait").future(b"")
    begun.get(timeout=PATIENCE)
    call.cancel()
    assert counted(metrics, "Service/wait", "CANCELLED", 1, "")


def test_a_failed_handler(serve: Serve) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise ValueError("on purpose")

    metrics = Metrics()
    channel = serve(options={"metrics": metrics}, fail=UNARY_UNARY(fail)).channel()
    assert code_of(lambda: unary_unary(channel, "fail")(b"")) is grpc.StatusCode.UNKNOWN
    assert counted(metrics, "Service/fail", "UNKNOWN", 1)


def test_calls_that_no_handler_sees(serve: Serve) -> None:
    metrics = Metrics()
    channel = serve(
        options={"metrics": metrics, "max_concurrent_calls": 0}, double=UNARY_UNARY(double)
    ).channel()
    with pytest.raises(grpc.RpcError):
        unary_unary(channel, "double")(b"")
    for number in range(3):
        with pytest.raises(grpc.RpcError):
            unary_unary(channel, f"unknown{number}")(b"")
    assert counted(metrics, "Service/double", "RESOURCE_EXHAUSTED", 1)
    assert counted(metrics, "unknown", "UNIMPLEMENTED", 3)
