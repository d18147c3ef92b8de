"""Fetch and Push: the Remote Asset API.

Rule: what is kept, and until when, is `cas.reapi.assets`' to say; here are the messages.  What
lies behind a URI is what a client has pushed; nothing is fetched from anywhere.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from cas import digest as digests
from cas.api import caller, names, status
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.api.status import guarded
from cas.digest import SHA256, Digest
from cas.errors import InvalidArgument
from cas.pb import asset_pb2 as pb
from cas.pb import remote_execution_pb2
from cas.reapi import assets, authors
from cas.reapi.assets import Asset, Kind, Place
from cas.store.interface import BlobStore

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime

FETCH = "build.bazel.remote.asset.v1.Fetch"
PUSH = "build.bazel.remote.asset.v1.Push"

FetchRequest = pb.FetchBlobRequest | pb.FetchDirectoryRequest
PushRequest = pb.PushBlobRequest | pb.PushDirectoryRequest
Response = TypeVar("Response", pb.FetchBlobResponse, pb.FetchDirectoryResponse)


class Assets:
    """The servicer of both services."""

    def __init__(
        self, store: BlobStore, runtime: Runtime, limits: Limits, gate: Gate | None = None
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._limits = limits
        self._gate = gate

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        return [
            grpc.method_handlers_generic_handler(
                FETCH,
                {
                    "FetchBlob": grpc.unary_unary_rpc_method_handler(
                        guarded(self.fetch_blob, self._gate),
                        request_deserializer=pb.FetchBlobRequest.FromString,
                        response_serializer=pb.FetchBlobResponse.SerializeToString,
                    ),
                    "FetchDirectory": grpc.unary_unary_rpc_method_handler(
                        guarded(self.fetch_directory, self._gate),
                        request_deserializer=pb.FetchDirectoryRequest.FromString,
                        response_serializer=pb.FetchDirectoryResponse.SerializeToString,
                    ),
                },
            ),
            grpc.method_handlers_generic_handler(
                PUSH,
                {
                    "PushBlob": grpc.unary_unary_rpc_method_handler(
                        guarded(self.push_blob, self._gate),
                        request_deserializer=pb.PushBlobRequest.FromString,
                        response_serializer=pb.PushBlobResponse.SerializeToString,
                    ),
                    "PushDirectory": grpc.unary_unary_rpc_method_handler(
                        guarded(self.push_directory, self._gate),
                        request_deserializer=pb.PushDirectoryRequest.FromString,
                        response_serializer=pb.PushDirectoryResponse.SerializeToString,
                    ),
                },
            ),
        ]

    # --- Fetch -----------------------------------------------------------------------

    async def fetch_blob(
        self, request: pb.FetchBlobRequest, context: Context
    ) -> pb.FetchBlobResponse:
        response = pb.FetchBlobResponse()
        found = self._find(request, "blob", response, context)
        if found is not None:
            response.blob_digest.CopyFrom(_message(found.digest))
        return response

    async def fetch_directory(
        self, request: pb.FetchDirectoryRequest, context: Context
    ) -> pb.FetchDirectoryResponse:
        response = pb.FetchDirectoryResponse()
        found = self._find(request, "directory", response, context)
        if found is not None:
            response.root_directory_digest.CopyFrom(_message(found.digest))
        return response

    def _find(
        self, request: FetchRequest, kind: Kind, response: Response, context: Context
    ) -> Asset | None:
        """What lies behind the first URI that has anything; all else of the response."""
        context.instance = names.check_instance(request.instance_name)
        if self._gate is not None:
            self._gate.read(context)
        # REAPI: not by the length of a hash, which there is none of.
        function = self._limits.functions.of_number(request.digest_function or SHA256.number)
        assert function is not None
        place = Place(context.instance, kind, function, assets.qualifiers_of(request.qualifiers))
        oldest, now = _milliseconds(request.oldest_content_accepted), _now()
        uris = assets.check_uris(request.uris)
        response.digest_function = function.number  # type: ignore[assignment]
        for uri in uris:
            found = assets.find(self._store, place, uri, oldest, now)
            if found is not None:
                response.uri = uri
                response.qualifiers.extend(request.qualifiers)
                return found
        response.uri = uris[0]
        response.status.code = status.number(grpc.StatusCode.NOT_FOUND)
        response.status.message = (
            f"no {kind} was pushed for {digests.shorten(uris[0], 300)}"
            f"{f' or its {len(uris) - 1} mirrors' * (len(uris) > 1)}, with just these qualifiers"
            f"{' and as new as asked for' * bool(oldest)}"
        )
        return None

    # --- Push ------------------------------------------------------------------------

    async def push_blob(self, request: pb.PushBlobRequest, context: Context) -> pb.PushBlobResponse:
        await self._push(request, "blob", request.blob_digest, context)
        return pb.PushBlobResponse()

    async def push_directory(
        self, request: pb.PushDirectoryRequest, context: Context
    ) -> pb.PushDirectoryResponse:
        await self._push(request, "directory", request.root_directory_digest, context)
        return pb.PushDirectoryResponse()

    async def _push(
        self,
        request: PushRequest,
        kind: Kind,
        content: remote_execution_pb2.Digest,
        context: Context,
    ) -> None:
        context.instance = names.check_instance(request.instance_name)
        among = self._limits.functions
        uris = assets.check_uris(request.uris)
        digest = digests.parse(
            content.hash, content.size_bytes, among.of_number(request.digest_function), among
        )
        function = digest.function
        blobs = assets.digests_of(request.references_blobs, function)
        directories = assets.digests_of(request.references_directories, function)
        place = Place(context.instance, kind, function, assets.qualifiers_of(request.qualifiers))
        expires = _milliseconds(request.expire_at) if request.HasField("expire_at") else None
        principal = ""
        if self._gate is not None:
            if not self._gate.keeps(context):
                return
            principal = context.caller.name
        said = caller.of(context)
        author = authors.pack(principal, context.peer(), said.label if said else "")
        now = _now()
        for uri in uris:
            await assets.keep(
                self._store,
                self._runtime,
                place,
                Asset(uri, digest, now, expires),
                blobs=blobs,
                directories=directories,
                author=author,
            )


def _message(digest: Digest) -> remote_execution_pb2.Digest:
    return remote_execution_pb2.Digest(hash=digest.hex, size_bytes=digest.size)


def _now() -> int:
    return int(time.time() * 1000)


def _milliseconds(stamp: Timestamp) -> int:
    """Raises InvalidArgument for what no Timestamp may be."""
    if not 0 <= stamp.nanos < 10**9:
        raise InvalidArgument(f"a timestamp has {stamp.nanos} nanos; expected 0 to 999,999,999")
    return stamp.seconds * 1000 + stamp.nanos // 10**6
