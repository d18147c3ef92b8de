"""ByteStream.QueryWriteStatus, over a real connection.

Each test's docstring says which sentence it holds the server to: of the seed's comments
(bytestream.proto) or of the design.
"""

from __future__ import annotations

import threading

import grpc
import pytest

from cas.pb import bytestream_pb2 as bs
from tests.conformance.client import (
    EMPTY_HASH,
    KIB,
    METADATA_KEY,
    MIB,
    Client,
    fails,
    fresh,
    request_metadata,
    tolerated,
    until,
    upload_requests,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("kind", ["upload", "plain", "instance"])
def test_what_was_never_written_is_not_found(client: Client, kind: str) -> None:
    """QueryWriteStatus(): if the resource does not exist, because the first Write() has not
    reached the service, it returns NOT_FOUND."""
    blob = fresh(100)
    name = {"upload": blob.upload, "plain": blob.name, "instance": f"a/{blob.upload}"}[kind]
    with fails(NOT_FOUND, name):
        client.query(name)


def test_a_discarded_upload_is_not_found(client: Client) -> None:
    """QueryWriteStatus(): if the resource has been deleted, it returns NOT_FOUND."""
    blob = fresh(100)
    with fails(grpc.StatusCode.INVALID_ARGUMENT):
        client.upload(fresh(100), name=blob.upload)
    with fails(NOT_FOUND, blob.upload):
        client.query(blob.upload)


@pytest.mark.parametrize("size", [8, 100, 100 * KIB, 3 * MIB])
def test_an_unfinished_upload_has_its_committed_size(client: Client, size: int) -> None:
    """QueryWriteStatus(): finds the committed_size, which can then be used as the
    write_offset for the next Write().  complete is true only after finish_write."""
    blob = fresh(size + 1)
    client.write([bs.WriteRequest(resource_name=blob.upload, data=blob.data[:size])])
    assert client.query(blob.upload) == (size, False)
    assert client.upload(blob, offset=size) == blob.size
    assert client.query(blob.upload) == (blob.size, True)


@pytest.mark.parametrize("size", [8, 100 * KIB, 3 * MIB])
def test_a_finished_upload_is_complete(client: Client, size: int) -> None:
    """QueryWriteStatusResponse.complete: finish_write was sent, and the server processed it.
    Design §5: a complete blob is its size and true, under whatever name it is asked for."""
    blob = fresh(size)
    client.upload(blob)
    for name in (blob.upload, blob.name, blob.renamed().upload, f"main/{blob.name}"):
        assert client.query(name) == (size, True)


def test_a_blob_that_came_by_other_means_is_complete(client: Client) -> None:
    """Design §5: a complete blob is its size and true."""
    blob = fresh(500)
    client.put(blob)
    assert client.query(blob.upload) == (500, True)


def test_the_empty_blob_is_complete(client: Client) -> None:
    """REAPI: servers must behave as though empty blobs are always available."""
    assert client.query(f"blobs/{EMPTY_HASH}/0") == (0, True)
    assert client.query(f"uploads/x/blobs/{EMPTY_HASH}/0") == (0, True)


def test_an_upload_overtaken_by_another_is_complete(client: Client) -> None:
    """Design §5: whoever brought it, a complete blob is its size and true."""
    blob = fresh(3 * MIB)
    client.write([bs.WriteRequest(resource_name=blob.upload, data=blob.data[:MIB])])
    client.upload(blob.renamed())
    assert client.query(blob.upload) == (blob.size, True)


def test_an_upload_by_plain_name_is_its_own(client: Client) -> None:
    """Design §5: a plain blobs/… name is a resource that can be written, and so be queried."""
    blob = fresh(100)
    client.write([bs.WriteRequest(resource_name=blob.name, data=blob.data[:40])])
    assert client.query(blob.name) == (40, False)
    with fails(NOT_FOUND):
        client.query(blob.upload)


def test_it_may_be_asked_at_any_time(client: Client) -> None:
    """QueryWriteStatus(): the client may call it at any time to learn how much has been
    processed; it may be less than what was sent, and is never more."""
    blob = fresh(8 * MIB)
    with client.writing() as stream:
        at = 0
        for sent in upload_requests(blob, step=MIB):
            stream.send(sent.resource_name, sent.write_offset, sent.data, finish=sent.finish_write)
            at += MIB
            # The first message may still be on its way.
            with tolerated(NOT_FOUND):
                size, complete = client.query(blob.upload)
                assert 0 <= size <= at
                assert not complete or at == blob.size
        stream.half_close()
        assert stream.result() == blob.size
    assert client.query(blob.upload) == (blob.size, True)


def test_what_it_told_may_be_evicted_by_the_client(client: Client) -> None:
    """QueryWriteStatus(): useful if the client is buffering data and needs to know which data
    can be safely evicted; so what was told is there whatever becomes of the stream."""
    blob = fresh(8 * MIB)
    with client.writing() as stream:
        stream.send(blob.upload, 0, blob.data[: 4 * MIB])
        until(lambda: client.committed(blob.upload) is not None)
        told = client.query(blob.upload)[0]
        stream.call.cancel()
    size = client.query(blob.upload)[0]
    assert told <= size <= 4 * MIB


def test_committed_sizes_never_decrease(client: Client) -> None:
    """QueryWriteStatus(): for any sequence of calls for a name, the sequence of committed
    sizes is non-decreasing: while it is written, broken off, resumed, refused and finished."""
    blob = fresh(12 * MIB)
    told: list[tuple[int, bool]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with tolerated(*([] if told else [NOT_FOUND])):
                told.append(client.query(blob.upload))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(4):
            at = client.committed(blob.upload) or 0
            with client.writing() as stream:
                for step in range(3):
                    offset = at + step * MIB
                    name = "" if step else blob.upload
                    stream.send(name, offset, blob.data[offset : offset + MIB])
                # Refused where the stream before has let go of its last bytes since.
                until(stream.all_sent)
                stream.call.cancel()
        with fails(grpc.StatusCode.INVALID_ARGUMENT):
            client.upload(blob, offset=11 * MIB + 1)
        finish(client, blob.upload, blob.data)
    finally:
        over.set()
        asking.join()
    told.append(client.query(blob.upload))
    assert told == sorted(told)
    assert told[-1] == (blob.size, True)
    assert client.read(blob.name) == blob.data


def finish(client: Client, name: str, data: bytes) -> None:
    """Goes on until it is done, as a client does: a stream that was broken off may still be
    about to let go of its last bytes."""

    def done() -> bool:
        at = client.query(name)[0]
        request = bs.WriteRequest(
            resource_name=name, write_offset=at, data=data[at:], finish_write=True
        )
        with tolerated(grpc.StatusCode.INVALID_ARGUMENT):
            return client.write([request]) == len(data)
        return False

    until(done)


# ---- The one exception: Bazel


def test_with_request_metadata_an_unknown_upload_is_empty(client: Client) -> None:
    """Design §5: a caller that sends REAPI RequestMetadata gets {0, false} for a never-seen
    uploads/… name: Bazel gives an upload up on NOT_FOUND."""
    blob = fresh(100)
    for name in (blob.upload, f"main/{blob.upload}"):
        assert client.query(name, request_metadata()) == (0, False)
        # Asking does not make it one.
        with fails(NOT_FOUND):
            client.query(name)
    assert client.upload(blob, metadata=request_metadata()) == 100
    assert client.query(blob.upload, request_metadata()) == (100, True)


def test_request_metadata_changes_nothing_else(client: Client) -> None:
    """Design §5: the seed's rule stands for everything but a never-seen uploads/… name."""
    blob = fresh(100)
    metadata = request_metadata()
    with fails(NOT_FOUND, blob.name):
        client.query(blob.name, metadata)
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "nonsense"):
        client.query("nonsense", metadata)
    client.write([bs.WriteRequest(resource_name=blob.upload, data=blob.data[:40])], metadata)
    assert client.query(blob.upload, metadata) == (40, False)


def test_an_empty_request_metadata_counts(client: Client) -> None:
    """REAPI: all fields of RequestMetadata are optional; sending it is what tells."""
    assert client.query(fresh(100).upload, ((METADATA_KEY, b""),)) == (0, False)
