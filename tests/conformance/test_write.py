"""ByteStream.Write, over a real connection.

Each test's docstring says which sentence it holds the server to: of the seed's comments
(bytestream.proto), of REAPI's on service ContentAddressableStorage, or of the design.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cas.pb import bytestream_pb2 as bs
from tests.conformance.client import (
    EMPTY_HASH,
    KIB,
    MIB,
    Blob,
    Client,
    fails,
    fresh,
    request_metadata,
    until,
    upload_requests,
)
from tests.conformance.conftest import Start
from tests.conformance.serving import PATIENCE

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND

SIZES = [8, 1000, 16 * KIB, 16 * KIB + 1, 3 * MIB + 17]
"""In the index, at its limit, in files."""


def request(
    name: str = "", offset: int = 0, data: bytes = b"", *, finish: bool = False
) -> bs.WriteRequest:
    return bs.WriteRequest(resource_name=name, write_offset=offset, data=data, finish_write=finish)


# ---- What a Write does


@pytest.mark.parametrize("step", [1000, 16 * KIB, 64 * KIB, MIB, 2 * MIB, 4 * MIB])
@pytest.mark.parametrize("size", SIZES)
def test_contents_are_sent_as_a_sequence_of_requests(client: Client, size: int, step: int) -> None:
    """Write(): the bytes are sent in a sequence of requests; WriteResponse.committed_size is
    how many were processed."""
    blob = fresh(size)
    assert client.upload(blob, step=step) == size
    assert client.read(blob.name) == blob.data


def test_finish_write_may_come_in_a_message_of_its_own(client: Client) -> None:
    """WriteRequest.finish_write: indicates that the write is complete; data may be empty."""
    blob = fresh(100)
    requests = [request(blob.upload, 0, blob.data), request("", 100, finish=True)]
    assert client.write(requests) == 100
    assert client.read(blob.name) == blob.data


@pytest.mark.parametrize("kind", ["upload", "plain"])
def test_the_empty_blob_may_be_written(client: Client, kind: str) -> None:
    """REAPI: clients may optimize away the uploading of empty blobs; so they need not."""
    blob = Blob(b"")
    name = blob.upload if kind == "upload" else blob.name
    assert client.write([request(name, finish=True)]) == 0
    assert client.query(name) == (0, True)


def test_a_plain_name_may_be_written(client: Client) -> None:
    """Design §5: writing to blobs/hash/size is allowed too."""
    blob = fresh(3 * MIB)
    assert client.upload(blob, name=blob.name) == blob.size
    assert client.read(blob.name) == blob.data


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_an_upload_by_plain_name_is_resumable_by_anyone(client: Client, size: int) -> None:
    """Design §5: a plain name is resumable by whoever has the bytes."""
    blob = fresh(size)
    half = size // 2
    assert client.write([request(f"a/{blob.name}", 0, blob.data[:half])]) == half
    assert client.query(f"a/{blob.name}") == (half, False)
    assert client.upload(blob, name=f"a/{blob.name}", offset=half) == size
    assert client.read(blob.name) == blob.data


# ---- Names


def test_the_name_must_be_in_the_first_request(client: Client) -> None:
    """WriteRequest.resource_name: must be set on the first request of each Write()."""
    with fails(INVALID, "resource_name"):
        client.write([request("", 0, b"abc", finish=True)])


def test_a_stream_without_requests_has_no_name(client: Client) -> None:
    """WriteRequest.resource_name: must be set; so there must be a first request."""
    with fails(INVALID):
        client.write([])


def test_the_name_may_be_repeated(client: Client) -> None:
    """WriteRequest.resource_name: may be set on subsequent requests, to the same value."""
    blob = fresh(30)
    requests = [
        request(blob.upload, at, blob.data[at : at + 10], finish=at == 20) for at in (0, 10, 20)
    ]
    assert client.write(requests) == 30
    assert client.read(blob.name) == blob.data


@pytest.mark.parametrize("kind", ["another blob", "another uuid", "plain", "no name at all"])
def test_a_name_that_changes_is_an_error(client: Client, kind: str) -> None:
    """WriteRequest.resource_name: if set on subsequent requests, it must match the first."""
    blob = fresh(30)
    changed = {
        "another blob": fresh(30).upload,
        "another uuid": blob.renamed().upload,
        "plain": blob.name,
        "no name at all": "nonsense",
    }[kind]
    requests = [
        request(blob.upload, 0, blob.data[:10]),
        request(changed, 10, blob.data[10:], finish=True),
    ]
    with fails(INVALID, changed, blob.upload):
        client.write(requests)
    with fails(NOT_FOUND):
        client.read(blob.name)


@pytest.mark.parametrize("instance", ["main", "a/b/c", "ünï cöde", "x" * 255])
def test_instances(client: Client, instance: str) -> None:
    """REAPI: names may begin with an instance name; it may span several segments."""
    blob = fresh(20)
    name = f"{instance}/{blob.upload}"
    assert client.upload(blob, name=name) == 20
    assert client.query(name) == (20, True)
    assert client.read(f"{instance}/{blob.name}") == blob.data


@pytest.mark.parametrize("metadata", ["/", "/file.txt", "/a/b/c", "/blobs/x", "/../..", "/ü"])
def test_metadata_after_the_size_is_ignored(client: Client, metadata: str) -> None:
    """REAPI: clients may append metadata after the size, servers may ignore it."""
    blob = fresh(20)
    assert client.write([request(blob.upload + metadata, 0, blob.data[:10])]) == 10
    assert client.query(blob.upload) == (10, False)
    assert client.upload(blob, name=blob.upload + metadata, offset=10) == 20
    assert client.read(blob.name) == blob.data


@pytest.mark.parametrize(
    "segment",
    ["6ba7b810-9dad-11d1-80b4-00c04fd430c8", "no-uuid", "ABCDEF", "host:1-2"],
)
def test_uploads_may_be_named_by_any_segment(client: Client, segment: str) -> None:
    """REAPI says version 4 UUID; some clients send others, and no harm comes of it."""
    blob = fresh(20)
    name = f"uploads/{segment}/{blob.name}"
    assert client.upload(blob, name=name) == 20


def test_one_uuid_may_serve_for_several_blobs(client: Client) -> None:
    """REAPI: clients may reuse a uuid for uploading different blobs."""
    name = str(uuid.uuid4())
    blobs = [Blob(fresh(40).data, name) for _ in range(3)]
    for blob in blobs:
        assert client.write([request(blob.upload, 0, blob.data[:20])]) == 20
    for blob in blobs:
        assert client.upload(blob, offset=20) == 40
        assert client.read(blob.name) == blob.data


def test_one_name_in_two_instances_is_two_uploads(client: Client) -> None:
    """REAPI: the instance name is part of the resource name."""
    blob = fresh(40)
    assert client.write([request(f"a/{blob.upload}", 0, blob.data[:30])]) == 30
    assert client.write([request(f"b/{blob.upload}", 0, blob.data[:10])]) == 10
    assert client.query(f"a/{blob.upload}") == (30, False)
    assert client.query(f"b/{blob.upload}") == (10, False)


# ---- Offsets


@pytest.mark.parametrize("offset", [1, 100, -1, 2**62, -(2**63)])
def test_a_new_upload_begins_at_zero(client: Client, offset: int) -> None:
    """WriteRequest.write_offset: the first must equal the committed size; a wrong one is an
    error.  Design §5: it names the expected offset."""
    blob = fresh(200)
    with fails(INVALID, str(offset), "expected", "0"):
        client.write([request(blob.upload, offset, blob.data[:10])])


@pytest.mark.parametrize("offset", [0, 39, 41, 100, -1])
@pytest.mark.parametrize("finish", [False, True])
def test_a_resumed_upload_begins_at_its_committed_size(
    client: Client, offset: int, finish: bool
) -> None:
    """WriteRequest.write_offset: the first must equal what QueryWriteStatus() would return."""
    blob = fresh(100)
    assert client.write([request(blob.upload, 0, blob.data[:40])]) == 40
    with fails(INVALID, str(offset), "expected", "40"):
        client.write([request(blob.upload, offset, blob.data[max(0, offset) :], finish=finish)])
    # Nothing of it was taken, and nothing was lost.
    assert client.query(blob.upload) == (40, False)
    assert client.upload(blob, offset=40) == 100
    assert client.read(blob.name) == blob.data


@pytest.mark.parametrize("offset", [0, 9, 11, 20, -1, 2**62])
def test_the_next_offset_is_the_running_sum(client: Client, offset: int) -> None:
    """WriteRequest.write_offset: on subsequent requests it must equal the first one plus the
    sizes of all data sent on this stream; a wrong one is an error."""
    blob = fresh(30)
    requests = [request(blob.upload, 0, blob.data[:10]), request("", offset, blob.data[10:20])]
    with fails(INVALID, str(offset), "expected", "10"):
        client.write(requests)
    # What came before stays; the client may go on from there.
    assert client.query(blob.upload) == (10, False)
    assert client.upload(blob, offset=10) == 30
    assert client.read(blob.name) == blob.data


@pytest.mark.parametrize("offset", [40, 49, 51, 60])
def test_the_next_offset_counts_from_the_first_one(client: Client, offset: int) -> None:
    """WriteRequest.write_offset: the sum begins with the stream's own first offset."""
    blob = fresh(100)
    client.write([request(blob.upload, 0, blob.data[:40])])
    requests = [request(blob.upload, 40, blob.data[40:50]), request("", offset, blob.data[50:60])]
    with fails(INVALID, str(offset), "expected", "50"):
        client.write(requests)


def test_an_empty_request_needs_the_right_offset_too(client: Client) -> None:
    """WriteRequest.write_offset: required on all requests."""
    blob = fresh(30)
    with fails(INVALID, "7", "expected", "10"):
        client.write([request(blob.upload, 0, blob.data[:10]), request("", 7)])


# ---- Empty data


def test_empty_data_keeps_a_stream_alive(client: Client) -> None:
    """WriteRequest.data: the client may leave it empty in any request."""
    blob = fresh(30)
    requests = [
        request(blob.upload),
        request(),
        request("", 0, blob.data[:10]),
        request("", 10),
        request(blob.upload, 10),
        request("", 10, blob.data[10:]),
        request("", 30),
        request("", 30, finish=True),
    ]
    assert client.write(requests) == 30
    assert client.read(blob.name) == blob.data


# ---- finish_write


@pytest.mark.parametrize("size", [100, 100 * KIB, 3 * MIB])
def test_a_request_after_finish_write_is_an_error(client: Client, size: int) -> None:
    """Write(): sending any requests after one with finish_write will cause an error.
    Design §5: the write is not undone if it had completed."""
    blob = fresh(size)
    with client.writing() as stream:
        for sent in upload_requests(blob):
            stream.send(sent.resource_name, sent.write_offset, sent.data, finish=sent.finish_write)
        until(lambda: not client.missing(blob))
        stream.send("", size)
        with fails(INVALID, "finish_write"):
            stream.result()
    assert client.read(blob.name) == blob.data


@pytest.mark.parametrize("data", [b"", b"more"])
@pytest.mark.parametrize("finish", [False, True])
def test_whatever_comes_after_finish_write_is_an_error(
    client: Client, data: bytes, finish: bool
) -> None:
    """WriteRequest.finish_write: any request subsequent to one with it will cause an error."""
    blob = fresh(100)
    requests = [
        request(blob.upload, 0, blob.data, finish=True),
        request("", 100, data, finish=finish),
    ]
    with fails(INVALID, "finish_write"):
        client.write(requests)


def test_nothing_is_complete_without_finish_write(client: Client) -> None:
    """Write(): the service will not view the resource as complete until the client has sent
    finish_write.  When the client closes the channel, it responds with a WriteResponse."""
    for size in (100, 3 * MIB):
        blob = fresh(size)
        assert client.write([request(blob.upload, 0, blob.data)]) == size
        assert client.query(blob.upload) == (size, False)
        assert client.missing(blob) == [blob.digest]
        assert client.write([request(blob.upload, size, finish=True)]) == size
        assert client.query(blob.upload) == (size, True)
        assert client.read(blob.name) == blob.data


@pytest.mark.parametrize("sent", [0, 1, 500, 100 * KIB, 2 * MIB])
def test_an_unfinished_stream_is_answered_with_its_size(client: Client, sent: int) -> None:
    """Write(): the client should check the response to determine how much was committed.
    Design §5: a stream that ends without finish_write is OK, and the upload is kept."""
    blob = fresh(3 * MIB)
    assert client.write([request(blob.upload, 0, blob.data[:sent])]) == sent
    if sent:
        assert client.query(blob.upload) == (sent, False)
    assert client.upload(blob, offset=sent) == blob.size
    assert client.read(blob.name) == blob.data


def test_many_unfinished_streams_make_one_blob(client: Client) -> None:
    """Write(): the client can call it multiple times with the same resource."""
    blob = fresh(3 * MIB + 5)
    at = 0
    for step in (1, 7, 16 * KIB, 100_000, 0, MIB, 1):
        at += step
        assert client.write([request(blob.upload, at - step, blob.data[at - step : at])]) == at
        assert client.query(blob.upload) == (at, False)
    assert client.upload(blob, offset=at) == blob.size
    assert client.read(blob.name) == blob.data


# ---- Contents


@pytest.mark.parametrize("size", SIZES)
def test_other_bytes_are_refused(client: Client, size: int) -> None:
    """REAPI: if the digest does not match, INVALID_ARGUMENT is returned.  Design §5: and the
    upload is discarded."""
    blob = fresh(size)
    wrong = fresh(size)
    with fails(INVALID, blob.hash, wrong.hash):
        client.upload(wrong, name=blob.upload)
    with fails(NOT_FOUND):
        client.query(blob.upload)
    assert len(client.missing(blob, wrong)) == 2
    # The name is free again.
    assert client.upload(blob) == size
    assert client.read(blob.name) == blob.data


def test_other_bytes_in_a_resumed_part_are_refused(client: Client) -> None:
    """REAPI: the digest is of all the data, in whichever calls it came."""
    blob = fresh(3 * MIB)
    client.write([request(blob.upload, 0, b"x" * MIB)])
    with fails(INVALID, blob.hash):
        client.upload(blob, offset=MIB)
    with fails(NOT_FOUND):
        client.query(blob.upload)


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("short", [1, 9])
def test_finishing_too_early_is_a_mismatch(client: Client, size: int, short: int) -> None:
    """REAPI, Digest: the size is an integral part of it."""
    blob = fresh(size)
    cut = Blob(blob.data[:-short])
    with fails(INVALID, str(cut.size), str(size)):
        client.upload(cut, name=blob.upload)
    with fails(NOT_FOUND):
        client.query(blob.upload)


def test_a_hash_with_another_size_is_a_mismatch(client: Client) -> None:
    """REAPI, Digest: with the right hash but not its size, the request must be rejected."""
    blob = fresh(1000)
    name = f"uploads/{blob.uuid}/blobs/{blob.hash}/999"
    with fails(INVALID):
        client.write([request(name, 0, blob.data[:999], finish=True)])
    assert client.missing(blob) == [blob.digest]


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_more_bytes_than_the_size_are_refused_at_once(client: Client, size: int) -> None:
    """Design §5: more bytes than the size is INVALID_ARGUMENT, before the stream ends."""
    blob = fresh(size)
    with client.writing() as stream:
        stream.send(blob.upload, 0, blob.data[: size - 1])
        stream.send("", size - 1, b"xyz")
        with fails(INVALID, str(size)):
            stream.result()


@pytest.mark.parametrize("size", [10, 100 * KIB])
def test_more_bytes_than_the_size_in_the_only_message_are_refused(
    client: Client, size: int
) -> None:
    """Design §5: likewise where everything comes in one message."""
    blob = fresh(size)
    with fails(INVALID, str(size)):
        client.write([request(blob.upload, 0, blob.data + b"x", finish=True)])
    assert client.missing(blob) == [blob.digest]


def test_bytes_for_the_empty_blob_are_not_looked_at(client: Client) -> None:
    """REAPI: empty blobs are always there, and what is there ends the call, whatever is sent."""
    blob = Blob(b"")
    assert client.write([request(blob.upload, 0, b"x", finish=True)]) == 0
    assert client.read(f"blobs/{EMPTY_HASH}/0") == b""


def test_blobs_above_the_limit_are_refused(start: Start) -> None:
    """REAPI: servers should reject uploads over max_cas_blob_size_bytes with INVALID_ARGUMENT."""
    server = start("--max-blob-size", "1MiB")
    with Client(server.address) as client:
        allowed, larger = fresh(MIB), fresh(MIB + 1)
        assert client.upload(allowed) == MIB
        with fails(INVALID, str(MIB + 1), str(MIB)):
            client.write([request(larger.upload, 0, larger.data[:10])])


# ---- Blobs that are there already


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["the same name", "another name", "plain", "another instance"])
def test_a_blob_that_is_there_ends_the_call_at_once(client: Client, size: int, kind: str) -> None:
    """Write(): writing what was finalized could cause an error, depending on the service.
    REAPI: here it does not; the response's committed_size is the full size, regardless of
    how much data was transmitted."""
    blob = fresh(size)
    client.upload(blob)
    name = {
        "the same name": blob.upload,
        "another name": blob.renamed().upload,
        "plain": blob.name,
        "another instance": f"main/{blob.upload}",
    }[kind]
    assert client.upload(blob, name=name) == size
    with client.writing() as stream:
        stream.send(name, 0, blob.data[: size // 2])
        # Neither finished nor half-closed.
        assert stream.result() == size


def test_whatever_offset_is_sent_for_a_blob_that_is_there(client: Client) -> None:
    """REAPI: regardless of how much data was transmitted by the client."""
    blob = fresh(1000)
    client.upload(blob)
    assert client.write([request(blob.upload, 1000, finish=True)]) == 1000


def test_an_upload_overtaken_by_another_client_ends_well(client: Client) -> None:
    """REAPI: when another client completes the upload in the middle of this one, the request
    terminates without error and with the full size, whatever was transmitted."""
    blob = fresh(64 * MIB)
    step = 64 * KIB
    with client.writing() as stream:
        stream.send(blob.upload, 0, blob.data[:step])
        assert client.upload(blob.renamed()) == blob.size
        at = step
        while at < blob.size and not stream.call.done():
            stream.send("", at, blob.data[at : at + step])
            at += step
            # Not much faster than the server takes them, so that its answer can come.
            while not stream.all_sent() and not stream.call.done():
                time.sleep(0.0005)
        assert stream.result() == blob.size
        assert at < blob.size
    assert client.read(blob.name, blob.size - 10) == blob.data[-10:]


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_an_upload_overtaken_before_its_last_message_ends_well(client: Client, size: int) -> None:
    """REAPI: uploads of the same data may occur concurrently."""
    blob = fresh(size)
    with client.writing() as stream:
        stream.send(blob.upload, 0, blob.data[: size // 2])
        assert client.upload(blob.renamed()) == size
        stream.send("", size // 2, blob.data[size // 2 :], finish=True)
        stream.half_close()
        assert stream.result() == size
    assert client.read(blob.name) == blob.data


def test_bazel_5_0_0_is_answered_after_it_has_sent_everything(client: Client) -> None:
    """Design §5: Bazel 5.0.0 needs its stream drained on early return."""
    blob = fresh(8 * MIB)
    client.upload(blob)
    sent: list[int] = []

    def requests() -> Iterator[bs.WriteRequest]:
        for each in upload_requests(blob, step=64 * KIB):
            sent.append(each.write_offset)
            yield each

    metadata = request_metadata("bazel", "5.0.0")
    assert client.write(requests(), metadata) == blob.size
    assert len(sent) == 128


# ---- Messages


@pytest.mark.parametrize("raw", [b"\x0a\x05x", b"\xff", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_request_are_refused(client: Client, raw: bytes) -> None:
    """Malformed messages are the client's fault, and said to be."""
    write: Any = client.channel.stream_unary("/google.bytestream.ByteStream/Write")
    with fails(INVALID, "WriteRequest"):
        write(iter([raw]), timeout=PATIENCE)


def test_a_message_of_16_mib_is_more_than_the_server_takes(client: Client) -> None:
    """Every buffer is bounded; gRPC's own code for a message that is too large."""
    blob = fresh(17 * MIB)
    with fails(grpc.StatusCode.RESOURCE_EXHAUSTED):
        client.upload(blob, step=17 * MIB)
    assert client.upload(blob, step=15 * MIB) == blob.size


def test_fields_nobody_knows_are_ignored(client: Client) -> None:
    """Protobuf: unknown fields are skipped, so that clients may be newer."""
    blob = fresh(100 * KIB)
    whole = request(blob.upload, 0, blob.data, finish=True).SerializeToString()
    write: Any = client.channel.stream_unary("/google.bytestream.ByteStream/Write")
    response = write(iter([whole + b"\xfa\x3e\x02hi"]), timeout=PATIENCE)
    assert bs.WriteResponse.FromString(response).committed_size == blob.size
    assert hashlib.sha256(client.read(blob.name)).hexdigest() == blob.hash
