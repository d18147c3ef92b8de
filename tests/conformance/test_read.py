"""ByteStream.Read, over a real connection.

Each test's docstring says which sentence it holds the server to: of the seed's comments
(bytestream.proto), of REAPI's on resource names, or of the project's design.
"""

from __future__ import annotations

import grpc
import pytest

from cas.pb import bytestream_pb2 as bs
from tests.conformance.client import EMPTY_HASH, KIB, MIB, Blob, Client, fails, fresh
from tests.conformance.serving import Server

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
NOT_FOUND = grpc.StatusCode.NOT_FOUND

SIZES = [8, 1000, 16 * KIB, 16 * KIB + 1, 3 * MIB + 17]
"""In the index, at its limit, in files."""


@pytest.fixture(params=SIZES)
def stored(request: pytest.FixtureRequest, client: Client) -> Blob:
    blob = fresh(request.param)
    assert client.upload(blob) == blob.size
    return blob


def test_contents_come_as_a_sequence_of_responses(client: Client, stored: Blob) -> None:
    """Read(): the bytes are returned in a sequence of responses."""
    assert client.read(stored.name) == stored.data


def test_a_large_blob_comes_in_messages_a_plain_client_takes(client: Client) -> None:
    """Read(): delivered as a stream; gRPC clients refuse messages above 4 MiB by default."""
    blob = fresh(20 * MIB)
    client.upload(blob)
    assert client.read(blob.name) == blob.data


def test_many_streams_that_dawdle_get_smaller_messages(server: Server) -> None:
    """Memory is bounded, whatever clients do: design of this project."""
    blob = fresh(3 * MIB + 17)
    # A client that takes little ahead of what it was asked for.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * KIB)]
    with Client(server.address, *options) as client:
        client.upload(blob)
        streams = [client.reading(blob.name) for _ in range(100)]
        firsts = [next(stream).data for stream in streams]
        contents = [
            first + b"".join(response.data for response in stream)
            for first, stream in zip(firsts, streams, strict=True)
        ]
    assert contents == [blob.data] * len(streams)
    assert {len(first) for first in firsts} == {1 * MIB, 128 * KIB}


def test_reading_starts_at_the_offset(client: Client, stored: Blob) -> None:
    """ReadRequest.read_offset: the first byte to return, relative to the start."""
    for offset in {0, 1, stored.size // 2, stored.size - 1}:
        assert client.read(stored.name, offset) == stored.data[offset:]


def test_an_offset_at_the_end_gives_nothing(client: Client, stored: Blob) -> None:
    """read_offset: only one *greater* than the size is out of range."""
    assert client.read(stored.name, stored.size) == b""


@pytest.mark.parametrize("offset", [-1, -(2**63)])
def test_a_negative_offset_is_out_of_range(client: Client, stored: Blob, offset: int) -> None:
    """ReadRequest.read_offset: one that is negative will cause OUT_OF_RANGE."""
    with fails(OUT_OF_RANGE, str(offset)):
        client.read(stored.name, offset)


@pytest.mark.parametrize("beyond", [1, 1000, 2**62])
def test_an_offset_beyond_the_end_is_out_of_range(
    client: Client, stored: Blob, beyond: int
) -> None:
    """ReadRequest.read_offset: one that is greater than the size will cause OUT_OF_RANGE."""
    with fails(OUT_OF_RANGE, str(stored.size + beyond), str(stored.size)):
        client.read(stored.name, stored.size + beyond)


def test_the_limit_bounds_the_sum_of_all_responses(client: Client, stored: Blob) -> None:
    """ReadRequest.read_limit: most `data` bytes that the sum of all responses may have."""
    for limit in {1, stored.size // 2, stored.size}:
        assert client.read(stored.name, 0, limit) == stored.data[:limit]


def test_a_limit_of_zero_is_no_limit(client: Client, stored: Blob) -> None:
    """ReadRequest.read_limit: zero indicates that there is none."""
    assert client.read(stored.name, 0, 0) == stored.data


@pytest.mark.parametrize("limit", [-1, -(2**63)])
def test_a_negative_limit_is_an_error(client: Client, stored: Blob, limit: int) -> None:
    """ReadRequest.read_limit: a negative one will cause an error."""
    with fails(INVALID, str(limit)):
        client.read(stored.name, 0, limit)


@pytest.mark.parametrize("limit", [1, 10, 2**63 - 1])
def test_fewer_bytes_than_the_limit_are_all_to_the_end(
    client: Client, stored: Blob, limit: int
) -> None:
    """ReadRequest.read_limit: a stream with fewer bytes than that includes all to the end."""
    offset = stored.size - 1
    assert client.read(stored.name, offset, limit) == stored.data[offset:]


def test_offset_and_limit_together(client: Client) -> None:
    """ReadRequest: both apply, across the server's own message and block sizes."""
    blob = fresh(3 * MIB)
    client.upload(blob)
    for offset, limit in ((MIB - 1, 2), (MIB, MIB), (1, 2 * MIB), (2 * MIB + 1, 5), (100, 70_000)):
        assert client.read(blob.name, offset, limit) == blob.data[offset : offset + limit]


def test_what_is_not_there_is_not_found(client: Client) -> None:
    """Design §5, Read: missing is NOT_FOUND."""
    blob = fresh(10)
    with fails(NOT_FOUND, blob.hash):
        client.read(blob.name)


def test_an_offset_into_what_is_not_there_is_not_found(client: Client) -> None:
    """Design §5, Read: missing is NOT_FOUND, wherever in it one would read."""
    blob = fresh(10)
    with fails(NOT_FOUND, blob.hash):
        client.read(blob.name, 10)


@pytest.mark.parametrize("difference", [-1, 1, 1000])
def test_another_size_is_not_found(client: Client, stored: Blob, difference: int) -> None:
    """REAPI, Digest: the size is an integral part; with the wrong one the request is rejected.
    Design §5, Read: a size in the name that is not the blob's is NOT_FOUND."""
    with fails(NOT_FOUND, stored.hash):
        client.read(f"blobs/{stored.hash}/{stored.size + difference}")


def test_size_zero_with_another_hash_is_not_found(client: Client) -> None:
    """REAPI, Digest: only the hash of nothing goes with size 0."""
    blob = fresh(10)
    client.upload(blob)
    with fails(NOT_FOUND, blob.hash):
        client.read(f"blobs/{blob.hash}/0")


def test_an_unfinished_upload_cannot_be_read(client: Client) -> None:
    """Write(): a resource is not viewed as complete before finish_write."""
    blob = fresh(100)
    client.write([bs.WriteRequest(resource_name=blob.upload, data=blob.data)])
    with fails(NOT_FOUND, blob.hash):
        client.read(blob.name)


@pytest.mark.parametrize("prefix", ["", "main/", "a/b/"])
def test_the_empty_blob_is_always_there(client: Client, prefix: str) -> None:
    """REAPI: servers must behave as though empty blobs are always available."""
    assert client.read(f"{prefix}blobs/{EMPTY_HASH}/0") == b""
    with fails(OUT_OF_RANGE, "1"):
        client.read(f"{prefix}blobs/{EMPTY_HASH}/0", 1)


@pytest.mark.parametrize("instance", ["main", "a/b/c", "ünï cöde"])
def test_contents_are_shared_by_all_instances(client: Client, instance: str) -> None:
    """Design §4: content is shared by all instances."""
    blob = fresh(50)
    client.upload(blob, name=f"other/{blob.upload}")
    assert client.read(f"{instance}/{blob.name}") == blob.data
    assert client.read(blob.name) == blob.data


def test_an_uploads_name_cannot_be_read(client: Client) -> None:
    """REAPI: a ReadRequest's name is [instance/]blobs/…"""
    blob = fresh(10)
    client.upload(blob)
    with fails(INVALID, blob.uuid, "upload"):
        client.read(blob.upload)


def test_the_resource_name_header_may_be_sent(client: Client) -> None:
    """REAPI: requests may come with the name in a plain text header as well."""
    blob = fresh(10)
    header = (("build.bazel.remote.execution.v2.resource-name", blob.name),)
    client.upload(blob)
    assert client.read(blob.name, metadata=header) == blob.data


def test_a_reader_that_stops_midway_harms_nobody(client: Client) -> None:
    """Design §4, invariant 6: readers do not block anyone; a cancelled stream is let go."""
    blob = fresh(32 * MIB)
    client.upload(blob)
    for _ in range(20):
        stream = client.reading(blob.name)
        assert next(stream).data
        stream.cancel()
    assert client.read(blob.name, blob.size - 5) == blob.data[-5:]


def test_many_readers_at_once(client: Client) -> None:
    """Read(): streams are independent of each other."""
    blob = fresh(2 * MIB)
    client.upload(blob)
    streams = [client.reading(blob.name) for _ in range(16)]
    # All of them begun, and then each read to its end.
    firsts = [next(stream).data for stream in streams]
    for first, stream in zip(firsts, streams, strict=True):
        assert first + b"".join(part.data for part in stream) == blob.data
