"""A connection over gRPC: ByteStream and the Remote Execution API's cache half.

Rule: the one table from gRPC codes to errors.  What carries blobs is made and read by
`cas.client.messages`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from cas.client.credentials import Authorizer, Credentials, Identity
from cas.client.errors import (
    PermissionDenied,
    RemoteError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from cas.client.messages import (
    batch_update_request,
    read_data,
    update_action_request,
    write_head,
    write_request,
)
from cas.client.names import digest_of, message_of
from cas.client.remote import Remote
from cas.client.wire import Offer, Parcel, Piece, Pull
from cas.digest import Digest
from cas.errors import CasError, DataLoss, InvalidArgument, LimitExceeded, NotFound, OutOfRange
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb

T = TypeVar("T")
N = TypeVar("N", covariant=True)

UNARY_SECONDS = 120.0
"""For a call with one answer; a remote that has not answered by then is given up, …"""

SLOWEST = 16 << 10
"""… or, where it carries blobs, by when they would have got through at so many bytes a second."""

IDLE_SECONDS = 120.0
"""Between two messages of a stream; streams have no deadline in all."""

BATCH_WITHOUT_LIMIT = (4 << 20) - (64 << 10)
"""REAPI lets a server name no limit of its own; then gRPC's default for messages is left."""

MAX_BATCH = 16 << 20
"""More at once would gain nothing, whatever the server allows."""

_CODES: dict[grpc.StatusCode, type[CasError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    # All of these have been seen where a connection or a server went away.
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.INTERNAL: Unavailable,
    grpc.StatusCode.UNKNOWN: Unavailable,
    # A limit on calls or uploads at once passes; a full disk may.
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
    grpc.StatusCode.FAILED_PRECONDITION: LimitExceeded,
    grpc.StatusCode.DATA_LOSS: DataLoss,
}

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # How fast a lost remote is looked for again is `Retry`'s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


_NOT_TOLD_YET = "Internal error from Core"
"""What grpc.aio says of a write to a call that had ended, until it learns how it did, mostly."""
_LOOKS = 20
_LOOK_SECONDS = 0.01


def error_of(number: int, message: str) -> CasError:
    """The exception for a status; `number` is google.rpc.Code's."""
    code = _BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)
    kind = _CODES.get(code, RemoteError)
    return kind(f"{message or 'no reason given'} ({code.name})")


class Ask(Protocol[N]):
    """Asks, and gives the answer."""

    async def __call__(self, request: Message | bytes, seconds: float = ..., /) -> N: ...


class Answer(Protocol[N]):
    """A kind of message that can be read."""

    @staticmethod
    def FromString(data: bytes, /) -> N: ...  # noqa: N802 - protobuf's name


class _Raw:
    """An answer as it came."""

    @staticmethod
    def FromString(data: bytes, /) -> bytes:  # noqa: N802
        return data


class GrpcWire:
    """See `cas.client.wire.Wire`."""

    resumes = True

    def __init__(
        self, remote: Remote, credentials: Credentials, headers: Identity | None = None
    ) -> None:
        """`headers` tells who we are, in place of the credentials' own."""
        self._instance = remote.instance
        self._prefix = f"{remote.instance}/" if remote.instance else ""
        self._authorizer = headers or Authorizer(credentials, remote)
        self._channel = _channel(remote, credentials)
        stream = "/google.bytestream.ByteStream/"
        content = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
        actions = "/build.bazel.remote.execution.v2.ActionCache/"
        channel = self._channel
        self._read: grpc.aio.UnaryStreamMultiCallable[Message, bytes] = channel.unary_stream(
            stream + "Read", _bytes, None
        )
        self._write: grpc.aio.StreamUnaryMultiCallable[bytes, bs.WriteResponse] = (
            channel.stream_unary(stream + "Write", None, bs.WriteResponse.FromString)
        )
        self._query = self.unary(stream + "QueryWriteStatus", bs.QueryWriteStatusResponse)
        self._find = self.unary(content + "FindMissingBlobs", pb.FindMissingBlobsResponse)
        self._update = self.unary(content + "BatchUpdateBlobs", pb.BatchUpdateBlobsResponse)
        self._batch = self.unary(content + "BatchReadBlobs", pb.BatchReadBlobsResponse)
        self._get = self.unary(actions + "GetActionResult", _Raw)
        self._put = self.unary(actions + "UpdateActionResult", _Raw)
        self._capabilities = self.unary(
            "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
            pb.ServerCapabilities,
        )

    def unary(self, method: str, answer: Answer[N]) -> Ask[N]:
        """A method with one request and one answer, whose failures are `cas.client.errors`;
        beside the request it takes the seconds that it may last."""
        call = self._channel.unary_unary(method, _bytes, answer.FromString)

        async def once(request: Message | bytes, seconds: float) -> N:
            metadata = await self._authorizer.headers()
            answered: N = await call(request, metadata=metadata, timeout=seconds)
            return answered

        async def ask(request: Message | bytes, seconds: float = UNARY_SECONDS) -> N:
            return await self._translated(lambda: once(request, seconds))

        return ask

    async def _translated(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _error(self, error: grpc.RpcError) -> CasError:
        code: grpc.StatusCode = error.code()
        translated = error_of(int(code.value[0]), error.details() or "")
        if isinstance(translated, Unauthenticated) and self._authorizer.refused():
            # The helper's token went stale: the next try asks for another.
            return Unavailable(str(translated))
        return translated

    async def offer(self) -> Offer:
        said = await self._capabilities(pb.GetCapabilitiesRequest(instance_name=self._instance))
        cache = said.cache_capabilities
        zstd = pb.Compressor.ZSTD
        return Offer(
            batch=min(cache.max_batch_total_size_bytes or BATCH_WITHOUT_LIMIT, MAX_BATCH),
            zstd=zstd in cache.supported_compressors,
            zstd_batch=zstd in cache.supported_batch_update_compressors,
            largest=cache.max_cas_blob_size_bytes,
            writes_actions=cache.action_cache_update_capabilities.update_enabled,
            functions=tuple(cache.digest_functions),
            api=f"{said.low_api_version.major}.{said.low_api_version.minor} to "
            f"{said.high_api_version.major}.{said.high_api_version.minor}",
        )

    async def find_missing(self, digests: Sequence[Digest]) -> list[Digest]:
        request = pb.FindMissingBlobsRequest(
            instance_name=self._instance, digest_function=_function(digests[0])
        )
        request.blob_digests.extend(map(message_of, digests))
        answer = await self._find(request)
        return [digest_of(digest, digests[0].function) for digest in answer.missing_blob_digests]

    async def write_many(self, parcels: Sequence[Parcel]) -> list[CasError | None]:
        function = pb.DigestFunction.Value.Value(_function(parcels[0].digest))
        request = batch_update_request(self._instance, function, parcels)
        answer = await self._update(request, _patience(len(request)))
        answers: dict[bytes, CasError | None] = {}
        for response in answer.responses:
            status = response.status
            failed = error_of(status.code, status.message) if status.code else None
            answers[digest_of(response.digest, parcels[0].digest.function).key] = failed
        lost = RemoteError("the remote left the blob out of its answer")
        return [answers.get(parcel.digest.key, lost) for parcel in parcels]

    async def read_many(self, digests: Sequence[Digest], zstd: bool) -> list[Parcel | CasError]:
        request = pb.BatchReadBlobsRequest(
            instance_name=self._instance, digest_function=_function(digests[0])
        )
        request.digests.extend(map(message_of, digests))
        if zstd:
            request.acceptable_compressors.append(pb.Compressor.ZSTD)
        answer = await self._batch(request, _patience(sum(digest.size for digest in digests)))
        answers: dict[bytes, Parcel | CasError] = {}
        for response in answer.responses:
            digest, status = digest_of(response.digest, digests[0].function), response.status
            answers[digest.key] = (
                error_of(status.code, status.message)
                if status.code
                else Parcel(digest, response.data, response.compressor == pb.Compressor.ZSTD)
            )
        lost = RemoteError("the remote left the blob out of its answer")
        return [answers.get(digest.key, lost) for digest in digests]

    async def read(
        self, digest: Digest, offset: int, zstd: bool, limit: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """`limit` bytes at most, if it is not 0; not of zstd, where REAPI has none."""
        name = f"{self._prefix}{_blobs(digest, zstd)}"
        metadata = await self._authorizer.headers()
        request = bs.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        call = self._read(request, metadata=metadata)
        try:
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    raw = await call.read()
                if not isinstance(raw, bytes):
                    return  # grpc.aio.EOF
                yield read_data(raw), zstd
        except grpc.RpcError as error:
            raise self._error(error) from None
        except TimeoutError:
            raise Unavailable(f"nothing arrived for {IDLE_SECONDS:.0f} s") from None
        finally:
            call.cancel()

    def upload_name(self, digest: Digest, zstd: bool) -> str:
        return f"{self._prefix}uploads/{uuid.uuid4()}/{_blobs(digest, zstd)}"

    async def write(self, digest: Digest, name: str, offset: int, pull: Pull, zstd: bool) -> int:
        metadata = await self._authorizer.headers()
        call = self._write(metadata=metadata)
        try:
            head = write_head(name)
            while True:
                piece = await pull()
                async with asyncio.timeout(IDLE_SECONDS):
                    await call.write(write_request(head, offset, piece, finish=not piece))
                head = b""
                offset += len(piece)
                if not piece:
                    break
            async with asyncio.timeout(IDLE_SECONDS):
                await call.done_writing()
                answer = await call
            return int(answer.committed_size)
        except grpc.RpcError as error:
            if error.details() != _NOT_TOLD_YET:
                raise self._error(error) from None
            answer = await self._translated(lambda: _ended(call))
            return int(answer.committed_size)
        except asyncio.InvalidStateError:
            # The call ended while it was written to: with an answer (the blob is there by now),
            # or with an error that its await raises.
            answer = await self._translated(lambda: call)
            return int(answer.committed_size)
        except TimeoutError:
            raise Unavailable(f"nothing moved for {IDLE_SECONDS:.0f} s") from None
        finally:
            call.cancel()

    async def committed(self, name: str) -> int:
        try:
            answer = await self._query(bs.QueryWriteStatusRequest(resource_name=name))
        except (NotFound, Unsupported):
            return 0
        return int(answer.committed_size)

    async def get_action(self, action: Digest) -> pb.ActionResult | None:
        found = await self.get_action_bytes(self._instance, action)
        if found is None:
            return None
        try:
            return pb.ActionResult.FromString(found)
        except DecodeError:
            raise RemoteError("the remote answered with what is no ActionResult") from None

    async def get_action_bytes(self, instance: str, action: Digest) -> bytes | None:
        """As `get_action`, of that instance, and as it came."""
        try:
            return await self._get(
                pb.GetActionResultRequest(
                    instance_name=instance,
                    action_digest=message_of(action),
                    digest_function=_function(action),
                )
            )
        except NotFound:
            return None

    async def put_action(self, action: Digest, result: pb.ActionResult) -> None:
        await self.put_action_bytes(self._instance, action, result.SerializeToString())

    async def put_action_bytes(self, instance: str, action: Digest, result: bytes) -> None:
        """As `put_action`, of that instance, and as it is."""
        head = pb.UpdateActionResultRequest(
            instance_name=instance,
            action_digest=message_of(action),
            digest_function=_function(action),
        )
        await self._put(update_action_request(head, result))

    async def clock(self) -> float | None:
        return None

    async def status(self) -> dict[str, Any] | None:
        return None

    async def close(self) -> None:
        await self._channel.close()


def _blobs(digest: Digest, zstd: bool) -> str:
    function = f"{digest.function.name}/" if digest.function.in_names else ""
    return f"{'compressed-blobs/zstd' if zstd else 'blobs'}/{function}{digest.hex}/{digest.size}"


def _function(digest: Digest) -> str:
    """REAPI's name of its digest function."""
    return digest.function.name.upper()


def _read(file: Path | None) -> bytes | None:
    return file.read_bytes() if file else None


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _patience(size: int) -> float:
    return UNARY_SECONDS + size / SLOWEST


def _channel(remote: Remote, credentials: Credentials) -> grpc.aio.Channel:
    options: Sequence[tuple[str, Any]] = _OPTIONS
    if not remote.tls:
        return grpc.aio.insecure_channel(remote.target, options=options)
    return grpc.aio.secure_channel(
        remote.target,
        grpc.ssl_channel_credentials(
            root_certificates=_read(credentials.ca),
            private_key=_read(credentials.key),
            certificate_chain=_read(credentials.certificate),
        ),
        options=options,
    )


async def _ended(call: Any) -> Any:
    """The answer of a call that ended while it was written to, or the error that it ended with."""
    for _ in range(_LOOKS):
        try:
            return await call
        except grpc.RpcError as error:
            if error.details() != _NOT_TOLD_YET:
                raise
        await asyncio.sleep(_LOOK_SECONDS)
    return await call
