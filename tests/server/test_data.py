"""What the process model promises about data: nothing acknowledged is lost with a process."""

from __future__ import annotations

import hashlib
import signal
import threading
import uuid
from collections.abc import Iterable, Iterator

import grpc
import pytest

from cas.pb import bytestream_pb2
from tests.server.serving import PATIENCE, Start, channel, until

SIZE = 3_000_000
"""Bytes: well above what is kept in the index, and several messages long."""

CHUNK = 64 * 1024

BLOB = b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(SIZE // 32))
NAME = f"blobs/{hashlib.sha256(BLOB).hexdigest()}/{len(BLOB)}"


def write(opened: grpc.Channel, requests: Iterable[bytestream_pb2.WriteRequest]) -> int:
    """Uploads; the committed size."""
    call = opened.stream_unary(
        "/google.bytestream.ByteStream/Write",
        request_serializer=bytestream_pb2.WriteRequest.SerializeToString,
        response_deserializer=bytestream_pb2.WriteResponse.FromString,
    )
    return call(iter(requests), timeout=PATIENCE).committed_size


def messages(name: str, offset: int = 0) -> Iterator[bytestream_pb2.WriteRequest]:
    """The blob from `offset` on, as a client sends it."""
    for at in range(offset, len(BLOB), CHUNK):
        data = BLOB[at : at + CHUNK]
        yield bytestream_pb2.WriteRequest(
            resource_name=name,
            write_offset=at,
            data=data,
            finish_write=at + len(data) == len(BLOB),
        )


def status(opened: grpc.Channel, name: str) -> bytestream_pb2.QueryWriteStatusResponse:
    call = opened.unary_unary(
        "/google.bytestream.ByteStream/QueryWriteStatus",
        request_serializer=bytestream_pb2.QueryWriteStatusRequest.SerializeToString,
        response_deserializer=bytestream_pb2.QueryWriteStatusResponse.FromString,
    )
    request = bytestream_pb2.QueryWriteStatusRequest(resource_name=name)
    return call(request, timeout=PATIENCE)


def read(opened: grpc.Channel) -> bytes:
    call = opened.unary_stream(
        "/google.bytestream.ByteStream/Read",
        request_serializer=bytestream_pb2.ReadRequest.SerializeToString,
        response_deserializer=bytestream_pb2.ReadResponse.FromString,
    )
    return b"".join(
        part.data for part in call(bytestream_pb2.ReadRequest(resource_name=NAME), timeout=PATIENCE)
    )


def upload_name() -> str:
    return f"uploads/{uuid.uuid4()}/{NAME}"


@pytest.mark.parametrize("durability", ["strict", "batch", "none"])
def test_what_was_acknowledged_survives_the_death_of_every_process(
    start: Start, durability: str
) -> None:
    server = start("--durability", durability, "--workers", "2")
    with channel(server) as opened:
        assert write(opened, messages(upload_name())) == len(BLOB)
    for pid in [server.process.pid, *server.workers()]:
        server.kill(pid)

    with channel(start("--durability", durability)) as opened:
        assert read(opened) == BLOB


def test_what_one_worker_stored_another_serves(start: Start) -> None:
    server = start("--workers", "2")
    with channel(server) as opened:
        assert write(opened, messages(upload_name())) == len(BLOB)
    victim, _ = server.workers()
    # Connections are dealt out by the kernel: each of these may meet either worker.
    for _ in range(4):
        with channel(server) as opened:
            assert read(opened) == BLOB
    server.kill(victim)
    until(lambda: bool(server.again()), "another worker")
    for _ in range(4):
        with channel(server) as opened:
            assert read(opened) == BLOB


@pytest.mark.parametrize("engine", ["cq", "aio"])
def test_an_upload_that_the_drain_cut_off_resumes_in_the_next_server(
    start: Start, engine: str
) -> None:
    server = start("--drain-timeout", "0.5", "--engine", engine)
    name = upload_name()
    over = threading.Event()

    def has_begun() -> bool:
        with channel(server) as asking:
            try:
                return status(asking, name).committed_size > 0
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return False

    def interrupted() -> Iterator[bytestream_pb2.WriteRequest]:
        for count, message in enumerate(messages(name)):
            if count == 20:
                # All of it may be on its way still.
                until(has_begun, "the server takes in what is sent")
                server.process.send_signal(signal.SIGTERM)
                over.wait(PATIENCE)
                return
            yield message

    with channel(server) as opened, pytest.raises(grpc.RpcError):
        write(opened, interrupted())
    over.set()
    assert server.ends() == 0

    with channel(start("--engine", engine)) as opened:
        kept = status(opened, name)
        assert not kept.complete
        assert 0 < kept.committed_size <= 20 * CHUNK
        assert write(opened, messages(name, kept.committed_size)) == len(BLOB)
        assert read(opened) == BLOB
