"""Capabilities, health, reflection and connections, with stock clients.

Sources: REAPI's comments on service Capabilities and its messages, design §5, and gRPC's
documents on health checking, server reflection and keepalive.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import Client, fails, fresh
from tests.conformance.conftest import Start
from tests.conformance.serving import PATIENCE

SERVICES = [
    "google.bytestream.ByteStream",
    "build.bazel.remote.execution.v2.ContentAddressableStorage",
    "build.bazel.remote.execution.v2.ActionCache",
    "build.bazel.remote.execution.v2.Capabilities",
]


def capabilities(client: Client, instance: str = "") -> pb.ServerCapabilities:
    request = pb.GetCapabilitiesRequest(instance_name=instance)
    answer: pb.ServerCapabilities = client.get_capabilities(request, timeout=PATIENCE)
    return answer


@pytest.mark.parametrize("instance", ["", "main", "a/b/c"])
def test_a_cache_returns_its_cache_capabilities(client: Client, instance: str) -> None:
    """GetCapabilities: CAS and action cache only endpoints return CacheCapabilities.
    Design §5: execution is disabled."""
    answer = capabilities(client, instance)
    assert answer.HasField("cache_capabilities")
    assert not answer.execution_capabilities.exec_enabled


def test_versions(client: Client) -> None:
    """Design §5: REAPI 2.0 to 2.x."""
    answer = capabilities(client)
    assert (answer.low_api_version.major, answer.low_api_version.minor) == (2, 0)
    assert answer.high_api_version.major == 2
    assert answer.high_api_version.minor >= 3
    assert not answer.high_api_version.prerelease


def test_digest_functions(client: Client) -> None:
    """CacheCapabilities.digest_functions: all that are supported; and each of them works."""
    functions = capabilities(client).cache_capabilities.digest_functions
    assert pb.DigestFunction.SHA256 in functions
    assert pb.DigestFunction.UNKNOWN not in functions
    for function in functions:
        request = pb.FindMissingBlobsRequest(digest_function=function)
        client.find_missing_blobs(request, timeout=PATIENCE)


def test_action_results_may_be_written(client: Client) -> None:
    """ActionCacheUpdateCapabilities.update_enabled; Bazel uploads nothing without it."""
    update = capabilities(client).cache_capabilities.action_cache_update_capabilities
    assert update.update_enabled


def test_limits(client: Client) -> None:
    """CacheCapabilities: max_batch_total_size_bytes (below what clients take in a message is
    no use to anyone) and max_cas_blob_size_bytes."""
    cache = capabilities(client).cache_capabilities
    assert cache.max_batch_total_size_bytes == 4 << 20
    assert cache.max_cas_blob_size_bytes == 0 or cache.max_cas_blob_size_bytes >= 1 << 30


def test_absolute_symlinks_are_allowed(client: Client) -> None:
    """CacheCapabilities.symlink_absolute_path_strategy: a cache does not look at them."""
    cache = capabilities(client).cache_capabilities
    assert cache.symlink_absolute_path_strategy == pb.SymlinkAbsolutePathStrategy.ALLOWED


def test_only_what_is_served_is_announced(client: Client) -> None:
    """CacheCapabilities.supported_compressors, split_blob_support and the rest: a client takes
    the server by its word."""
    cache = capabilities(client).cache_capabilities
    blob = fresh(100)
    client.put(blob)
    for compressor in (pb.Compressor.ZSTD, pb.Compressor.DEFLATE, pb.Compressor.BROTLI):
        name = pb.Compressor.Value.Name(compressor).lower()
        compressed = f"compressed-blobs/{name}/{blob.hash}/{blob.size}"
        if compressor in cache.supported_compressors:
            assert client.read(compressed)
        else:
            with fails(grpc.StatusCode.INVALID_ARGUMENT, name):
                client.read(compressed)
    for method, served in (
        ("SplitBlob", cache.split_blob_support),
        ("SpliceBlob", cache.splice_blob_support),
    ):
        call: Any = client.channel.unary_unary(f"/{SERVICES[1]}/{method}")
        if not served:
            with fails(grpc.StatusCode.UNIMPLEMENTED):
                call(b"", timeout=PATIENCE)


@pytest.mark.parametrize("instance", ["/", "a//b", "..", "a\0b", "capabilities", "x" * 256])
def test_malformed_instances_are_refused(client: Client, instance: str) -> None:
    """REAPI: no segment of an instance name can be a keyword; nor what is unsafe in a path."""
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "instance name"):
        capabilities(client, instance)


@pytest.mark.parametrize(
    "method",
    [
        "build.bazel.remote.execution.v2.Execution/Execute",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/Nonsense",
        "no.such.Service/Method",
    ],
)
def test_what_is_not_served_is_unimplemented(client: Client, method: str) -> None:
    """gRPC: UNIMPLEMENTED where an operation is not supported."""
    call: Any = client.channel.unary_unary(f"/{method}")
    with fails(grpc.StatusCode.UNIMPLEMENTED):
        call(b"", timeout=PATIENCE)


# ---- Health


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_of_what_is_served(client: Client, service: str) -> None:
    """Health checking: SERVING for the server ("") and for each service."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_what_is_unknown(client: Client) -> None:
    """Health checking: NOT_FOUND for a service that the server does not know."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    with fails(grpc.StatusCode.NOT_FOUND):
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=PATIENCE)


def test_health_is_watched_until_the_drain(start: Start) -> None:
    """Health checking: Watch sends the status at once, and again whenever it changes."""
    server = start()
    with Client(server.address) as client:
        stub: Any = health_pb2_grpc.HealthStub(client.channel)
        statuses = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        statuses.cancel()
        stopping.join()


# ---- Reflection


def test_services_are_listed(client: Client) -> None:
    """Server reflection: list_services names everything that is served."""
    database = ProtoReflectionDescriptorDatabase(client.channel)
    listed = set(database.get_services())
    assert {*SERVICES, "grpc.health.v1.Health"} <= listed


def test_a_client_can_do_with_reflection_alone(client: Client) -> None:
    """Server reflection: enough to find a method's messages, and call it."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(client.channel))
    for service in SERVICES:
        assert pool.FindServiceByName(service).methods
    method = pool.FindServiceByName(SERVICES[1]).methods_by_name["FindMissingBlobs"]
    request_class = message_factory.GetMessageClass(method.input_type)
    response_class = message_factory.GetMessageClass(method.output_type)
    blob = fresh(10)
    request: Any = request_class()
    request.blob_digests.add(hash=blob.hash, size_bytes=blob.size)
    call: Any = client.channel.unary_unary(
        f"/{SERVICES[1]}/FindMissingBlobs",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )
    answer = call(request, timeout=PATIENCE)
    assert [digest.hash for digest in answer.missing_blob_digests] == [blob.hash]


# ---- Connections


def test_eager_pings_do_not_end_a_connection(client: Client, server: Any) -> None:
    """Design §5, keepalive: clients may ping as they like, with and without calls (gRPC's own
    default ends the connection after two pings within five minutes)."""
    options = (
        ("grpc.keepalive_time_ms", 50),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    seen: list[grpc.ChannelConnectivity] = []
    with Client(server.address, *options) as eager:
        capabilities(eager)
        eager.channel.subscribe(seen.append)
        # The client pings once a second at most; a strict server has had enough after three.
        time.sleep(4.5)
        capabilities(eager)
    assert set(seen) <= {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.SHUTDOWN}


def test_answers_may_be_compressed_by_grpc(server: Any) -> None:
    """gRPC: a client may compress its messages; the server says what it understands."""
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        call: Any = channel.unary_unary(
            f"/{SERVICES[3]}/GetCapabilities",
            request_serializer=pb.GetCapabilitiesRequest.SerializeToString,
            response_deserializer=pb.ServerCapabilities.FromString,
        )
        request = pb.GetCapabilitiesRequest(instance_name="a" * 200)
        assert call(request, timeout=PATIENCE).HasField("cache_capabilities")


def test_calls_past_their_deadline_harm_nobody(client: Client) -> None:
    """gRPC: DEADLINE_EXCEEDED; the connection and its other calls go on."""
    for _ in range(20):
        with client.writing(timeout=0.02) as stream:
            stream.send(fresh(100).upload, 0, b"x")
            with fails(grpc.StatusCode.DEADLINE_EXCEEDED):
                stream.result()
    capabilities(client)
