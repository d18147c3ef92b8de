"""Fetch and Push: the Remote Asset API.

Rule: what is kept, and until when, is `cas.reapi.assets`' to say, and `cas.reapi.origin`'s what
may be fetched from where it is published; here are the messages.  What stands in the way outside
of the server is told in the response's status.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from cas import digest as digests
from cas.api import caller, names, status
from cas.api.gate import Gate
from cas.api.limits import Limits
from cas.api.status import guarded
from cas.digest import SHA256, Digest
from cas.errors import InvalidArgument, LimitExceeded, PermissionDenied, Unauthenticated
from cas.pb import asset_pb2 as pb
from cas.pb import remote_execution_pb2
from cas.reapi import assets, authors, integrity
from cas.reapi.assets import Asset, Kind, Place
from cas.reapi.integrity import Checksum
from cas.reapi.origin import FetchError, Origins, Wanted, Why
from cas.store.interface import BlobStore
from cas.store.pending import Pending

if TYPE_CHECKING:
    from cas.rpc.handler import Context, Runtime

FETCH = "build.bazel.remote.asset.v1.Fetch"
PUSH = "build.bazel.remote.asset.v1.Push"

FetchRequest = pb.FetchBlobRequest | pb.FetchDirectoryRequest
PushRequest = pb.PushBlobRequest | pb.PushDirectoryRequest
Response = TypeVar("Response", pb.FetchBlobResponse, pb.FetchDirectoryResponse)


CHECKSUM = "checksum.sri"
CANONICAL_ID = "bazel.canonical_id"
"""What Bazel tells downloads apart by; nothing of their content."""

_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
_CODES: dict[Why, grpc.StatusCode] = {
    "absent": grpc.StatusCode.NOT_FOUND,
    "refused": grpc.StatusCode.PERMISSION_DENIED,
    "late": grpc.StatusCode.DEADLINE_EXCEEDED,
    "broken": grpc.StatusCode.ABORTED,
    "too large": _EXHAUSTED,
}


class Assets:
    """The servicer of both services."""

    def __init__(
        self,
        store: BlobStore,
        runtime: Runtime,
        limits: Limits,
        gate: Gate | None = None,
        origins: Origins | None = None,
    ) -> None:
        """Without `origins` only what was pushed is found."""
        self._origins = origins
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
        if found is None and self._origins is not None and self._may_fetch(context):
            found = await self._fetch(self._origins, request, response, context)
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

    # --- from an origin

    def _may_fetch(self, context: Context) -> bool:
        """It writes: who may not gets what is here."""
        try:
            return self._gate is None or self._gate.keeps(context)
        except (PermissionDenied, Unauthenticated):
            return False

    async def _fetch(
        self,
        origins: Origins,
        request: pb.FetchBlobRequest,
        response: pb.FetchBlobResponse,
        context: Context,
    ) -> Asset | None:
        """What the first of the origins gives; what stands in the way goes into the response."""
        urls = [uri for uri in request.uris if uri.startswith(("http://", "https://"))]
        if not urls:
            return None
        function = self._limits.functions.by_number[response.digest_function]
        qualifiers = assets.qualifiers_of(request.qualifiers)
        checksums = _checksums(qualifiers)
        seconds = origins.options.timeout
        if request.HasField("timeout"):
            given = request.timeout.seconds + request.timeout.nanos / 10**9
            if given <= 0:
                raise InvalidArgument(f"timeout is {given:g} s; expected more than 0")
            seconds = min(seconds, given)
        place = Place(context.instance, "blob", function, qualifiers)
        until = time.monotonic() + seconds
        for url in urls:
            began = _now()
            left = until - time.monotonic()
            if left <= 0:
                break
            response.uri = url
            try:
                wanted = Wanted(url, function, checksums, left)
                keep = partial(self._keep, place, url, began)
                digest = await self._runtime.wait(origins.begin(wanted, keep))
            except (FetchError, LimitExceeded) as error:
                code = _CODES[error.why] if isinstance(error, FetchError) else _EXHAUSTED
                response.status.code = status.number(code)
                response.status.message = str(error)
                continue
            response.ClearField("status")
            response.qualifiers.extend(request.qualifiers)
            return Asset(url, digest, began, None)
        return None

    def _keep(self, place: Place, url: str, began: int, digest: Digest) -> Pending[None]:
        return assets.keep_fetched(self._store, place, Asset(url, digest, began, None))

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


def _checksums(qualifiers: assets.Qualifiers) -> list[Checksum]:
    """Raises InvalidArgument for a qualifier that a fetch cannot hold content to."""
    for name, _ in qualifiers:
        if name not in {CHECKSUM, CANONICAL_ID}:
            raise InvalidArgument(f"{digests.shorten(name)} not supported: no fetch can hold to it")
    given = dict(qualifiers).get(CHECKSUM)
    return [] if given is None else integrity.parse(given)


def _message(digest: Digest) -> remote_execution_pb2.Digest:
    return remote_execution_pb2.Digest(hash=digest.hex, size_bytes=digest.size)


def _now() -> int:
    return int(time.time() * 1000)


def _milliseconds(stamp: Timestamp) -> int:
    """Raises InvalidArgument for what no Timestamp may be."""
    if not 0 <= stamp.nanos < 10**9:
        raise InvalidArgument(f"a timestamp has {stamp.nanos} nanos; expected 0 to 999,999,999")
    return stamp.seconds * 1000 + stamp.nanos // 10**6
