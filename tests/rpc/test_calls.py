"""Calls as a client sees them: kinds, messages, metadata, statuses."""

from __future__ import annotations

import functools
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2, wrappers_pb2

from cas.rpc.handler import EOF
from tests.rpc.conftest import Serve
from tests.rpc.serving import (
    STREAM_STREAM,
    STREAM_UNARY,
    UNARY_STREAM,
    UNARY_UNARY,
    Endless,
    code_of,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)


async def reverse(request: bytes, context: Any) -> bytes:
    return request[::-1]


async def letters(request: bytes, context: Any) -> None:
    for index in range(len(request)):
        await context.write(request[index : index + 1])


async def letters_generated(request: bytes, context: Any) -> Any:
    for index in range(len(request)):
        yield request[index : index + 1]


async def join(request: object, context: Any) -> bytes:
    messages = []
    while (message := await context.read()) is not EOF:
        messages.append(message)
    return b",".join(messages)


async def join_iterated(request: Any, context: Any) -> bytes:
    return b",".join([message async for message in request])


async def echo(request: object, context: Any) -> None:
    while (message := await context.read()) is not EOF:
        await context.write(message)


async def echo_generated(request: Any, context: Any) -> Any:
    async for message in request:
        yield message


async def nothing_written(request: bytes, context: Any) -> None:
    return


def test_unary_unary(serve: Serve) -> None:
    channel = serve(reverse=UNARY_UNARY(reverse)).channel()
    assert unary_unary(channel, "reverse")(b"abc") == b"cba"
    assert unary_unary(channel, "reverse")(b"") == b""


@pytest.mark.parametrize("handler", [letters, letters_generated])
@pytest.mark.parametrize("request_", [b"", b"a", b"ab", b"abc" * 100])
def test_unary_stream(serve: Serve, handler: Any, request_: bytes) -> None:
    channel = serve(letters=UNARY_STREAM(handler)).channel()
    expected = [bytes([letter]) for letter in request_]
    assert list(unary_stream(channel, "letters")(request_)) == expected


@pytest.mark.parametrize("handler", [join, join_iterated])
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_stream_unary(serve: Serve, handler: Any, count: int) -> None:
    channel = serve(join=STREAM_UNARY(handler)).channel()
    messages = [b"%d" % number for number in range(count)]
    assert stream_unary(channel, "join")(iter(messages)) == b",".join(messages)


@pytest.mark.parametrize("handler", [echo, echo_generated])
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_stream_stream(serve: Serve, handler: Any, count: int) -> None:
    channel = serve(echo=STREAM_STREAM(handler)).channel()
    messages = [b"%d" % number for number in range(count)]
    assert list(stream_stream(channel, "echo")(iter(messages))) == messages


@pytest.mark.parametrize("handler", [echo, echo_generated])
def test_both_streams_at_once(serve: Serve, handler: Any) -> None:
    """Each answer comes before the next question is asked."""
    requests = Endless()
    answers = stream_stream(serve(echo=STREAM_STREAM(handler)).channel(), "echo")(requests)
    for number in range(20):
        requests.send(b"%d" % number)
        assert next(answers) == b"%d" % number
    requests.half_close()
    assert list(answers) == []


@pytest.mark.parametrize("size", [0, 1, 32 * 1024, 32 * 1024 + 1, 1 << 20])
def test_first_messages_of_any_size(serve: Serve, size: int) -> None:
    async def write(request: bytes, context: Any) -> None:
        for length in (size, 3, size):
            await context.write(bytes(length))

    channel = serve(write=UNARY_STREAM(write)).channel()
    answers = unary_stream(channel, "write")(b"")
    assert [len(answer) for answer in answers] == [size, 3, size]


def test_a_stream_may_hold_nothing(serve: Serve) -> None:
    channel = serve(none=UNARY_STREAM(nothing_written)).channel()
    assert list(unary_stream(channel, "none")(b"")) == []


def test_messages_pass_through_their_serializers(serve: Serve) -> None:
    async def length(request: wrappers_pb2.StringValue, context: Any) -> wrappers_pb2.UInt32Value:
        return wrappers_pb2.UInt32Value(value=len(request.value))

    async def lengths(request: Any, context: Any) -> Any:
        async for message in request:
            yield await length(message, context)

    codec = (
        wrappers_pb2.StringValue.FromString,
        wrappers_pb2.UInt32Value.SerializeToString,
    )
    channel = serve(
        length=UNARY_UNARY(length, *codec), lengths=STREAM_STREAM(lengths, *codec)
    ).channel()
    client = {
        "request_serializer": wrappers_pb2.StringValue.SerializeToString,
        "response_deserializer": wrappers_pb2.UInt32Value.FromString,
    }
    words = [wrappers_pb2.StringValue(value=word) for word in ("a", "bcd")]
    assert unary_unary(channel, "length", **client)(words[1]).value == 3
    answers = stream_stream(channel, "lengths", **client)(iter(words))
    assert [answer.value for answer in answers] == [1, 3]


@pytest.mark.parametrize("kind", [UNARY_UNARY, STREAM_UNARY])
def test_unreadable_request(serve: Serve, kind: Any) -> None:
    async def read(request: Any, context: Any) -> empty_pb2.Empty:
        if kind is STREAM_UNARY:
            await context.read()
        return empty_pb2.Empty()

    handler = kind(read, empty_pb2.Empty.FromString, empty_pb2.Empty.SerializeToString)
    channel = serve(read=handler).channel()
    with pytest.raises(grpc.RpcError) as raised:
        stream_unary(channel, "read")(iter([b"\xff"]))
    assert status(raised) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the request message cannot be parsed",
    )


@pytest.mark.parametrize("kind", [UNARY_UNARY, UNARY_STREAM])
def test_unwritable_response(serve: Serve, kind: Any) -> None:
    async def write(request: bytes, context: Any) -> Any:
        if kind is UNARY_UNARY:
            return "no bytes"
        return await context.write("no bytes")

    channel = serve(write=kind(write)).channel()
    with pytest.raises(grpc.RpcError) as raised:
        list(unary_stream(channel, "write")(b""))
    expected = (grpc.StatusCode.INTERNAL, "the response message cannot be serialized")
    assert status(raised) == expected


def test_unknown_methods(serve: Serve) -> None:
    channel = serve(reverse=UNARY_UNARY(reverse)).channel()
    for name in ("/test.Service/other", "/other.Service/reverse", "/reverse"):
        method: Any = channel.unary_unary(name)
        assert code_of(functools.partial(method, b"")) == grpc.StatusCode.UNIMPLEMENTED
    assert code_of(lambda: stream_unary(channel, "other")(iter([b"x"] * 100))) == (
        grpc.StatusCode.UNIMPLEMENTED
    )
    assert unary_unary(channel, "reverse")(b"ab") == b"ba"


def test_a_synchronous_handler_is_refused(serve: Serve, caplog: Any) -> None:
    channel = serve(sync=UNARY_UNARY(lambda request, context: request)).channel()
    with pytest.raises(grpc.RpcError) as raised:
        unary_unary(channel, "sync")(b"")
    assert status(raised)[0] == grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("kind", [UNARY_UNARY, UNARY_STREAM])
def test_too_few_and_too_many_requests(serve: Serve, kind: Any) -> None:
    """A stream where one message is expected: the client library cannot send that by the
    method's own kind, but another client's may."""
    channel = serve(reverse=kind(reverse if kind is UNARY_UNARY else letters)).channel()
    assert code_of(lambda: list(stream_stream(channel, "reverse")(iter([])))) != (
        grpc.StatusCode.OK
    )
    answers = stream_stream(channel, "reverse")(iter([b"a", b"b"]))
    assert next(answers) == b"a"


def test_metadata_both_ways(serve: Serve) -> None:
    async def mirror(request: bytes, context: Any) -> bytes:
        sent = [pair for pair in context.invocation_metadata() if pair[0].startswith("x-")]
        context.set_trailing_metadata([(f"back-{key}", value) for key, value in sent])
        return b""

    channel = serve(mirror=UNARY_UNARY(mirror)).channel()
    metadata = (
        ("x-text", "a value, 100%"),
        ("x-text", "again"),
        ("x-data-bin", bytes(range(256))),
        ("x-empty-bin", b""),
    )
    _, call = unary_unary(channel, "mirror").with_call(b"", metadata=metadata)
    got = sorted((key, value) for key, value in call.trailing_metadata())
    assert got == sorted((f"back-{key}", value) for key, value in metadata)


def test_metadata_that_cannot_be_sent_is_refused(serve: Serve) -> None:
    refused = []

    async def handler(request: bytes, context: Any) -> bytes:
        for pair in [("Upper", "x"), ("x-bin", "text"), ("x", "\n"), ("grpc-x", "x"), ("x", b"")]:
            try:
                context.set_trailing_metadata([pair])
            except ValueError as error:
                refused.append(str(error))
        return b"ok"

    channel = serve(handler=UNARY_UNARY(handler)).channel()
    assert unary_unary(channel, "handler")(b"") == b"ok"
    assert len(refused) == 5
    assert "'Upper'" in refused[0]


def test_peer(serve: Serve) -> None:
    async def peer(request: bytes, context: Any) -> bytes:
        return str(context.peer()).encode()

    server = serve(peer=UNARY_UNARY(peer))
    host, _, port = unary_unary(server.channel(), "peer")(b"").rpartition(b":")
    assert host == b"ipv4:127.0.0.1"
    assert port.isdigit()


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
@pytest.mark.parametrize("kind", [UNARY_UNARY, STREAM_STREAM])
def test_abort(serve: Serve, code: grpc.StatusCode, kind: Any) -> None:
    after = []

    async def abort(request: Any, context: Any) -> Any:
        if kind is STREAM_STREAM:
            await context.write(b"before")
        try:
            await context.abort(code, "größe: 100% \n off", (("x-why", "so"), ("x-bin", b"\0")))
        finally:
            after.append(context.done())

    server = serve(abort=kind(abort))
    channel = server.channel()
    if kind is UNARY_UNARY:
        with pytest.raises(grpc.RpcError) as raised:
            unary_unary(channel, "abort")(b"")
    else:
        answers = stream_stream(channel, "abort")(Endless())
        assert next(answers) == b"before"
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
    assert status(raised) == (code, "größe: 100% \n off")
    assert trailing(raised) == [("x-why", "so"), ("x-bin", b"\0")]
    assert after == [True]


def test_abort_keeps_the_trailing_metadata_set_before(serve: Serve) -> None:
    async def abort(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-set", "before"),))
        return bytes(await context.abort(grpc.StatusCode.ABORTED, "gone"))

    channel = serve(abort=UNARY_UNARY(abort)).channel()
    with pytest.raises(grpc.RpcError) as raised:
        unary_unary(channel, "abort")(b"")
    assert trailing(raised) == [("x-set", "before")]


def test_an_abort_stands_whatever_the_handler_does_after(serve: Serve) -> None:
    async def swallow(request: bytes, context: Any) -> bytes:
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no blob")
        except Exception:  # noqa: BLE001 - what handlers should not do
            return b"fine"
        return b""

    async def replace(request: bytes, context: Any) -> bytes:
        try:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no blob")
        finally:
            raise KeyError("other")

    channel = serve(swallow=UNARY_UNARY(swallow), replace=UNARY_UNARY(replace)).channel()
    for method in ("swallow", "replace"):
        with pytest.raises(grpc.RpcError) as raised:
            unary_unary(channel, method)(b"")
        assert status(raised) == (grpc.StatusCode.NOT_FOUND, "no blob")


def test_abort_with_ok_is_a_bug(serve: Serve) -> None:
    async def abort(request: bytes, context: Any) -> bytes:
        return bytes(await context.abort(grpc.StatusCode.OK, "fine"))

    channel = serve(abort=UNARY_UNARY(abort)).channel()
    assert code_of(lambda: unary_unary(channel, "abort")(b"")) == grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("kind", [UNARY_UNARY, UNARY_STREAM, STREAM_UNARY, STREAM_STREAM])
def test_exceptions_are_not_shown(serve: Serve, kind: Any, caplog: Any) -> None:
    async def fail(request: Any, context: Any) -> Any:
        raise ValueError("a secret")

    channel = serve(fail=kind(fail)).channel()
    with pytest.raises(grpc.RpcError) as raised:
        list(stream_stream(channel, "fail")(iter([b"x"])))
    code, details = status(raised)
    assert code == grpc.StatusCode.UNKNOWN
    assert "secret" not in details
    assert "ValueError" not in details
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info] == [
        ("a secret",)
    ]


def test_messages_written_before_an_exception_arrive(serve: Serve) -> None:
    async def fail(request: Any, context: Any) -> Any:
        await context.write(b"first")
        raise ValueError("a secret")

    answers = unary_stream(serve(fail=UNARY_STREAM(fail)).channel(), "fail")(b"")
    assert next(answers) == b"first"
    with pytest.raises(grpc.RpcError):
        next(answers)


def test_early_return_while_the_client_sends(serve: Serve) -> None:
    """As a write of a blob that exists already: the answer comes before the data ends."""

    async def first(request: object, context: Any) -> bytes:
        return bytes(await context.read())

    channel = serve(first=STREAM_UNARY(first), reverse=UNARY_UNARY(reverse)).channel()
    for _ in range(20):
        endless = (bytes([number % 256]) * 65536 for number in range(1 << 30))
        assert stream_unary(channel, "first")(endless) == bytes(65536)
    assert unary_unary(channel, "reverse")(b"ab") == b"ba"


def status(raised: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str]:
    error: Any = raised.value
    return error.code(), error.details()


def trailing(raised: pytest.ExceptionInfo[grpc.RpcError]) -> list[tuple[str, str | bytes]]:
    error: Any = raised.value
    return [(key, value) for key, value in error.trailing_metadata()]
