"""Answers whose bytes are all there: one write.

Rule: an answer sends itself, once; aiohttp's `Response` would cost 9 µs more, of 39 that all of
a request may take.  Fields come as bytes that end with CRLF; whoever makes them answers for
their form.
"""

from __future__ import annotations

import asyncio
import os
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from aiohttp.web import BaseRequest

from cas.store.interface import Held

TEXT = b"Content-Type: text/plain; charset=utf-8\r\n"
OCTETS = b"Content-Type: application/octet-stream\r\n"
JSON = b"Content-Type: application/json\r\n"

JOINED_BYTES = 8 << 10
"""Content from this size on is not copied behind its head: the system gathers both, and has it
from where it lies, at once."""

STALL_SECONDS = 60.0
"""A client that takes nothing for so long is dropped."""


class Answer:
    """A whole answer."""

    __slots__ = ("_held", "body", "fields", "length", "sent", "status")

    def __init__(
        self,
        status: int,
        fields: bytes = b"",
        body: bytes | memoryview = b"",
        length: int | None = None,
        held: Held | None = None,
    ) -> None:
        """`length` is that of the content which a GET would have, for an answer without it.
        `held` is what `body` is a view of, released once it was sent."""
        self.status = status
        self.fields = fields
        self.body = body
        self._held = held
        self.length = len(body) if length is None else length
        self.sent = 0
        """Bytes of content that went out."""

    async def send(self, request: BaseRequest, *, keep_alive: bool) -> None:
        """Writes all of it; `keep_alive` is whether the connection stays open behind it."""
        try:
            self._write(request, keep_alive)
        finally:
            if self._held is not None:
                self._held.release()
        if request.protocol.writing_paused:
            # A client that asks and never reads fills no memory of ours but this once.
            async with asyncio.timeout(STALL_SECONDS):
                await request.writer.drain()

    def _write(self, request: BaseRequest, keep_alive: bool) -> None:
        head = head_of(request, self.status, self.fields, self.length, keep_alive=keep_alive)
        body: bytes | memoryview = b""
        if request.method != "HEAD":
            body = self.body
            self.sent = len(body)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        if len(body) < JOINED_BYTES:
            transport.write(head + body)
        elif transport.get_write_buffer_size() or transport.get_extra_info("ssl_object"):
            transport.writelines((head, bytes(body)))
        else:
            _write_now(transport, head, body)


def _write_now(transport: asyncio.Transport, head: bytes, body: bytes | memoryview) -> None:
    """To a transport where nothing waits, straight to its socket: what fits is copied once, by
    the system, while it is in the processor's cache."""
    if transport.is_closing():
        raise ConnectionResetError("the client has gone")
    try:
        sent = os.writev(transport.get_extra_info("socket").fileno(), (head, body))
    except BlockingIOError:
        sent = 0
    except ConnectionError:
        raise
    except OSError as error:
        raise ConnectionResetError(str(error)) from error
    if sent < len(head):
        transport.writelines((head[sent:], bytes(body)))
    elif sent < len(head) + len(body):
        # A copy: the transport keeps what it cannot send at once.
        transport.write(bytes(body[sent - len(head) :]))


def head_of(
    request: BaseRequest, status: int, fields: bytes, length: int | None, *, keep_alive: bool
) -> bytes:
    """The answer up to its content; `length` None is for content in chunks."""
    line = _STATUS_LINES[status]
    if length is None:
        framing = b"Transfer-Encoding: chunked\r\n"
    elif status in _WITHOUT_LENGTH:
        framing = b""
    else:
        framing = b"Content-Length: %d\r\n" % length
    connection = b""
    if not keep_alive:
        connection = b"Connection: close\r\n"
    elif request.version < (1, 1):
        connection = b"Connection: keep-alive\r\n"
    return b"".join((line, fields, framing, _date(int(time.time())), connection, b"\r\n"))


def refusal(status: int, message: str, fields: dict[str, str]) -> Answer:
    """An answer that says why."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return Answer(status, TEXT + extra.encode("ascii"), f"{message}\n".encode(errors="replace"))


_WITHOUT_LENGTH = (204, 304)
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
