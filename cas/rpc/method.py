"""What both engines make of a registered method, and of what its handler hands back.

Rule: pure; neither engine's machinery, nothing that waits.  Here every handler becomes one
shape, ``async def (request, context)``, and every message raw bytes, so that the engines
differ in how they move bytes and in nothing that a servicer or a client can see.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import grpc

from cas.metrics.instruments import Metrics, Requests
from cas.metrics.tools import Tools
from cas.rpc.handler import Handlers, Metadata

Behaviour = Callable[[Any, Any], Coroutine[Any, Any, Any]]

NO_REQUEST = "expected one request message, got none"
TOO_MANY = "too many concurrent calls"
STALLED = "the client has sent or taken nothing for too long"
UNREADABLE = "the request message cannot be parsed"
UNWRITABLE = "the response message cannot be serialized"
FAILED = "the server failed to answer; its log says why"
"""What a client hears of an exception that a handler let out: nothing of the exception."""

_PROTOCOL = "grpc"
"""What the metrics call it."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC method, ready to run."""

    name: str
    """As on the wire: ``/package.Service/Method``."""
    request_streaming: bool
    response_streaming: bool
    run: Behaviour
    """Takes the request (of a stream: an asynchronous iterator) and the context; returns
    the response, or None where responses are streamed."""
    parse: Callable[[bytes], Any] | None
    serialize: Callable[[Any], bytes] | None
    requests: Requests
    """Counts its calls."""
    tools: Tools
    """Counts who makes them."""


@dataclass(slots=True)
class CallDetails:
    """What a `grpc.GenericRpcHandler` is asked with."""

    method: str
    invocation_metadata: Any


class Methods:
    """Finds methods by name.

    A name is looked up in the handlers once and then remembered, so handlers must choose by
    name alone.  Unknown names are not remembered: clients make them up.
    """

    def __init__(self, metrics: Metrics, tools: Tools | None = None) -> None:
        self._metrics = metrics
        self._tools = tools or Tools()
        self._unknown = metrics.requests(_PROTOCOL, "unknown")
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._known: dict[str, Method] = {}

    def add(self, handlers: Handlers) -> None:
        self._handlers.extend(handlers)

    def find(self, name: str, metadata: Metadata | None) -> Method | None:
        """Raises TypeError for a handler that is not asynchronous."""
        method = self._known.get(name)
        if method is None:
            details = CallDetails(name, metadata)
            for handler in self._handlers:
                found = handler.service(details)
                if found is not None:
                    requests = self._metrics.requests(_PROTOCOL, _short(name))
                    method = self._known[name] = _method(name, found, requests, self._tools)
                    break
            else:
                self._unknown.ended(grpc.StatusCode.UNIMPLEMENTED, "", 0.0, 0, 0)
        return method


def _short(name: str) -> str:
    """``ByteStream/Read`` of ``/google.bytestream.ByteStream/Read``."""
    return name.lstrip("/").rpartition(".")[2]


def _method(
    name: str, handler: grpc.RpcMethodHandler[Any, Any], requests: Requests, tools: Tools
) -> Method:
    behaviour: Any = (
        (handler.stream_stream if handler.response_streaming else handler.stream_unary)
        if handler.request_streaming
        else (handler.unary_stream if handler.response_streaming else handler.unary_unary)
    )
    if handler.response_streaming and inspect.isasyncgenfunction(behaviour):
        run = _written(behaviour)
    elif inspect.iscoroutinefunction(behaviour):
        run = behaviour
    else:
        raise TypeError(f"the handler of {name} is no coroutine function: {behaviour!r}")
    return Method(
        name,
        handler.request_streaming,
        handler.response_streaming,
        run,
        handler.request_deserializer,
        handler.response_serializer,
        requests,
        tools,
    )


def _written(generate: Callable[[Any, Any], Any]) -> Behaviour:
    """An asynchronous generator's handler as one that writes."""

    async def run(request: Any, context: Any) -> None:
        async with contextlib.aclosing(generate(request, context)) as messages:
            async for message in messages:
                await context.write(message)

    return run


_KEY = re.compile(r"[0-9a-z_.-]+")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


def checked_metadata(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """`metadata` as gRPC can send it; raises ValueError naming the entry that it cannot.

    The rules are those of gRPC's wire format ("Custom-Metadata" in PROTOCOL-HTTP2.md).  The C
    core would refuse the whole batch, and the call's status with it.
    """
    for key, value in metadata:
        if not _KEY.fullmatch(key) or key.startswith("grpc-"):
            raise ValueError(
                f"metadata key {key!r}: expected [0-9a-z_.-]+, not beginning with grpc-"
            )
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ValueError(f"metadata {key!r}: expected bytes, got {value!r}")
        elif not isinstance(value, str) or not _PRINTABLE.fullmatch(value):
            raise ValueError(f"metadata {key!r}: expected printable ASCII, got {value!r}")
    return tuple(metadata)
