"""google.bytestream.ByteStream: blobs read and written as streams.

Rule: every rule is the proto's (its comments are quoted by the tests in
`tests/conformance`) or REAPI's on resource names; what a name means is `names`', how
bytes become durable is the store's.

Coroutines here touch memory and the index only; what may wait for the disk goes to a
helper thread.  One message is held at a time in each direction.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import grpc

from cas import digest as digests
from cas.api import caller, compressed, names, wire
from cas.api.clients import OpenUploads
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.api.status import guarded
from cas.digest import Digest, shorten
from cas.errors import CasError, InvalidArgument, NoRoomYet, NotFound, OutOfRange
from cas.pb import bytestream_pb2 as pb
from cas.reapi.blobs import arrived, kept, opened, put, read_later
from cas.store.coming import Coming
from cas.store.interface import Blob, BlobStore, Buffer, Upload
from cas.store.room import in_room
from cas.zstd import Packer, unpack

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime
    from cas.store.pending import Pending

READ_BYTES = 1 << 20
"""Data of one ReadResponse, and what one reading stream holds in memory, …"""
MANY_READS = 64
"""… unless as many streams are reading: then their clients are slow, or stall, …"""
FEWER_READ_BYTES = 128 << 10
"""… and each further response holds this much, for more CPU: a thousand of them are 128 MiB."""

COMING_BYTES = 3 << 20
"""Most of one that is still on its way here and has come in pieces: about 2 MiB each, and rather
more than a crumb in a message of its own.  Clients take 4 MiB."""

SERVICE = "google.bytestream.ByteStream"


class ByteStream:
    """The servicer.  Requests and responses of Read and Write are raw messages."""

    def __init__(
        self,
        store: BlobStore,
        runtime: Runtime,
        limits: Limits,
        eof: object,
        gate: Gate | None = None,
    ) -> None:
        """`eof` is what `Context.read` gives at the end of a stream."""
        self._gate = gate
        self._store = store
        self._runtime = runtime
        self._limits = limits
        self._open_uploads = OpenUploads(limits.max_uploads_per_client)
        self._eof = eof
        self._packer = Packer()
        self._reads = 0
        """Streams that read from files now."""

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Read": grpc.unary_stream_rpc_method_handler(guarded(self.read, self._gate)),
                "Write": grpc.stream_unary_rpc_method_handler(guarded(self.write, self._gate)),
                "QueryWriteStatus": grpc.unary_unary_rpc_method_handler(
                    guarded(self.query_write_status, self._gate),
                    request_deserializer=pb.QueryWriteStatusRequest.FromString,
                    response_serializer=pb.QueryWriteStatusResponse.SerializeToString,
                ),
            },
        )

    # --- Read ------------------------------------------------------------------------

    async def read(self, request: bytes, context: Context) -> None:
        name, offset, limit = wire.read_request(request)
        resource = names.parse_read(name, self._limits.functions)
        context.instance = resource.instance
        if self._gate is not None:
            self._gate.read(context)
        digest = resource.digest
        end = _read_end(digest, offset, limit)
        if resource.compressor is not None:
            await self._read_compressed(digest, offset, limit, context)
            return
        data = self._store.read_small(digest)
        if data is not None:
            if offset < end:
                part = data if end - offset == len(data) else data[offset:end]
                await context.write(wire.read_response(part))
            return
        # A blob that is not there is NOT_FOUND even if nothing of it would be read.
        blob = await opened(self._store, self._runtime, digest)
        self._reads += 1
        try:
            await self._send(blob, offset, end, context)
        finally:
            self._reads -= 1
            blob.close()

    async def _read_compressed(
        self, digest: Digest, offset: int, limit: int, context: Context
    ) -> None:
        compressed.check_limit(limit)
        data = self._store.read_small(digest)
        if data is not None:
            await context.write(wire.read_response(self._packer.pack(data[offset:])))
            return
        blob = await opened(self._store, self._runtime, digest)
        self._reads += 1
        try:
            packed = blob.packed() if offset == 0 else None
            if packed is not None:
                # As it is stored.
                await self._send(packed, 0, packed.size, context)
                return
            await compressed.send(
                blob, offset, self._packer, self._read_bytes, self._runtime, context
            )
        finally:
            self._reads -= 1
            blob.close()

    def _read_bytes(self) -> int:
        return READ_BYTES if self._reads <= MANY_READS else FEWER_READ_BYTES

    async def _send(self, blob: Blob, offset: int, end: int, context: Context) -> None:
        coming = blob if isinstance(blob, Coming) else None
        while offset < end:
            if coming is not None:
                await arrived(self._runtime, coming, offset)
                piece = coming.piece(offset)
                if piece is not None:
                    # As it came.
                    piece = piece[: min(COMING_BYTES, end - offset)]
                    await context.write(wire.read_response(piece))
                    offset += len(piece)
                    continue
            response = wire.ReadResponseBuffer(min(self._read_bytes(), end - offset))
            count = blob.read_into(response.data, offset, wait=False)
            if count < 0:
                count = await read_later(self._runtime, blob, response.data, offset)
            await context.write(response.message(count))
            offset += count

    # --- Write -----------------------------------------------------------------------

    async def write(self, _: object, context: Context) -> bytes:
        raw = await context.read()
        if raw is self._eof:
            raise InvalidArgument("the stream ended before its first message; expected a name")
        name, offset, finish, data = wire.write_request(raw)
        if not name:
            raise InvalidArgument("the first message of a Write has no resource_name")
        resource = names.parse_write(name, self._limits.functions)
        context.instance = resource.instance
        digest = resource.digest
        packed = resource.compressor is not None
        self._limits.check_blob(digest)
        # Whose bytes are dropped is answered as if they were here already.
        dropped = self._gate is not None and not self._gate.keeps(context)
        if dropped or self._store.contains(digest):
            if not dropped:
                await kept(self._store, self._runtime, digest)
            sent = offset + len(data) if packed else None
            return await self._already(digest, finish, context, sent)
        upload_name = names.format(resource)
        is_new = offset == 0 and not self._store.upload_exists(upload_name)
        if finish and is_new:
            if not packed:
                return await self._write_whole(digest, data, len(data), context)
            if digest.size <= compressed.WHOLE_BYTES:
                return await self._write_packed(digest, data, context)
        with self._open_uploads.one_more(context.peer()):
            if is_new and not packed:
                digests.check_size(digest, len(data))
                gathered = self._store.gather(upload_name, digest)
                if gathered is not None:
                    gathered.append(data)
                    return await _WriteStream(self, gathered, name, context, gathers=True).run(
                        finish=False
                    )
            upload = await self._begin(upload_name, digest, offset, data, packed)
            return await _WriteStream(self, upload, name, context).run(finish)

    async def _begin(
        self, name: str, digest: Digest, offset: int, data: memoryview, packed: bool
    ) -> Upload:
        begun: list[Upload] = []

        def begin() -> None:
            if packed:
                begun.append(compressed.begin(self._store, name, digest, offset, data))
            else:
                begun.append(self._store.upload(name, digest, offset, data))

        room = max(0, digest.size - max(0, offset))
        try:
            await in_room(
                self._store, self._runtime.wait, room, lambda: self._runtime.offload(begin)
            )
        except BaseException:
            # Cancelled while it began: nobody else would let go of it.
            for upload in begun:
                _let_go(upload)
            raise
        return begun[0]

    async def _write_packed(self, digest: Digest, data: memoryview, context: Context) -> bytes:
        """The whole blob came in one message, as zstd."""
        content: Buffer
        if max(digest.size, len(data)) <= self._store.inline_threshold:
            content = unpack(data, digest.size)
        else:
            content = await self._runtime.offload(unpack, data, digest.size)
        return await self._write_whole(digest, content, len(data), context)

    async def _write_whole(
        self, digest: Digest, data: Buffer, committed: int, context: Context
    ) -> bytes:
        """The whole blob is here, and came as `committed` bytes in one message."""
        digests.check_size(digest, len(data))
        if digest.size <= self._store.inline_threshold:
            pending = self._store.put([(digest, data)])[0]
        else:
            pending = (await put(self._store, self._runtime, [(digest, data)]))[0]
        return await self.settle(pending, committed, context)

    async def _already(
        self, digest: Digest, finished: bool, context: Context, sent: int | None
    ) -> bytes:
        """REAPI: a blob that is there ends the call at once, with its full size; with -1 where
        it came compressed, with `sent` as the offset by now."""
        drained = _needs_draining(context)
        if not finished and drained:
            while (raw := await context.read()) is not self._eof:
                if sent is not None:
                    sent += len(wire.write_request(raw)[3])
        if sent is None:
            return wire.write_response(digest.size)
        # Such a client takes nothing but what it has sent.
        return wire.write_response(sent if drained else -1)

    async def settle(self, pending: Pending[None], size: int, context: Context) -> bytes:
        """The response to a write that has begun to be committed.

        What a client sends after finish_write is an error, and does not undo the write.
        """
        ended = await context.read_end()
        await self._runtime.wait(pending)
        if not ended:
            raise InvalidArgument("a message came after the one with finish_write; expected none")
        return wire.write_response(size)

    # --- QueryWriteStatus ------------------------------------------------------------

    async def query_write_status(
        self, request: pb.QueryWriteStatusRequest, context: Context
    ) -> pb.QueryWriteStatusResponse:
        resource = names.parse_write(request.resource_name, self._limits.functions)
        context.instance = resource.instance
        if self._gate is not None:
            self._gate.read(context)
        digest = resource.digest
        if self._store.contains(digest):
            await kept(self._store, self._runtime, digest)
            return pb.QueryWriteStatusResponse(committed_size=digest.size, complete=True)
        name = names.format(resource)
        size = await self._runtime.offload(self._store.committed_size, name)
        if size is None:
            # It may have been finished in the moment between the two looks.
            if self._store.contains(digest):
                await kept(self._store, self._runtime, digest)
                return pb.QueryWriteStatusResponse(committed_size=digest.size, complete=True)
            # Bazel gives an upload up on NOT_FOUND; only REAPI clients send the header.
            if resource.upload is None or caller.header(context) is None:
                raise NotFound(f"no upload {shorten(request.resource_name, 300)} has begun")
            size = 0
        return pb.QueryWriteStatusResponse(committed_size=size)


class _WriteStream:
    """One Write call that needs more than one message, or resumes."""

    def __init__(
        self,
        service: ByteStream,
        upload: Upload,
        name: str,
        context: Context,
        *,
        gathers: bool = False,
    ) -> None:
        """`gathers`: the upload is one of `BlobStore.gather`."""
        self._service = service
        self._store = service._store
        self._runtime = service._runtime
        self._upload = upload
        self._name = name
        self._context = context
        self._gathers = gathers

    async def run(self, finish: bool) -> bytes:
        """From the second message, unless the first was the last, to the response."""
        upload = self._upload
        try:
            while not finish:
                raw = await self._context.read()
                if raw is self._service._eof:
                    return await self._pause()
                finish, data = self._next(raw)
                if upload.append(data) or finish:
                    if self._store.contains(upload.digest):
                        return await self._overtaken(finish)
                    if not finish:
                        await self._runtime.offload(upload.flush)
            return await self._finish()
        except CasError:
            # The client may correct itself and go on from what was right.
            await self._runtime.offload(_let_go, upload)
            raise
        except BaseException:
            # Cancelled, broken off, or past its deadline: keep what came.
            _let_go(upload)
            raise

    def _next(self, raw: bytes) -> tuple[bool, memoryview]:
        name, offset, finish, data = wire.write_request(raw)
        if name and name != self._name:
            raise InvalidArgument(
                f"resource_name changed to {shorten(name, 300)}, expected "
                f"{shorten(self._name, 300)} or none"
            )
        if offset != self._upload.offset:
            raise InvalidArgument(
                f"write_offset is {offset}, expected {self._upload.offset}, the first one plus "
                "the bytes sent since"
            )
        return finish, data

    async def _finish(self) -> bytes:
        upload = self._upload
        size = upload.digest.size
        if self._gathers and size <= self._store.inline_threshold:
            pending = upload.finish()
        else:
            pending = await in_room(
                self._store,
                self._runtime.wait,
                size if self._gathers else 0,
                lambda: self._runtime.offload(upload.finish),
            )
        return await self._service.settle(pending, self._upload.offset, self._context)

    async def _overtaken(self, finished: bool) -> bytes:
        """Another client finished the same blob first."""
        upload = self._upload
        await self._runtime.offload(upload.discard)
        await kept(self._store, self._runtime, upload.digest)
        sent = upload.offset if isinstance(upload, compressed.CompressedUpload) else None
        return await self._service._already(upload.digest, finished, self._context, sent)

    async def _pause(self) -> bytes:
        """The client closed the stream without finish_write: it will go on later."""
        upload = self._upload
        # What was only in memory so far takes its room now.
        room = upload.digest.size if self._gathers else 0
        size = await in_room(
            self._store,
            self._runtime.wait,
            room,
            lambda: self._runtime.offload(lambda: upload.suspend(durable=True)),
        )
        return wire.write_response(size)


def _read_end(digest: Digest, offset: int, limit: int) -> int:
    """Where a Read ends; raises when its range is wrong."""
    if not 0 <= offset <= digest.size:
        raise OutOfRange(f"read_offset is {offset}, expected 0 to {digest.size}, the blob's size")
    if limit < 0:
        raise InvalidArgument(f"read_limit is {limit}, expected 0 (no limit) or more")
    return min(digest.size, offset + limit) if limit else digest.size


def _let_go(upload: Upload) -> None:
    """Suspends an upload whose call has failed already, whatever becomes of that."""
    with suppress(CasError, OSError):
        try:
            upload.suspend()
        except NoRoomYet:
            # Nobody was told of it.
            upload.discard()


def _needs_draining(context: Context) -> bool:
    """Bazel 5.0.0 fails an upload that is answered before it has sent everything."""
    said = caller.of(context)
    return said is not None and said.tool == "bazel" and said.version.startswith("5.0.0")
