"""What is made of handlers and metadata before an engine sees them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from cas.metrics.instruments import Metrics
from cas.rpc.method import Methods, checked_metadata
from tests.rpc.serving import STREAM_STREAM, UNARY_UNARY, service


async def unary(request: bytes, context: Any) -> bytes:
    return request


async def generate(request: Any, context: Any) -> Any:
    yield b""


def test_the_first_handler_that_knows_the_name_is_taken() -> None:
    async def other(request: bytes, context: Any) -> bytes:
        return request

    methods = Methods(Metrics())
    methods.add([service(a=UNARY_UNARY(unary))])
    methods.add([service(a=UNARY_UNARY(other), b=UNARY_UNARY(other))])
    found = [methods.find(f"/test.Service/{name}", ()) for name in "ab"]
    assert [method and method.run for method in found] == [unary, other]
    assert methods.find("/test.Service/c", ()) is None


def test_a_handler_is_asked_once_per_name() -> None:
    asked = []

    class Router(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            asked.append((details.method, details.invocation_metadata))
            return UNARY_UNARY(unary) if details.method == "/known" else None

    methods = Methods(Metrics())
    methods.add([Router()])
    for _ in range(2):
        methods.find("/known", (("a", "b"),))
        methods.find("/unknown", ())
    assert asked == [("/known", (("a", "b"),)), ("/unknown", ()), ("/unknown", ())]


def test_handlers_of_the_wrong_kind() -> None:
    def sync(request: bytes, context: Any) -> bytes:
        return request

    methods = Methods(Metrics())
    methods.add([service(sync=UNARY_UNARY(sync), generate=UNARY_UNARY(generate))])
    for name in ("sync", "generate"):
        with pytest.raises(TypeError, match=f"/test.Service/{name}"):
            methods.find(f"/test.Service/{name}", ())
    methods.add([service(stream=STREAM_STREAM(generate))])
    assert methods.find("/test.Service/stream", ()) is not None


@pytest.mark.parametrize(
    "pair",
    [
        ("", "x"),
        ("A", "x"),
        ("a b", "x"),
        ("ä", "x"),
        ("grpc-status", "0"),
        ("a", b"x"),
        ("a", "ä"),
        ("a", "\n"),
        ("a-bin", "x"),
        ("a", None),
    ],
)
def test_metadata_that_grpc_cannot_send(pair: Any) -> None:
    with pytest.raises(ValueError, match="metadata") as raised:
        checked_metadata([("fine", "x"), pair])
    assert repr(pair[0]) in str(raised.value)


def test_metadata_that_grpc_can_send() -> None:
    metadata: Any = [("a-b_c.0", " ~"), ("a", ""), ("a-bin", b"\0\xff"), ("-bin", b"")]
    assert checked_metadata(metadata) == tuple(metadata)
