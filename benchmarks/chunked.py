"""Large blobs by chunks, as Bazel from 8.7 and 9.1 on sends and fetches them.

Rule: Bazel's order of calls.  To send: cut, FindMissingBlobs, a Write for each chunk that is
missing, SpliceBlob.  To fetch: SplitBlob, a Read for each chunk that is not here yet.  What is not
larger than the largest chunk goes whole.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any, Protocol

import grpc

from cas import fastcdc
from cas.pb import remote_execution_pb2 as pb

AVERAGE = 512 << 10
_CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage"


class Whole(Protocol):
    """How single blobs travel: a hash and the bytes, to the bytes of data in messages."""

    def write(self, digest: str, data: bytes) -> int: ...

    def read(self, digest: str, data: bytes) -> int: ...


class Chunked:
    """The same for blobs of any size, large ones by chunks."""

    def __init__(self, channel: grpc.Channel, whole: Whole) -> None:
        def method(name: str, response: Any) -> Any:
            return channel.unary_unary(
                f"{_CAS}/{name}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=response.FromString,
            )

        self._missing = method("FindMissingBlobs", pb.FindMissingBlobsResponse)
        self._split = method("SplitBlob", pb.SplitBlobResponse)
        self._splice = method("SpliceBlob", pb.SpliceBlobResponse)
        self._whole = whole
        self._local: set[str] = set()
        """Chunks that were fetched."""

    def write(self, digest: str, data: bytes) -> int:
        if not is_large(data):
            return self._whole.write(digest, data)
        chunks = cut(data)
        names = [_digest(chunk) for chunk in chunks]
        missing = self._missing(pb.FindMissingBlobsRequest(blob_digests=names))
        absent = {one.hash for one in missing.missing_blob_digests}
        sent = 0
        for name, chunk in zip(names, chunks, strict=True):
            if name.hash in absent:
                absent.remove(name.hash)
                sent += self._whole.write(name.hash, chunk)
        blob = pb.Digest(hash=digest, size_bytes=len(data))
        self._splice(
            pb.SpliceBlobRequest(
                blob_digest=blob,
                chunk_digests=names,
                chunking_function=pb.ChunkingFunction.FAST_CDC_2020,
            )
        )
        return sent

    def read(self, digest: str, data: bytes) -> int:
        """Raises ValueError where other bytes than `data` come."""
        if not is_large(data):
            return self._whole.read(digest, data)
        blob = pb.Digest(hash=digest, size_bytes=len(data))
        answer = self._split(
            pb.SplitBlobRequest(
                blob_digest=blob, chunking_function=pb.ChunkingFunction.FAST_CDC_2020
            )
        )
        received = at = 0
        for chunk in answer.chunk_digests:
            part = data[at : at + chunk.size_bytes]
            at += len(part)
            if chunk.hash not in self._local:
                received += self._whole.read(chunk.hash, part)
                self._local.add(chunk.hash)
            elif hashlib.sha256(part).hexdigest() != chunk.hash:
                raise ValueError(f"{digest} is told of wrong chunks")
        if at != len(data):
            raise ValueError(f"{digest} is told of chunks of {at} bytes")
        return received


def is_large(data: bytes) -> bool:
    return len(data) > fastcdc.sizes(AVERAGE).largest


def cut(data: bytes) -> list[bytes]:
    return [bytes(chunk.data) for chunk in fastcdc.cut(io.BytesIO(data), AVERAGE)]


def _digest(data: bytes) -> pb.Digest:
    return pb.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
