"""Asks a server directly what it can do and what it holds, through the generated `cas.pb` messages.

Imports grpc and cas.pb only when called: `run --help` and `setup` work before the project is
installed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import CheckError

if TYPE_CHECKING:
    from .tree import Entry

_SERVICE = "build.bazel.remote.execution.v2"


@contextmanager
def _connected(address: str) -> "Iterator[tuple[Any, Any]]":
    import grpc

    from cas.pb import remote_execution_pb2

    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            yield channel, remote_execution_pb2
        except grpc.RpcError as error:
            raise CheckError(f"the server at {address} answered: {error}") from error


def speaks_zstd(address: str) -> bool:
    """Whether the server's capabilities name zstd among its compressors (REAPI,
    CacheCapabilities).
    """
    with _connected(address) as (channel, pb):
        call = channel.unary_unary(
            f"/{_SERVICE}.Capabilities/GetCapabilities",
            request_serializer=pb.GetCapabilitiesRequest.SerializeToString,
            response_deserializer=pb.ServerCapabilities.FromString,
        )
        answer = call(pb.GetCapabilitiesRequest(), timeout=20)
        return pb.Compressor.ZSTD in answer.cache_capabilities.supported_compressors


def missing(address: str, instance: str, entries: "Iterable[Entry]") -> set[str]:
    """The SHA-256 hashes, in hex, of those files among `entries` that the server says it lacks."""
    with _connected(address) as (channel, pb):
        call = channel.unary_unary(
            f"/{_SERVICE}.ContentAddressableStorage/FindMissingBlobs",
            request_serializer=pb.FindMissingBlobsRequest.SerializeToString,
            response_deserializer=pb.FindMissingBlobsResponse.FromString,
        )
        request = pb.FindMissingBlobsRequest(instance_name=instance)
        for entry in entries:
            if entry.kind == "file":
                request.blob_digests.add(hash=entry.content, size_bytes=entry.size)
        return {digest.hash for digest in call(request, timeout=20).missing_blob_digests}
