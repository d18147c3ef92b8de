"""Request bodies: whole into memory where they are small, else spooled piece by piece.

Rule: no more is taken than was declared and than is allowed, before it is decoded and after;
a body that does not get on is given up.  What one request holds in memory is bounded by
`WHOLE` and a few pieces.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from http import HTTPStatus

import zstandard
from aiohttp import ClientError
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest, RequestPayloadError

from cas.digest import Digest, Function
from cas.errors import BlobTooLarge, InvalidArgument
from cas.http.headers import whole_number
from cas.http.runtime import LoopRuntime
from cas.http.status import Refused
from cas.store.interface import BlobStore, Spool
from cas.store.pending import Pending
from cas.store.room import in_room

WHOLE = 1 << 20
"""Bodies up to this size, bytes, are taken into memory."""

RATIO = 1000
"""What a byte of zstd may become where nothing tells the size beforehand: a frame of zeros may
claim 30 times more."""
ALLOWANCE = 1 << 20

MAX_WINDOW = 1 << 27
"""Memory that a frame may ask for to be decoded, bytes: what `zstd --long` uses by default."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a client may be."""

    idle: float = 60.0
    """Seconds without a byte."""
    rate: float = 512.0
    """Bytes a second that must come in on the average, after the first `idle` seconds."""


class Body:
    """The body of one request, decoded, as it arrives."""

    def __init__(self, request: BaseRequest, pace: Pace, limit: int) -> None:
        """`limit` is the largest content taken, in bytes.

        Raises BlobTooLarge, or Refused for what HTTP lets be sent and we do not take.
        """
        self._request = request
        self._pace = pace
        headers = request.headers
        self.length = request.content_length
        """Bytes that come, encoded; None where that is not told."""
        self.encoded = _is_encoded(headers.get("Content-Encoding", "identity"))
        declared = headers.get("X-Digest-SizeBytes") if self.encoded else None
        self.size = (
            self.length
            if not self.encoded
            else None
            if declared is None
            else whole_number("X-Digest-SizeBytes", declared)
        )
        """Bytes of content; None where that is not told."""
        self.limit = limit if self.size is None else self.size
        if limit and self.limit > limit:
            raise BlobTooLarge(f"{self.limit} bytes are more than the limit of {limit}")
        if self.length is not None and limit and self.length > limit + ALLOWANCE:
            raise BlobTooLarge(f"{self.length} bytes are more than the limit of {limit}")
        self._continue = headers.get("Expect")
        if self._continue is not None and self._continue.lower() != "100-continue":
            raise Refused(
                HTTPStatus.EXPECTATION_FAILED,
                f"Expect: {self._continue[:80]!r} is not met; expected 100-continue",
            )
        self._received = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        """What comes, as it comes and as it is encoded."""
        if self._continue is not None and self._request.transport is not None:
            self._request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._continue = None
        content = self._request.content
        loop = asyncio.get_running_loop()
        began = loop.time()
        pace = self._pace
        try:
            while not content.at_eof():
                piece = content.read_nowait()
                if not piece:
                    slowest = began + pace.idle + self._received / pace.rate
                    now = loop.time()
                    async with asyncio.timeout_at(min(now + pace.idle, slowest)):
                        piece = await content.readany()
                    if not piece:
                        continue
                self._received += len(piece)
                yield piece
        except TimeoutError:
            raise Refused(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not get on after {self._received} bytes; expected at least "
                f"{pace.rate:g} bytes a second",
            ) from None
        except (RequestPayloadError, HttpProcessingError, ClientError) as error:
            raise InvalidArgument(f"the body cannot be read: {error}") from error

    async def whole(self, runtime: LoopRuntime, most: int) -> tuple[bytes, bool]:
        """The content, and whether that is all of it: what is behind the piece that exceeds
        `most` bytes can be had by `spooled` still.  Raises BlobTooLarge for encoded content
        beyond `most`.
        """
        if self.encoded:
            return await self._whole_decoded(runtime, most), True
        parts = []
        size = 0
        async for piece in self.pieces():
            parts.append(piece)
            size += len(piece)
            if size > most:
                return b"".join(parts), False
            if size == self.length:
                break
        return b"".join(parts), True

    async def _whole_decoded(self, runtime: LoopRuntime, most: int) -> bytes:
        self.limit = min(self.limit, most) if self.limit else most
        memory = _Memory()
        sink = _Zstd(memory, self)
        async for piece in self.pieces():
            if sink.take(piece):
                await runtime.offload(sink.flush)
        await runtime.offload(sink.end)
        return b"".join(memory.parts)

    async def discard(self) -> None:
        """Reads it to the end: a client may take an early answer for a failure."""
        async for _ in self.pieces():
            self.check(self._received)

    async def spooled(
        self,
        store: BlobStore,
        runtime: LoopRuntime,
        function: Function,
        *,
        begun: bytes = b"",
        expected: bytes | None = None,
    ) -> tuple[Digest, Pending[None]]:
        """The content, `begun` before it, as a blob; see `Spool.finish`."""

        async def spool_in_room() -> Spool:
            return store.spool(function, self.size)

        spool = await in_room(store, runtime.wait, self.size or 0, spool_in_room)
        try:
            sink: _Plain | _Zstd = _Zstd(spool, self) if self.encoded else _Plain(spool, self)

            def flushed() -> Awaitable[None]:
                return in_room(store, runtime.wait, 0, lambda: runtime.offload(sink.flush))

            if begun and sink.take(begun):
                await flushed()
            async for piece in self.pieces():
                if sink.take(piece):
                    await flushed()
            return await in_room(
                store,
                runtime.wait,
                0,
                lambda: runtime.offload(_finish, sink, spool, expected),
            )
        except BaseException:
            await runtime.offload(spool.discard)
            raise

    def check(self, size: int) -> None:
        """Raises BlobTooLarge when there is more than may come."""
        if self.limit and size > self.limit:
            raise BlobTooLarge(f"the content has more than {self.limit} bytes, the most expected")


def _finish(
    sink: _Plain | _Zstd, spool: Spool, expected: bytes | None
) -> tuple[Digest, Pending[None]]:
    sink.end()
    return spool.finish(expected)


class _Memory:
    """What a decoder needs of a spool, in memory."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def append(self, data: bytes) -> bool:
        self.parts.append(data)
        self.size += len(data)
        return False

    def flush(self) -> None:
        """There is nothing but memory."""


class _Plain:
    """Pieces straight into a spool."""

    def __init__(self, spool: Spool, body: Body) -> None:
        self._spool = spool
        self._body = body

    def take(self, piece: bytes) -> bool:
        self._body.check(self._spool.size + len(piece))
        return self._spool.append(piece)

    def flush(self) -> None:
        self._spool.flush()

    def end(self) -> None:
        """Nothing is left to do."""


class _Zstd:
    """Pieces decoded into a spool, on a helper thread; each output is taken, and moved out of
    memory, before the next one is made."""

    def __init__(self, spool: Spool | _Memory, body: Body) -> None:
        self._spool = spool
        self._body = body
        self._pieces: list[bytes] = []
        self._steps: deque[bytes] = deque()
        """Of pieces, those that are to be decoded yet."""
        self._full = False
        """Whether the spool is to be flushed first."""
        self._waiting = 0
        self._received = 0
        self._head = b""
        self._declared = body.size is not None
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._decoder = decompressor.decompressobj(read_across_frames=False)

    def take(self, piece: bytes) -> bool:
        self._pieces.append(piece)
        self._waiting += len(piece)
        return self._waiting >= _DECODE_AT_ONCE

    def flush(self) -> None:
        """After NoRoomYet it may be called again, and goes on where it was."""
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        for piece in pieces:
            self._look_at_head(piece)
            self._steps.extend(piece[at : at + _STEP] for at in range(0, len(piece), _STEP))
        self._move()
        while self._steps:
            self._decode(self._steps.popleft())
            self._move()

    def end(self) -> None:
        self.flush()
        if not self._decoder.eof:
            raise InvalidArgument("the body ends within its zstd frame")

    def _look_at_head(self, piece: bytes) -> None:
        """What the frame itself says of its size counts where no header does."""
        if self._declared or len(self._head) >= _MAX_FRAME_HEADER:
            return
        self._head += piece[:_MAX_FRAME_HEADER]
        try:
            size = zstandard.get_frame_parameters(self._head).content_size
        except zstandard.ZstdError:
            return
        if size not in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
            self._declared = True
            self._body.check(size)
            self._body.limit = size

    def _decode(self, part: bytes) -> None:
        self._received += len(part)
        if self._decoder.eof:
            raise InvalidArgument("something follows the body's zstd frame")
        try:
            data = self._decoder.decompress(part)
        except zstandard.ZstdError as error:
            raise InvalidArgument(f"the body is not zstd: {error}") from None
        if self._decoder.unused_data:
            raise InvalidArgument("something follows the body's zstd frame")
        if not data:
            return
        size = self._spool.size + len(data)
        self._body.check(size)
        if not self._declared and size > RATIO * self._received + ALLOWANCE:
            raise BlobTooLarge(
                f"{self._received} bytes of zstd became {size}; expected at most {RATIO} times "
                "as many where neither X-Digest-SizeBytes nor the frame tells the size"
            )
        self._full = self._spool.append(data)

    def _move(self) -> None:
        if self._full:
            self._spool.flush()
            self._full = False


_DECODE_AT_ONCE = 256 << 10
_STEP = 1024
"""Bytes decoded in one go.  A block of zstd takes 4 bytes at least and becomes 128 KiB at most,
so that a step becomes 32 MiB at most, before it is looked at."""
_MAX_FRAME_HEADER = 18


def _is_encoded(coding: str) -> bool:
    coding = coding.strip().lower()
    if coding == "zstd":
        return True
    if coding in ("identity", ""):
        return False
    raise Refused(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"Content-Encoding {coding[:80]!r} is not taken; expected zstd or none",
        Accept_Encoding="zstd",
    )
