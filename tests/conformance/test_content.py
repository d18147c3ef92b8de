"""FindMissingBlobs, BatchUpdateBlobs and BatchReadBlobs, over a real connection.

Each test's docstring says which sentence it holds the server to: of REAPI's comments on
service ContentAddressableStorage and its messages, or of the design.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import EMPTY_HASH, KIB, MIB, Blob, Client, fails, fresh
from tests.conformance.conftest import Start
from tests.conformance.serving import PATIENCE

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OK, INVALID_NUMBER, NOT_FOUND_NUMBER = 0, 3, 5

LIMIT = 4 * MIB
"""max_batch_total_size_bytes, unless the server is told otherwise."""

EMPTY = Blob(b"")

HASH = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

BAD_DIGESTS = {
    "no hash": (pb.Digest(size_bytes=5), "''"),
    "too short": (pb.Digest(hash=HASH[:-1], size_bytes=5), HASH[:-1]),
    "too long": (pb.Digest(hash=HASH + "0", size_bytes=5), HASH),
    "another function's": (pb.Digest(hash="a" * 40, size_bytes=5), "a" * 40),
    "capitals": (pb.Digest(hash=HASH.upper(), size_bytes=5), HASH.upper()),
    "no hex": (pb.Digest(hash=HASH[:-1] + "g", size_bytes=5), HASH[:-1] + "g"),
    "a space": (pb.Digest(hash=HASH[:-1] + " ", size_bytes=5), HASH[:-1] + " "),
    "other digits": (pb.Digest(hash=HASH[:-1] + "٣", size_bytes=5), HASH[:-1]),
    "dots": (pb.Digest(hash="../" * 21 + ".", size_bytes=5), "../../"),
    "10 kB": (pb.Digest(hash="x" * 10_000, size_bytes=5), "x" * 40),
    "negative size": (pb.Digest(hash=HASH, size_bytes=-5), "-5"),
}

BAD_INSTANCES = ["/", "a/", "/a", "a//b", "..", "a/../b", "a\0b", "a\nb", "blobs", "x" * 256]


def bad_digests(function: Any) -> Any:
    return pytest.mark.parametrize(
        ("digest", "mentioned"), BAD_DIGESTS.values(), ids=BAD_DIGESTS.keys()
    )(function)


# ---- FindMissingBlobs


def find(
    client: Client, digests: Sequence[pb.Digest], instance: str = "", function: int = 0
) -> list[pb.Digest]:
    request = pb.FindMissingBlobsRequest(
        instance_name=instance,
        blob_digests=digests,
        digest_function=function,  # type: ignore[arg-type]
    )
    return list(client.find_missing_blobs(request, timeout=PATIENCE).missing_blob_digests)


@pytest.mark.parametrize("count", [1, 3, 15, 400, 5000])
def test_what_is_missing_is_told(client: Client, count: int) -> None:
    """FindMissingBlobs: determines if blobs are present; the response lists those that are
    not."""
    absent = [fresh(10 + i % 300).digest for i in range(count)]
    present = [fresh(10 + i) for i in range(min(count, 20))]
    client.put(*present)
    asked = [digest for blob in present for digest in (blob.digest, absent.pop())] + absent
    missing = [digest for digest in asked if digest.hash not in {blob.hash for blob in present}]
    assert find(client, asked) == missing
    assert find(client, missing) == missing
    assert find(client, [blob.digest for blob in present]) == []


@pytest.mark.parametrize("size", [8, 16 * KIB, 16 * KIB + 1, 3 * MIB])
def test_blobs_of_any_size_are_found(client: Client, size: int) -> None:
    """FindMissingBlobs: however a blob came, and wherever it is kept."""
    blob = fresh(size)
    assert client.missing(blob) == [blob.digest]
    client.upload(blob)
    assert client.missing(blob) == []


def test_nothing_asked_nothing_missing(client: Client) -> None:
    """FindMissingBlobs: there are no method-specific errors."""
    assert find(client, []) == []


def test_the_empty_blob_is_never_missing(client: Client) -> None:
    """REAPI: servers must behave as though empty blobs are always available."""
    assert find(client, [EMPTY.digest]) == []
    absent = [fresh(100).digest for _ in range(30)]
    assert find(client, [EMPTY.digest, *absent, EMPTY.digest]) == absent


def test_another_size_is_missing(client: Client) -> None:
    """Digest: the size is an integral part of it."""
    blob = fresh(100)
    client.put(blob)
    for size in (99, 101, 0, 2**40):
        other = pb.Digest(hash=blob.hash, size_bytes=size)
        assert find(client, [other]) == [other]


def test_a_digest_asked_twice(client: Client) -> None:
    """FindMissingBlobs: nothing forbids to name one twice."""
    blob, absent = fresh(10), fresh(10)
    client.put(blob)
    missing = find(client, [blob.digest, absent.digest, blob.digest, absent.digest])
    assert {digest.hash for digest in missing} == {absent.hash}


def test_content_is_found_from_any_instance(client: Client) -> None:
    """Design §4: content is shared by all instances."""
    blob = fresh(10)
    client.upload(blob, name=f"one/{blob.upload}")
    for instance in ("", "one", "two/three"):
        assert find(client, [blob.digest], instance) == []


def test_the_digest_function_may_be_told_or_left_out(client: Client) -> None:
    """FindMissingBlobsRequest.digest_function: for SHA256 the client may leave it unset."""
    blob, absent = fresh(10), fresh(10)
    client.put(blob)
    for function in (pb.DigestFunction.UNKNOWN, pb.DigestFunction.SHA256):
        assert find(client, [blob.digest, absent.digest], function=function) == [absent.digest]


@pytest.mark.parametrize("function", [2, 3, 6, 8, 99, -1])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_a_function_not_served_is_refused(client: Client, function: int, count: int) -> None:
    """FindMissingBlobsRequest.digest_function: one of those that capabilities announce."""
    if count:
        digests = [fresh(10).digest for _ in range(count)]
        with fails(INVALID, str(function), "sha256"):
            find(client, digests, function=function)
    else:
        with fails(INVALID, str(function), "sha256"):
            find(client, [], function=function)


@bad_digests
@pytest.mark.parametrize("others", [0, 1, 200])
def test_a_malformed_digest_is_named(
    client: Client, digest: pb.Digest, mentioned: str, others: int
) -> None:
    """Design §5: malformed hashes and sizes are INVALID_ARGUMENT everywhere."""
    digests = [fresh(300).digest for _ in range(others)]
    digests.insert(others // 2, digest)
    with fails(INVALID, mentioned):
        find(client, digests)


@pytest.mark.parametrize("instance", BAD_INSTANCES)
def test_malformed_instances_are_refused(client: Client, instance: str) -> None:
    """REAPI: no segment of an instance name can be a keyword; nor what is unsafe in a path."""
    with fails(INVALID, "instance name", repr(instance)[1:5]):
        find(client, [fresh(10).digest], instance)
    with fails(INVALID, "instance name"):
        client.batch_update_blobs(
            pb.BatchUpdateBlobsRequest(instance_name=instance), timeout=PATIENCE
        )
    with fails(INVALID, "instance name"):
        client.batch_read_blobs(pb.BatchReadBlobsRequest(instance_name=instance), timeout=PATIENCE)


def test_bytes_that_are_no_request_are_refused(client: Client) -> None:
    """Malformed messages are the client's fault, and said to be."""
    service = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
    for method in ("FindMissingBlobs", "BatchUpdateBlobs", "BatchReadBlobs"):
        call: Any = client.channel.unary_unary(service + method)
        for raw in (b"\x0a\x05x", b"\x12\x02\x0a\x05", b"\xff", b"\x0a\x02\xff\xfe"):
            with fails(INVALID, "no well-formed build.bazel.remote.execution.v2."):
                call(raw, timeout=PATIENCE)


# ---- BatchUpdateBlobs

Item = tuple[pb.Digest, bytes]


def update(
    client: Client, items: Sequence[Item], *, compressor: int = 0, function: int = 0
) -> list[tuple[int, str]]:
    """(status code, message) of each, in order."""
    request = pb.BatchUpdateBlobsRequest(
        instance_name="main",
        requests=[
            pb.BatchUpdateBlobsRequest.Request(
                digest=digest,
                data=data,
                compressor=compressor,  # type: ignore[arg-type]
            )
            for digest, data in items
        ],
        digest_function=function,  # type: ignore[arg-type]
    )
    responses = client.batch_update_blobs(request, timeout=PATIENCE).responses
    assert [response.digest for response in responses] == [digest for digest, _ in items]
    return [(response.status.code, response.status.message) for response in responses]


def items(blobs: Sequence[Blob]) -> list[Item]:
    return [(blob.digest, blob.data) for blob in blobs]


@pytest.mark.parametrize("sizes", [[8], [10] * 100, [8, 16 * KIB, 16 * KIB + 1, MIB], [3 * MIB]])
def test_many_blobs_at_once(client: Client, sizes: list[int]) -> None:
    """BatchUpdateBlobs: uploads many blobs at once, as if each had been written."""
    blobs = [fresh(size) for size in sizes]
    assert update(client, items(blobs)) == [(OK, "")] * len(blobs)
    assert client.missing(*blobs) == []
    for blob in blobs[:5]:
        assert client.read(blob.name) == blob.data


def test_an_empty_batch(client: Client) -> None:
    """BatchUpdateBlobs: no blobs, no responses."""
    assert update(client, []) == []


def test_the_empty_blob_may_be_in_a_batch(client: Client) -> None:
    """REAPI: clients may optimize away the uploading of empty blobs; so they need not."""
    assert update(client, items([EMPTY])) == [(OK, "")]


def test_blobs_that_are_there_already(client: Client) -> None:
    """BatchUpdateBlobs: equivalent to Write, which ends well for what is there."""
    blob = fresh(100)
    for _ in range(2):
        assert update(client, items([blob, blob])) == [(OK, "")] * 2


def test_one_bad_blob_never_fails_the_others(client: Client) -> None:
    """BatchUpdateBlobs: the requests may succeed or fail independently; INVALID_ARGUMENT for a
    digest that does not match the data.  Design §5: each blob has its own status."""
    good = [fresh(100), fresh(100 * KIB), fresh(100)]
    wrong, wrong_size, short, long = fresh(100), fresh(100), fresh(100), fresh(100)
    asked = [
        (good[0].digest, good[0].data),
        (wrong.digest, fresh(100).data),
        (pb.Digest(hash=wrong_size.hash, size_bytes=99), wrong_size.data),
        (good[1].digest, good[1].data),
        (short.digest, short.data[:-1]),
        (long.digest, long.data + b"x"),
        (good[2].digest, good[2].data),
    ]
    statuses = update(client, asked)
    assert [code for code, _ in statuses] == [OK, 3, 3, OK, 3, 3, OK]
    for place, blob in ((1, wrong), (2, wrong_size), (4, short), (5, long)):
        assert blob.hash in statuses[place][1]
    assert client.missing(*good) == []
    assert len(client.missing(wrong, wrong_size, short, long)) == 4


@bad_digests
def test_a_malformed_digest_in_a_batch_is_its_own_error(
    client: Client, digest: pb.Digest, mentioned: str
) -> None:
    """Design §5: one bad blob never fails the others."""
    before, after = fresh(10), fresh(20)
    asked = [(before.digest, before.data), (digest, b"hello"), (after.digest, after.data)]
    statuses = update(client, asked)
    assert [code for code, _ in statuses] == [OK, INVALID_NUMBER, OK]
    assert mentioned in statuses[1][1]
    assert client.missing(before, after) == []


@pytest.mark.parametrize("compressor", [2, 3, 99])
def test_a_compressor_not_served_is_its_blobs_error(client: Client, compressor: int) -> None:
    """BatchUpdateBlobsRequest.compressor: must be identity or one that is advertised."""
    blob = fresh(100)
    ((code, message),) = update(client, items([blob]), compressor=compressor)
    assert code == INVALID_NUMBER
    assert str(compressor) in message
    assert client.missing(blob) == [blob.digest]


@pytest.mark.parametrize("count", [1, 30])
def test_a_function_not_served_is_not_looked_for(client: Client, count: int) -> None:
    """FindMissingBlobsRequest.digest_function: one of those that capabilities announce."""
    asked = [pb.Digest(hash=f"{number:040x}", size_bytes=5) for number in range(count)]
    with fails(INVALID, "2 (sha1)", "1 (sha256), 9 (blake3)"):
        client.find_missing_blobs(
            pb.FindMissingBlobsRequest(blob_digests=asked, digest_function=pb.DigestFunction.SHA1),
            timeout=PATIENCE,
        )
    with fails(INVALID, "40 characters", "64 (sha256)"):
        client.find_missing_blobs(pb.FindMissingBlobsRequest(blob_digests=asked), timeout=PATIENCE)


def test_a_function_not_served_fails_a_batch(client: Client) -> None:
    """BatchUpdateBlobsRequest.digest_function: one of those that capabilities announce."""
    with fails(INVALID, "2", "sha1", "sha256"):
        update(client, items([fresh(10)]), function=pb.DigestFunction.SHA1)
    assert update(client, items([fresh(10)]), function=pb.DigestFunction.SHA256) == [(OK, "")]


def test_a_batch_of_exactly_the_limit_is_taken(client: Client) -> None:
    """Design §5: max_batch_total_size_bytes counts blob bytes; messages may be larger."""
    for sizes in ([LIMIT], [LIMIT // 4096] * 4096):
        blobs = [fresh(size) for size in sizes]
        assert update(client, items(blobs)) == [(OK, "")] * len(blobs)


def test_a_batch_above_the_limit_is_refused(client: Client) -> None:
    """BatchUpdateBlobs: INVALID_ARGUMENT if the client attempts to upload more than the
    limit."""
    blobs = [fresh(LIMIT // 2), fresh(LIMIT // 2 + 1)]
    with fails(INVALID, str(LIMIT + 1), str(LIMIT)):
        update(client, items(blobs))
    assert client.missing(*blobs) == [blob.digest for blob in blobs]


def test_the_limit_is_the_operators(start: Start) -> None:
    """BatchUpdateBlobs: the limit may be obtained using the Capabilities API."""
    server = start("--max-batch-total-size", "1000", "--max-blob-size", "800")
    with Client(server.address) as client:
        limits = client.get_capabilities(pb.GetCapabilitiesRequest(), timeout=PATIENCE)
        assert limits.cache_capabilities.max_batch_total_size_bytes == 1000
        assert limits.cache_capabilities.max_cas_blob_size_bytes == 800
        allowed = [fresh(500), fresh(500)]
        assert update(client, items(allowed)) == [(OK, "")] * 2
        assert read_all(client, allowed) == [blob.data for blob in allowed]
        with fails(INVALID, "1001", "1000"):
            update(client, items([fresh(500), fresh(501)]))
        with fails(INVALID, "1001", "1000"):
            read(client, [pb.Digest(hash=HASH, size_bytes=1001)])
        # One blob above max_blob_size: REAPI says INVALID_ARGUMENT, and here only for it.
        larger, small = fresh(801), fresh(100)
        statuses = update(client, items([larger, small]))
        assert [code for code, _ in statuses] == [INVALID_NUMBER, OK]
        assert "801" in statuses[0][1]
        assert "800" in statuses[0][1]


# ---- BatchReadBlobs


def read(
    client: Client, digests: Sequence[pb.Digest], function: int = 0, compressors: Sequence[int] = ()
) -> list[pb.BatchReadBlobsResponse.Response]:
    request = pb.BatchReadBlobsRequest(
        instance_name="main",
        digests=digests,
        acceptable_compressors=compressors,  # type: ignore[arg-type]
        digest_function=function,  # type: ignore[arg-type]
    )
    responses = list(client.batch_read_blobs(request, timeout=PATIENCE).responses)
    assert [response.digest for response in responses] == list(digests)
    return responses


def read_all(client: Client, blobs: Sequence[Blob]) -> list[bytes]:
    responses = read(client, [blob.digest for blob in blobs])
    assert all(response.status.code == OK for response in responses)
    return [response.data for response in responses]


@pytest.mark.parametrize("sizes", [[8], [10] * 100, [8, 16 * KIB, 16 * KIB + 1, MIB], [3 * MIB]])
def test_many_blobs_are_read_at_once(client: Client, sizes: list[int]) -> None:
    """BatchReadBlobs: downloads many blobs at once."""
    blobs = [fresh(size) for size in sizes]
    for blob in blobs:
        client.upload(blob)
    assert read_all(client, blobs) == [blob.data for blob in blobs]


def test_an_empty_batch_is_read(client: Client) -> None:
    """BatchReadBlobs: no blobs, no responses."""
    assert read(client, []) == []


def test_the_empty_blob_is_read(client: Client) -> None:
    """REAPI: servers must behave as though empty blobs are always available."""
    assert EMPTY.hash == EMPTY_HASH
    assert read_all(client, [EMPTY, EMPTY]) == [b"", b""]


def test_what_is_not_there_is_its_own_error(client: Client) -> None:
    """BatchReadBlobs: the requests may succeed or fail independently; every error on an
    individual read is in that digest's status."""
    small, large, absent = fresh(10), fresh(100 * KIB), fresh(10)
    client.put(small, large)
    other_size = pb.Digest(hash=small.hash, size_bytes=11)
    responses = read(client, [absent.digest, small.digest, other_size, large.digest, absent.digest])
    codes = [response.status.code for response in responses]
    assert codes == [NOT_FOUND_NUMBER, OK, NOT_FOUND_NUMBER, OK, NOT_FOUND_NUMBER]
    assert [response.data for response in responses] == [b"", small.data, b"", large.data, b""]
    assert absent.hash in responses[0].status.message
    assert small.hash in responses[2].status.message


@bad_digests
def test_a_malformed_digest_to_be_read_is_its_own_error(
    client: Client, digest: pb.Digest, mentioned: str
) -> None:
    """Design §5: one bad blob never fails the others."""
    blob = fresh(10)
    client.put(blob)
    responses = read(client, [blob.digest, digest, blob.digest])
    assert [response.status.code for response in responses] == [OK, INVALID_NUMBER, OK]
    assert mentioned in responses[1].status.message
    assert responses[2].data == blob.data


def test_data_is_not_compressed_unless_asked_for(client: Client) -> None:
    """BatchReadBlobsResponse.compressor: identity or one that the client accepts; identity is
    always allowed."""
    blob = Blob(b"a" * 1000 + fresh(10).data)
    client.put(blob)
    for compressors in ([], [0], [2], [99]):
        (response,) = read(client, [blob.digest], compressors=compressors)
        assert (response.compressor, response.data) == (pb.Compressor.IDENTITY, blob.data)


def test_a_function_not_served_fails_the_read(client: Client) -> None:
    """BatchReadBlobsRequest.digest_function: one of those that capabilities announce."""
    blob = fresh(10)
    client.put(blob)
    with fails(INVALID, "2", "sha1", "sha256"):
        read(client, [blob.digest], function=pb.DigestFunction.SHA1)
    (response,) = read(client, [blob.digest], function=pb.DigestFunction.SHA256)
    assert response.data == blob.data


def test_a_response_is_never_over_the_limit(client: Client, server: Any) -> None:
    """BatchReadBlobs: INVALID_ARGUMENT if the client attempts to read more than the limit;
    design §5: a response is never over it."""
    blobs = [fresh(MIB) for _ in range(4)]
    for blob in blobs:
        client.upload(blob)
    more = fresh(8)
    client.put(more)
    above = [*(blob.digest for blob in blobs), more.digest]
    with fails(INVALID, str(LIMIT + 8), str(LIMIT)):
        read(client, above)
    # The same one many times counts many times.
    with fails(INVALID, str(5 * MIB)):
        read(client, [blobs[0].digest] * 5)
    # Nor does a size below nothing make room.
    with fails(INVALID, str(LIMIT)):
        read(client, [*above, pb.Digest(hash=HASH, size_bytes=-10)])
    # All of the limit may be asked for; then a client must take messages that are larger.
    with Client(server.address, ("grpc.max_receive_message_length", 8 * MIB)) as larger:
        assert read_all(larger, blobs) == [blob.data for blob in blobs]
