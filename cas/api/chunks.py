"""SplitBlob and SpliceBlob, the part of ContentAddressableStorage for clients that chunk.

Rule: messages; what is cut, joined and kept is `cas.reapi.chunks`' to say.  Whoever may read a blob
may have it split, though that stores its chunks: it is for readers that blobs are split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from cas import digest as digests
from cas.api import names
from cas.api.content import SERVICE
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.api.status import guarded
from cas.digest import Digest
from cas.pb import remote_execution_pb2 as pb
from cas.reapi.chunks import Chunks, Split
from cas.store.pending import Pending

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime

_MANY = 500
"""Chunks whose messages are a helper thread's to make: a millisecond."""


class Chunking:
    """The servicer."""

    def __init__(
        self, chunks: Chunks, runtime: Runtime, limits: Limits, gate: Gate | None = None
    ) -> None:
        self._chunks = chunks
        self._runtime = runtime
        self._limits = limits
        self._gate = gate

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "SplitBlob": grpc.unary_unary_rpc_method_handler(
                    guarded(self.split, self._gate),
                    request_deserializer=pb.SplitBlobRequest.FromString,
                ),
                "SpliceBlob": grpc.unary_unary_rpc_method_handler(
                    guarded(self.splice, self._gate),
                    request_deserializer=pb.SpliceBlobRequest.FromString,
                    response_serializer=pb.SpliceBlobResponse.SerializeToString,
                ),
            },
        )

    async def split(self, request: pb.SplitBlobRequest, context: Context) -> bytes:
        context.instance = names.check_instance(request.instance_name)
        if self._gate is not None:
            self._gate.read(context)
        digest = self._digest(request.blob_digest, request.digest_function)
        found = await self._runtime.wait(self._chunks.split(digest, request.chunking_function))
        if len(found.keys) > _MANY:
            return await self._runtime.offload(_answer, found)
        return _answer(found)

    async def splice(
        self, request: pb.SpliceBlobRequest, context: Context
    ) -> pb.SpliceBlobResponse:
        context.instance = names.check_instance(request.instance_name)
        digest = self._digest(request.blob_digest, request.digest_function)
        self._limits.check_blob(digest)
        if self._gate is None or self._gate.keeps(context):
            # Tens of thousands of chunks are looked up.
            await self._runtime.wait(await self._runtime.offload(self._splice, digest, request))
        return pb.SpliceBlobResponse(blob_digest=request.blob_digest)

    def _splice(self, digest: Digest, request: pb.SpliceBlobRequest) -> Pending[None]:
        # REAPI: blob and chunks have one function.
        chunks = [
            digests.parse(chunk.hash, chunk.size_bytes, digest.function)
            for chunk in request.chunk_digests
        ]
        return self._chunks.splice(digest, chunks, request.chunking_function)

    def _digest(self, message: pb.Digest, function: int) -> Digest:
        among = self._limits.functions
        return digests.parse(message.hash, message.size_bytes, among.of_number(function), among)


def _answer(split: Split) -> bytes:
    response = pb.SplitBlobResponse(chunking_function=split.function)  # type: ignore[arg-type]
    for digest in map(digests.from_key, split.keys):
        response.chunk_digests.add(hash=digest.hex, size_bytes=digest.size)
    return response.SerializeToString()
