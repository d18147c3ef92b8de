"""`Context.read_end`: whether a client's stream is over, on every engine."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

import grpc
import pytest

from tests.rpc.conftest import Serve
from tests.rpc.serving import PATIENCE, STREAM_UNARY, stream_unary


async def ended(_: object, context: Any) -> bytes:
    await context.read()
    return b"over" if await context.read_end() else b"more"


@pytest.mark.parametrize(
    ("messages", "answer"), [([], b"over"), ([b"a"], b"over"), ([b"a", b"b"], b"more")]
)
def test_half_close_is_an_end(serve: Serve, messages: list[bytes], answer: bytes) -> None:
    channel = serve(ended=STREAM_UNARY(ended)).channel()
    assert stream_unary(channel, "ended")(iter(messages), timeout=PATIENCE) == answer


def test_a_cancellation_does_not_leave_the_handler_waiting(serve: Serve) -> None:
    reached: queue.Queue[str] = queue.Queue()
    seen: queue.Queue[object] = queue.Queue()
    messages: queue.Queue[bytes] = queue.Queue()
    messages.put(b"a")

    async def wait(_: object, context: Any) -> bytes:
        await context.read()
        reached.put("end")
        try:
            seen.put(await context.read_end())
        except asyncio.CancelledError:
            seen.put("cancelled")
            raise
        return b""

    channel = serve(wait=STREAM_UNARY(wait)).channel()
    call = stream_unary(channel, "wait").future(iter(lambda: messages.get(timeout=PATIENCE), None))
    assert reached.get(timeout=PATIENCE) == "end"
    call.cancel()
    assert seen.get(timeout=PATIENCE) in (True, "cancelled")
    messages.put(b"b")
    assert call.code() is grpc.StatusCode.CANCELLED
