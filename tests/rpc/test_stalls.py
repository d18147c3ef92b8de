"""Clients that stall: their calls end, and nothing of them stays."""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc
import pytest

from cas.rpc.handler import EOF, Runtime
from cas.rpc.method import STALLED
from tests.rpc.conftest import Serve
from tests.rpc.serving import (
    PATIENCE,
    STREAM_UNARY,
    UNARY_STREAM,
    UNARY_UNARY,
    Endless,
    Result,
    stream_unary,
    unary_stream,
    unary_unary,
)

SOON = {"stall_timeout": 1.0}


def test_a_client_that_stops_sending(serve: Serve) -> None:
    let_go = threading.Event()

    async def count(request: object, context: Any) -> bytes:
        messages = 0
        try:
            while await context.read() is not EOF:
                messages += 1
        finally:
            let_go.set()
        return b"%d" % messages

    channel = serve(options=SOON, count=STREAM_UNARY(count)).channel()
    requests = Endless(b"1", b"2")
    with pytest.raises(grpc.RpcError) as raised:
        stream_unary(channel, "count")(requests, timeout=PATIENCE)
    requests.half_close()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert raised.value.details() == STALLED
    assert let_go.wait(PATIENCE)


def test_a_client_that_never_reads(serve: Serve) -> None:
    let_go = threading.Event()

    async def endless(request: bytes, context: Any) -> None:
        try:
            while True:
                await context.write(bytes(1 << 20))
        finally:
            let_go.set()

    channel = serve(options=SOON, endless=UNARY_STREAM(endless)).channel()
    call = unary_stream(channel, "endless")(b"")
    assert let_go.wait(PATIENCE)
    call.cancel()


def test_whoever_waits_for_the_server_does_not_stall(serve: Serve) -> None:
    begun = threading.Event()
    result = Result()

    def using(runtime: Runtime) -> dict[str, Any]:
        async def wait(request: bytes, context: Any) -> bytes:
            begun.set()
            return bytes(await runtime.wait(result))

        return {"wait": UNARY_UNARY(wait)}

    channel = serve(options=SOON, using=using).channel()
    call = unary_unary(channel, "wait").future(b"", timeout=PATIENCE)
    assert begun.wait(PATIENCE)
    time.sleep(4)
    assert not call.done()
    result.bring(b"done")
    assert call.result() == b"done"


def test_a_call_without_its_request(serve: Serve) -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        return request

    channel = serve(options=SOON, echo=UNARY_UNARY(echo)).channel()
    requests = Endless()
    with pytest.raises(grpc.RpcError) as raised:
        stream_unary(channel, "echo")(requests, timeout=PATIENCE)
    requests.half_close()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert raised.value.details() == STALLED
