"""What an engine takes on at most: calls, message sizes, messages in flight; and compression."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cas.rpc.handler import EOF, Runtime
from tests.rpc.conftest import Serve
from tests.rpc.serving import (
    PATIENCE,
    STREAM_UNARY,
    UNARY_STREAM,
    UNARY_UNARY,
    Result,
    code_of,
    eventually,
    relay,
    stream_unary,
    unary_stream,
    unary_unary,
)

MIB = 1 << 20


async def length(request: bytes, context: Any) -> bytes:
    return b"%d" % len(request)


async def lengths(request: object, context: Any) -> bytes:
    total = 0
    while (message := await context.read()) is not EOF:
        total += len(message)
    return b"%d" % total


async def zeros(request: bytes, context: Any) -> bytes:
    return bytes(int(request))


def test_concurrent_calls(serve: Serve) -> None:
    begun: queue.SimpleQueue[Result] = queue.SimpleQueue()

    def using(runtime: Runtime) -> dict[str, Any]:
        async def wait(request: bytes, context: Any) -> bytes:
            result = Result()
            begun.put(result)
            return bytes(await runtime.wait(result))

        return {"wait": UNARY_UNARY(wait), "length": UNARY_UNARY(length)}

    channel = serve(options={"max_concurrent_calls": 4}, using=using).channel()
    for _ in range(3):
        going = [unary_unary(channel, "wait").future(b"") for _ in range(4)]
        results = [begun.get(timeout=PATIENCE) for _ in going]
        for method in ("wait", "length"):
            with pytest.raises(grpc.RpcError) as raised:
                unary_unary(channel, method)(b"")
            assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        results.pop().bring(b"done")
        assert eventually(
            lambda: code_of(lambda: unary_unary(channel, "length")(b"")) is grpc.StatusCode.OK
        )
        for result in results:
            result.bring(b"done")
        assert [call.result(PATIENCE) for call in going] == [b"done"] * 4


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_request_size(serve: Serve, compression: Any) -> None:
    """The limit is of the message itself, however it was compressed."""
    server = serve(
        options={"max_message_bytes": 1000},
        length=UNARY_UNARY(length),
        lengths=STREAM_UNARY(lengths),
        zeros=UNARY_UNARY(zeros),
    )
    channel = server.channel(compression=compression)
    assert unary_unary(channel, "length")(bytes(1000)) == b"1000"
    assert code_of(lambda: unary_unary(channel, "length")(bytes(1001))) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    assert stream_unary(channel, "lengths")(iter([bytes(1000)] * 3)) == b"3000"
    for sizes in ([1001, 10, 10], [10, 1001, 10], [10, 10, 1001]):
        call = functools.partial(stream_unary(channel, "lengths"), iter(map(bytes, sizes)))
        assert code_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(unary_unary(channel, "zeros")(b"100000")) == 100_000


@pytest.mark.parametrize("stream", [False, True])
def test_an_oversize_request_leaves_nothing_running(serve: Serve, stream: bool) -> None:
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()

    async def handler(request: object, context: Any) -> bytes:
        try:
            while await context.read() is not EOF:
                pass
        except BaseException as error:
            ended.put(isinstance(error, Exception))
            raise
        ended.put("half-closed")
        return b""

    options = {"max_message_bytes": 1000, "max_concurrent_calls": 1}
    server = serve(options=options, one=UNARY_UNARY(length), many=STREAM_UNARY(handler))
    channel = server.channel()
    for _ in range(5):
        if stream:
            code_of(lambda: stream_unary(channel, "many")(iter([b"1", bytes(1001)])))
            assert ended.get(timeout=PATIENCE) is False
        else:
            code_of(lambda: unary_unary(channel, "one")(bytes(1001)))
        assert eventually(
            lambda: code_of(lambda: unary_unary(channel, "one")(b"")) is grpc.StatusCode.OK
        )


def test_a_slow_reader_bounds_what_is_written(serve: Serve) -> None:
    written = Counter()
    total, size = 512, MIB // 2

    async def write(request: bytes, context: Any) -> None:
        for _ in range(total):
            await context.write(bytes(size))
            written.add()

    answers = unary_stream(serve(write=UNARY_STREAM(write)).channel(), "write")(b"")
    next(answers)
    assert written.when_still() * size < 64 * MIB
    assert sum(1 for _ in answers) == total - 1
    assert written.value == total


def test_a_slow_handler_bounds_what_is_sent(serve: Serve) -> None:
    sent = Counter()
    total, size = 512, MIB // 2
    result = Result()

    def using(runtime: Runtime) -> dict[str, Any]:
        async def slow(request: object, context: Any) -> bytes:
            await context.read()
            await runtime.wait(result)
            return await lengths(request, context)

        return {"slow": STREAM_UNARY(slow)}

    def messages() -> Iterator[bytes]:
        for _ in range(total):
            yield bytes(size)
            sent.add()

    call = stream_unary(serve(using=using).channel(), "slow").future(messages())
    assert result.waited_for.wait(PATIENCE)
    assert sent.when_still() * size < 64 * MIB
    result.bring()
    assert call.result(PATIENCE) == b"%d" % ((total - 1) * size)


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests(serve: Serve, compression: Any) -> None:
    server = serve(length=UNARY_UNARY(length), lengths=STREAM_UNARY(lengths))
    channel = server.channel(compression=compression)
    assert unary_unary(channel, "length")(bytes(MIB)) == b"%d" % MIB
    assert stream_unary(channel, "lengths")(iter([bytes(MIB)] * 3)) == b"%d" % (3 * MIB)


def test_compressed_responses(serve: Serve) -> None:
    async def stream(request: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(bytes(MIB))

    gzip = ("grpc.default_compression_algorithm", grpc.Compression.Gzip.value)
    server = serve(
        options={"channel_arguments": [gzip]},
        zeros=UNARY_UNARY(zeros),
        stream=UNARY_STREAM(stream),
    )
    with relay(server.target) as (target, wire), grpc.insecure_channel(target) as channel:
        assert len(unary_unary(channel, "zeros")(b"%d" % MIB)) == MIB
        assert [len(answer) for answer in unary_stream(channel, "stream")(b"")] == [MIB] * 3
        assert 1000 < wire.sent < MIB // 10


class Counter:
    """Counts on one thread, for another to look at."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.value += 1

    def when_still(self) -> int:
        """The count when it has stopped for half a second."""
        before = -1
        while before != self.value:
            before = self.value
            time.sleep(0.5)
        return before
