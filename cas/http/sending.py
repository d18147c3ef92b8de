"""Content out of files, at the client's pace.

Rule: one answer holds at most `PIECE` bytes in memory.  Where there is a descriptor and no
TLS the system sends from it (sendfile(2)); uvloop's own sendfile does not exist, and its
transport lets nobody else watch its socket, so a duplicate of the socket is watched.
A client that takes nothing for `STALL_SECONDS` is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import zstandard
from aiohttp.web import BaseRequest

from cas.errors import DataLoss, Unavailable
from cas.http.answers import STALL_SECONDS, head_of
from cas.http.headers import Span
from cas.http.runtime import LoopRuntime
from cas.reapi.blobs import arrived, read_later
from cas.store.coming import Coming
from cas.store.interface import Blob

PIECE = 1 << 20
"""Bytes read, or sent, in one go."""

PIECES_IN_TURN = 4
"""Sent to one client before others have their turn."""

LEVEL = 1
"""Of zstd: content is compressed for each answer, and the server is to keep up."""

WORTHWHILE = 0.9
"""Content whose beginning stays larger than this share of itself is not compressed."""
SAMPLE = 64 << 10

log = logging.getLogger("cas.http")


class Stream:
    """An answer of the bytes of an open blob, which it closes."""

    def __init__(
        self,
        runtime: LoopRuntime,
        blob: Blob,
        status: int,
        fields: bytes,
        span: Span,
        *,
        compressed: bool = False,
    ) -> None:
        self._runtime = runtime
        self._blob = blob
        self.status = status
        self._fields = fields
        self._span = span
        self._compressed = compressed
        self.sent = 0
        """Bytes of content that went out."""

    async def send(self, request: BaseRequest, *, keep_alive: bool) -> None:
        """See `Answer.send`."""
        try:
            await self._send(request, keep_alive)
        except (DataLoss, Unavailable) as error:
            # Too late for a status: an end before the announced length says that it failed.
            if isinstance(error, DataLoss):
                log.error("stored data is damaged", extra={"error": str(error)})
            raise ConnectionAbortedError(str(error)) from None
        finally:
            self._blob.close()

    async def _send(self, request: BaseRequest, keep_alive: bool) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        span = self._span
        if self._compressed:
            head = head_of(request, self.status, self._fields, None, keep_alive=keep_alive)
            transport.write(head)
            await self._send_compressed(request, transport)
            return
        length = span.end - span.start
        head = head_of(request, self.status, self._fields, length, keep_alive=keep_alive)
        fd = self._blob.fileno()
        if fd is None or transport.get_extra_info("ssl_object") is not None:
            transport.write(head)
            await self._send_read(request, transport)
        else:
            await _drained(request, transport)
            await self._send_file(transport.get_extra_info("socket").fileno(), fd, head)

    async def _send_read(self, request: BaseRequest, transport: asyncio.Transport) -> None:
        buffer = memoryview(bytearray(min(PIECE, self._span.end - self._span.start)))
        at = self._span.start
        coming = self._blob if isinstance(self._blob, Coming) else None
        while at < self._span.end:
            left = self._span.end - at
            if coming is not None:
                await arrived(self._runtime, coming, at)
            if coming is not None and (piece := coming.piece(at)) is not None:
                count = min(len(piece), left)
                transport.write(piece[:count])
            else:
                view = buffer[:left]
                count = await self._read(view, at)
                # A copy: the transport keeps what it cannot send at once.
                transport.write(bytes(view[:count]))
            at += count
            self.sent += count
            if request.protocol.writing_paused:
                async with asyncio.timeout(STALL_SECONDS):
                    await request.writer.drain()
            if transport.is_closing():
                raise ConnectionResetError("the client has gone")

    async def _send_compressed(self, request: BaseRequest, transport: asyncio.Transport) -> None:
        size = self._blob.size
        compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=size)
        buffer = memoryview(bytearray(min(PIECE, size)))
        at = 0
        while at < size:
            count = await self._read(buffer[: size - at], at)
            at += count
            data = await self._runtime.offload(compressor.compress, buffer[:count])
            if at == size:
                data += compressor.flush()
            if data:
                transport.write(b"%x\r\n%b\r\n" % (len(data), data))
                self.sent += len(data)
            if request.protocol.writing_paused:
                async with asyncio.timeout(STALL_SECONDS):
                    await request.writer.drain()
            if transport.is_closing():
                raise ConnectionResetError("the client has gone")
        transport.write(b"0\r\n\r\n")

    async def _read(self, view: memoryview, at: int) -> int:
        count = self._blob.read_into(view, at, wait=False)
        return count if count >= 0 else await read_later(self._runtime, self._blob, view, at)

    async def _send_file(self, connection: int, fd: int, head: bytes) -> None:
        """`head` and the span, straight to the socket: nothing waits in the transport."""
        try:
            # Mostly all of it fits, and there is nothing to wait for.
            head, at = _send_head(connection, head), self._span.start
            if not head and self._is_cached(at):
                at = self._send_piece(connection, fd, at)
            if head or at < self._span.end:
                await self._send_rest(connection, fd, head, at)
        except ConnectionError:
            raise
        except OSError as error:
            raise ConnectionResetError(str(error)) from error

    async def _send_rest(self, connection: int, fd: int, head: bytes, at: int) -> None:
        """What did not fit into the socket at once."""
        # The transport may close its socket while this one is waited for.
        watched = os.dup(connection)
        try:
            while head:
                await _writable(watched)
                head = _send_head(watched, head)
            end = self._span.end
            while at < end:
                if not self._is_cached(at):
                    count = min(PIECE, end - at)
                    # Has the system read it: what is sent next is in memory then.
                    await self._runtime.offload(_read_ahead, self._blob, at, count)
                at = await self._send_cached(watched, fd, at)
        finally:
            os.close(watched)

    async def _send_cached(self, connection: int, fd: int, at: int) -> int:
        """Sends for as long as the next piece is in memory; the offset behind.  From the loop's
        own callback: to wake a task for each piece took a tenth of the time."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def send() -> None:
            nonlocal at
            try:
                for _ in range(PIECES_IN_TURN):
                    before = at
                    at = self._send_piece(connection, fd, at)
                    if at == self._span.end or not self._is_cached(at):
                        loop.remove_writer(connection)
                        ended.set_result(None)
                        return
                    if at < before + PIECE:
                        break
                patience.reschedule(loop.time() + STALL_SECONDS)
            except Exception as error:  # noqa: BLE001 - whoever waits raises it
                loop.remove_writer(connection)
                if not ended.done():
                    ended.set_exception(error)

        async with asyncio.timeout(STALL_SECONDS) as patience:
            loop.add_writer(connection, send)
            try:
                await ended
            finally:
                loop.remove_writer(connection)
        return at

    def _send_piece(self, connection: int, fd: int, at: int) -> int:
        """Sends what fits of the next `PIECE` bytes, which are in memory; the offset behind."""
        count = min(PIECE, self._span.end - at)
        try:
            sent = os.sendfile(connection, fd, at, count)
        except BlockingIOError:
            return at
        if not sent:
            raise DataLoss(f"a blob ends at byte {at} on disk, expected {self._blob.size}")
        self.sent += sent
        return at + sent

    def _is_cached(self, at: int) -> bool:
        """Whether the next piece's end is in memory; what is before it is then, too."""
        last = min(at + PIECE, self._span.end) - 1
        return self._blob.read_into(_PROBE, last, wait=False) >= 0


_PROBE = memoryview(bytearray(1))
"""What is read into it nobody looks at."""


def _send_head(connection: int, head: bytes) -> bytes:
    """Sends what fits of `head`, to be followed by content at once; the rest."""
    # Only for its flag: os.write has none.  The descriptor stays its owner's.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, connection)
    try:
        return head[sock.send(head, socket.MSG_MORE) :]
    except BlockingIOError:
        return head
    finally:
        sock.detach()


def _read_ahead(blob: Blob, at: int, count: int) -> None:
    blob.read_into(memoryview(bytearray(count)), at)


async def is_worthwhile(runtime: LoopRuntime, blob: Blob) -> bool:
    """Whether the blob's beginning says that it shrinks."""

    def judge() -> bool:
        view = memoryview(bytearray(min(SAMPLE, blob.size)))
        count = blob.read_into(view, 0)
        return len(compress(bytes(view[:count]))) < WORTHWHILE * count

    return await runtime.offload(judge)


def compress(data: bytes | memoryview) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)


async def _drained(request: BaseRequest, transport: asyncio.Transport) -> None:
    """Waits until earlier answers have left the transport."""
    if transport.get_write_buffer_size() == 0:
        return
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(0)
    try:
        async with asyncio.timeout(STALL_SECONDS):
            while transport.get_write_buffer_size() and not transport.is_closing():
                await request.writer.drain()
                await asyncio.sleep(0)
    finally:
        transport.set_write_buffer_limits(high, low)
    if transport.is_closing():
        raise ConnectionResetError("the client has gone")


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        loop.remove_writer(fd)
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, wake)
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await ready
    finally:
        loop.remove_writer(fd)
