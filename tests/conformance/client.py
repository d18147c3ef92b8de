"""The stock grpcio client, and blobs to try the server with.

Rule: no code of the server besides the generated messages: digests and names are made here
anew, so that one mistake cannot hide in both.
"""

from __future__ import annotations

import hashlib
import queue
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from google.protobuf.message import Message

from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from tests.conformance.serving import PATIENCE

Metadata = Sequence[tuple[str, str | bytes]]

KIB = 1 << 10
MIB = 1 << 20

EMPTY_HASH = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

METADATA_KEY = "build.bazel.remote.execution.v2.requestmetadata-bin"


def request_metadata(tool: str = "bazel", version: str = "7.4.0") -> Metadata:
    """What Bazel tells of itself with each call."""
    said = pb.RequestMetadata(
        tool_details=pb.ToolDetails(tool_name=tool, tool_version=version),
        tool_invocation_id=str(uuid.uuid4()),
    )
    return ((METADATA_KEY, said.SerializeToString()),)


@dataclass(frozen=True)
class Blob:
    """Bytes and their digest; `upload` is a name to upload them under, another for each blob."""

    data: bytes = field(repr=False)
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> pb.Digest:
        return pb.Digest(hash=self.hash, size_bytes=self.size)

    @property
    def name(self) -> str:
        return f"blobs/{self.hash}/{self.size}"

    @property
    def upload(self) -> str:
        return f"uploads/{self.uuid}/{self.name}"

    def renamed(self) -> Blob:
        """The same bytes, to be uploaded under another name."""
        return Blob(self.data)


def fresh(size: int) -> Blob:
    """A blob of `size` bytes that no server has seen."""
    assert size >= 8, "fewer bytes may have come up before"
    # One random number generator per blob: a hundred MiB from the system's own takes longer.
    return Blob(random.Random(uuid.uuid4().int).randbytes(size))


def message(content: Message) -> Blob:
    return Blob(content.SerializeToString(deterministic=True))


class Client:
    """One connection to a server."""

    def __init__(
        self,
        address: str,
        *options: tuple[str, int],
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        more = [("grpc.use_local_subchannel_pool", 1), *options]
        self.channel = (
            grpc.insecure_channel(address, options=more)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=more)
        )
        stream = "/google.bytestream.ByteStream/"
        self._read = self._method("unary_stream", stream + "Read", bs.ReadResponse)
        self._write = self._method("stream_unary", stream + "Write", bs.WriteResponse)
        self._query = self._method(
            "unary_unary", stream + "QueryWriteStatus", bs.QueryWriteStatusResponse
        )
        content = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
        self.find_missing_blobs = self._method(
            "unary_unary", content + "FindMissingBlobs", pb.FindMissingBlobsResponse
        )
        self.batch_update_blobs = self._method(
            "unary_unary", content + "BatchUpdateBlobs", pb.BatchUpdateBlobsResponse
        )
        self.batch_read_blobs = self._method(
            "unary_unary", content + "BatchReadBlobs", pb.BatchReadBlobsResponse
        )
        self.get_tree = self._method("unary_stream", content + "GetTree", pb.GetTreeResponse)
        self.split_blob = self._method("unary_unary", content + "SplitBlob", pb.SplitBlobResponse)
        self.splice_blob = self._method(
            "unary_unary", content + "SpliceBlob", pb.SpliceBlobResponse
        )
        actions = "/build.bazel.remote.execution.v2.ActionCache/"
        self.get_action_result = self._method(
            "unary_unary", actions + "GetActionResult", pb.ActionResult
        )
        self.update_action_result = self._method(
            "unary_unary", actions + "UpdateActionResult", pb.ActionResult
        )
        self.get_capabilities = self._method(
            "unary_unary",
            "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
            pb.ServerCapabilities,
        )

    def _method(self, kind: str, path: str, response: type[Message]) -> Any:
        return getattr(self.channel, kind)(
            path,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.channel.close()

    # ---- ByteStream

    def read(self, name: str, offset: int = 0, limit: int = 0, metadata: Metadata = ()) -> bytes:
        return b"".join(part.data for part in self.reading(name, offset, limit, metadata))

    def reading(self, name: str, offset: int = 0, limit: int = 0, metadata: Metadata = ()) -> Any:
        """A Read call, to be iterated."""
        request = bs.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        return self._read(request, timeout=PATIENCE, metadata=metadata)

    def write(self, requests: Iterable[bs.WriteRequest], metadata: Metadata = ()) -> int:
        """Sends the requests and half-closes; the committed size."""
        response = self._write(iter(requests), timeout=PATIENCE, metadata=metadata)
        size: int = response.committed_size
        return size

    def upload(
        self,
        blob: Blob,
        *,
        name: str | None = None,
        offset: int = 0,
        step: int = MIB,
        metadata: Metadata = (),
    ) -> int:
        """Uploads what follows `offset` in one call; the committed size."""
        return self.write(upload_requests(blob, name, offset, step), metadata)

    def writing(self, metadata: Metadata = (), timeout: float = PATIENCE) -> WriteStream:
        """A Write call to be sent message by message."""
        return WriteStream(self._write, metadata, timeout)

    def query(self, name: str, metadata: Metadata = ()) -> tuple[int, bool]:
        """(committed size, complete)."""
        response = self._query(
            bs.QueryWriteStatusRequest(resource_name=name), timeout=PATIENCE, metadata=metadata
        )
        return response.committed_size, response.complete

    def committed(self, name: str) -> int | None:
        """The committed size of an upload that is not complete; None if there is none yet."""
        with tolerated(grpc.StatusCode.NOT_FOUND):
            size, complete = self.query(name)
            assert not complete
            return size
        return None

    # ---- ContentAddressableStorage

    def missing(self, *blobs: Blob, instance: str = "") -> list[pb.Digest]:
        request = pb.FindMissingBlobsRequest(
            instance_name=instance, blob_digests=[blob.digest for blob in blobs]
        )
        return list(self.find_missing_blobs(request, timeout=PATIENCE).missing_blob_digests)

    def put(self, *blobs: Blob) -> None:
        """Uploads small blobs in one call; all of them are there afterwards."""
        request = pb.BatchUpdateBlobsRequest(
            requests=[
                pb.BatchUpdateBlobsRequest.Request(digest=blob.digest, data=blob.data)
                for blob in blobs
            ]
        )
        for response in self.batch_update_blobs(request, timeout=PATIENCE).responses:
            assert response.status.code == 0, response


class WriteStream:
    """A Write call whose messages are sent one by one; ended when its block is left."""

    def __init__(self, method: Any, metadata: Metadata, timeout: float) -> None:
        self._messages: queue.SimpleQueue[bs.WriteRequest | None] = queue.SimpleQueue()
        self.call = method.future(
            iter(self._messages.get, None), timeout=timeout, metadata=metadata
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.call.cancel()
        self._messages.put(None)

    def send(
        self, name: str = "", offset: int = 0, data: bytes = b"", *, finish: bool = False
    ) -> None:
        self._messages.put(
            bs.WriteRequest(resource_name=name, write_offset=offset, data=data, finish_write=finish)
        )

    def all_sent(self) -> bool:
        """Whether the client's transport has taken every message but, at most, the last; or never
        will, because the server has ended the call."""
        return self._messages.empty() or self.call.done()

    def half_close(self) -> None:
        self._messages.put(None)

    def result(self) -> int:
        """The committed size once the call is over."""
        size: int = self.call.result(timeout=PATIENCE).committed_size
        return size


def upload_requests(
    blob: Blob, name: str | None = None, offset: int = 0, step: int = MIB
) -> Iterator[bs.WriteRequest]:
    """Messages that upload what follows `offset`; the name is in the first only."""
    resource = name or blob.upload
    while True:
        end = min(offset + step, blob.size)
        yield bs.WriteRequest(
            resource_name=resource,
            write_offset=offset,
            data=blob.data[offset:end],
            finish_write=end == blob.size,
        )
        if end == blob.size:
            return
        resource, offset = "", end


@contextmanager
def tolerated(*codes: grpc.StatusCode) -> Iterator[None]:
    """What is called inside may end with one of these; it is left undone then."""
    try:
        yield
    except grpc.RpcError as error:
        if error.code() not in codes:
            raise


@contextmanager
def fails(code: grpc.StatusCode, *mentioned: str) -> Iterator[None]:
    """What is called inside ends with `code` and a message that mentions all of these."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error: Any = caught.value
    assert error.code() is code, f"{error.code()}: {error.details()}"
    for text in mentioned:
        assert text in error.details()


def until(condition: Callable[[], object]) -> None:
    """Waits for what is bound to happen."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
