"""What of a call is the same on every engine: how it ends, and what its messages are.

Rule: no engine's machinery and nothing that waits; an engine's own call adds both.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from typing import Any, NoReturn, Self

import grpc
import grpc.aio

from cas.rpc.handler import EOF, Metadata
from cas.rpc.method import (
    FAILED,
    NO_REQUEST,
    UNREADABLE,
    UNWRITABLE,
    Method,
    checked_metadata,
)

logger = logging.getLogger(__name__)


class Call:
    """A part of a `cas.rpc.handler.Context`, and the iterator over its requests."""

    __slots__ = (
        "_began",
        "_received",
        "_sent",
        "caller",
        "instance",
        "method",
        "status",
        "trailing",
    )

    caller: Any

    def __init__(self, method: Method) -> None:
        self.method = method
        self.instance = ""
        self.status: tuple[grpc.StatusCode, str] | None = None
        """What the call ends with, where that is settled before its handler has returned."""
        self.trailing: Metadata | None = None
        self._began = time.monotonic()
        self._received = 0
        self._sent = 0

    def read(self) -> Awaitable[Any]:
        raise NotImplementedError

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        if code is grpc.StatusCode.OK:
            raise ValueError("abort expects a code other than OK")
        if trailing_metadata:
            self.trailing = checked_metadata(trailing_metadata)
        # Lone surrogates, as in the name of a file, cannot be sent.
        self.status = (code, details.encode(errors="replace").decode())
        raise grpc.aio.AbortError(details)

    def set_trailing_metadata(self, trailing_metadata: Metadata, /) -> None:
        self.trailing = checked_metadata(trailing_metadata)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is EOF:
            raise StopAsyncIteration
        return message

    # -- For the engine -------------------------------------------------------------------

    def parsed(self, message: bytes) -> Any:
        """The request message for the handler; aborts where there is none."""
        self._received += len(message)
        parse = self.method.parse
        if parse is None:
            return message
        try:
            return parse(message)
        except Exception as error:
            extra = {"method": self.method.name}
            logger.debug("request not parsed", exc_info=True, extra=extra)
            self.status = (grpc.StatusCode.INVALID_ARGUMENT, UNREADABLE)
            raise grpc.aio.AbortError(UNREADABLE) from error

    def serialized(self, message: Any) -> bytes:
        """The handler's response message for the wire; aborts where there is none."""
        serialize = self.method.serialize
        try:
            if serialize is not None:
                message = serialize(message)
            if type(message) is bytes:
                self._sent += len(message)
                return message
            raise TypeError(f"expected bytes to send, got {type(message).__name__}")
        except Exception as error:
            logger.exception("response not serialized", extra={"method": self.method.name})
            self.status = (grpc.StatusCode.INTERNAL, UNWRITABLE)
            raise grpc.aio.AbortError(UNWRITABLE) from error

    def ended(self, *, cancelled: bool) -> None:
        """Counts the call; once, when there is no more to come."""
        status = self.status
        code = grpc.StatusCode.CANCELLED if cancelled else None if status is None else status[0]
        seconds = time.monotonic() - self._began
        method = self.method
        method.requests.ended(code, self.instance, seconds, self._received, self._sent)
        if status is not None and not cancelled:
            method.requests.failed(status[0], self.instance, status[1])
        tools = method.tools
        tools.left -= 1
        if tools.left <= 0:
            tools.count(self, enter=code is None)

    def without_request(self) -> None:
        """Settles how a call ends that had to bring one request and did not."""
        self.status = (grpc.StatusCode.UNIMPLEMENTED, NO_REQUEST)

    def failed(self, error: BaseException) -> tuple[grpc.StatusCode, str]:
        """How the call ends whose handler has let `error` out."""
        if not isinstance(error, grpc.aio.AbortError) or self.status is None:
            logger.error("handler failed", exc_info=error, extra={"method": self.method.name})
        if self.status is None:
            self.status = (grpc.StatusCode.UNKNOWN, FAILED)
        return self.status
