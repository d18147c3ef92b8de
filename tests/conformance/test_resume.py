"""Uploads that are cut off and resumed, over real connections and with real deaths.

The seed on Write(): it is resumable.  If there is an error or the connection is broken, the
client should ask QueryWriteStatus() and continue from the returned committed_size, which may
be less than what it had sent.  Design §4, invariant 5: an upload's committed size is what its
staging file holds, so that any worker, or the next process, can resume it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from cas.pb import bytestream_pb2 as bs
from tests.conformance.client import (
    MIB,
    Blob,
    Client,
    fails,
    fresh,
    tolerated,
    until,
    upload_requests,
)
from tests.conformance.conftest import Start
from tests.conformance.serving import ROOT, Server

INVALID = grpc.StatusCode.INVALID_ARGUMENT

SIZE = 100 * MIB
CUT = 40 * MIB


@pytest.fixture(scope="session")
def contents() -> bytes:
    return fresh(SIZE).data


@pytest.fixture
def large(contents: bytes) -> Blob:
    """100 MiB that no server has seen."""
    return Blob(fresh(16).data + contents[16:])


def resume(client: Client, blob: Blob, name: str, told: int = 0, most: int = CUT) -> None:
    """Goes on as the seed says, and reads everything back."""

    def done() -> bool:
        at = client.committed(name) or 0
        assert told <= at <= most
        # The stream that was cut off may only now have let go of its last bytes.
        with tolerated(INVALID):
            return client.upload(blob, name=name, offset=at) == blob.size
        return False

    until(done)
    assert client.query(name) == (blob.size, True)
    assert client.read(blob.name) == blob.data


def test_after_the_client_was_killed(
    client: Client, server: Server, large: Blob, tmp_path: Path
) -> None:
    """Write(): if the connection is broken, the client continues from the committed_size."""
    path = tmp_path / "contents"
    path.write_bytes(large.data)
    arguments = [server.address, large.upload, str(path), str(CUT)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.conformance.uploader", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as uploader:
        try:
            assert uploader.stdout is not None
            assert uploader.stdout.readline() == "sent\n"
            until(lambda: client.committed(large.upload))
            told = client.committed(large.upload) or 0
        finally:
            uploader.send_signal(signal.SIGKILL)
    resume(client, large, large.upload, told)


def test_after_the_server_was_killed(start: Start, large: Blob) -> None:
    """Design §4: uploads resume from disk, across connections, workers and restarts; what
    QueryWriteStatus has told never decreases."""
    server = start()
    with Client(server.address) as client, client.writing() as stream:
        for at in range(0, CUT, MIB):
            stream.send("" if at else large.upload, at, large.data[at : at + MIB])
        until(stream.all_sent)
        until(lambda: client.committed(large.upload))
        told = client.committed(large.upload) or 0
        server.kill()
        with fails(grpc.StatusCode.UNAVAILABLE):
            stream.result()
    again = start(directory=server.directory)
    with Client(again.address) as client:
        resume(client, large, large.upload, told)


def test_after_a_deadline(client: Client, large: Blob) -> None:
    """Write(): if there is an error, the client continues from the committed_size."""
    with client.writing(timeout=5) as stream:
        for at in range(0, CUT, MIB):
            stream.send("" if at else large.upload, at, large.data[at : at + MIB])
        with fails(grpc.StatusCode.DEADLINE_EXCEEDED):
            stream.result()
    resume(client, large, large.upload)


@pytest.mark.parametrize("size", [100, 100_000, 3 * MIB])
@pytest.mark.parametrize("kind", ["upload", "plain"])
def test_after_a_cancellation(client: Client, size: int, kind: str) -> None:
    """Design §5: cancelled or broken, the upload is kept up to what was received."""
    blob = fresh(size)
    name = blob.upload if kind == "upload" else blob.name
    half = size // 2
    client.write([bs.WriteRequest(resource_name=name, data=blob.data[:half])])
    with client.writing() as stream:
        stream.send(name, half, blob.data[half : half + 10])
        until(stream.all_sent)
        stream.call.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            stream.result()
    resume(client, blob, name, half, half + 10)


def test_what_was_received_before_a_cancellation_is_kept(client: Client) -> None:
    """Design §5: likewise for bytes that no response has spoken of."""
    blob = fresh(64 * MIB)
    with client.writing() as stream:
        for sent in upload_requests(blob, step=64 * 1024):
            if sent.write_offset == 48 * MIB:
                break
            stream.send(sent.resource_name, sent.write_offset, sent.data)
        # How far flow control lets a client run ahead is the transport's affair.
        until(lambda: (client.committed(blob.upload) or 0) >= 32 * MIB)
        stream.call.cancel()
    resume(client, blob, blob.upload, 32 * MIB, 48 * MIB)


def test_every_call_from_a_new_connection(server: Server) -> None:
    """Design §4, invariant 5: an upload is not bound to the connection that began it."""
    blob = fresh(2 * MIB)
    step = blob.size // 4
    for at in range(0, blob.size, step):
        with Client(server.address) as client:
            assert (client.committed(blob.upload) or 0) == at
            request = bs.WriteRequest(
                resource_name=blob.upload, write_offset=at, data=blob.data[at : at + step]
            )
            assert client.write([request]) == at + step
    with Client(server.address) as client:
        assert client.upload(blob, offset=blob.size) == blob.size
        assert client.read(blob.name) == blob.data


def test_every_call_may_meet_another_worker(start: Start) -> None:
    """Design §4, invariant 5: any worker can resume it."""
    server = start("--workers", "3")
    blob = fresh(4 * MIB)
    step = blob.size // 16
    for at in range(0, blob.size, step):
        with Client(server.address) as client, Client(server.address) as other:
            assert (other.committed(blob.upload) or 0) == at
            request = bs.WriteRequest(
                resource_name=blob.upload, write_offset=at, data=blob.data[at : at + step]
            )
            assert client.write([request]) == at + step
    with Client(server.address) as client:
        assert client.upload(blob, offset=blob.size) == blob.size
    for _ in range(6):
        with Client(server.address) as client:
            assert client.read(blob.name) == blob.data
            assert client.query(blob.upload) == (blob.size, True)


def test_after_an_orderly_restart(start: Start) -> None:
    """Design §4: uploads resume across restarts; SIGTERM loses nothing that was received."""
    server = start()
    small, blob = fresh(1000), fresh(3 * MIB)
    with Client(server.address) as client:
        for each in (small, blob):
            half = each.size // 2
            request = bs.WriteRequest(resource_name=each.upload, data=each.data[:half])
            assert client.write([request]) == half
    server.stop()
    again = start(directory=server.directory)
    with Client(again.address) as client:
        for each in (small, blob):
            half = each.size // 2
            assert client.query(each.upload) == (half, False)
            assert client.upload(each, offset=half) == each.size
            assert client.read(each.name) == each.data


def test_a_killed_worker_loses_no_upload(start: Start) -> None:
    """Design §4: uploads resume across workers; the others go on meanwhile."""
    server = start("--workers", "2", "--drain-timeout", "5")
    blob = fresh(8 * MIB)
    with Client(server.address) as client, client.writing() as stream:
        stream.send(blob.upload, 0, blob.data[: 4 * MIB])
        until(lambda: client.committed(blob.upload))
        told = client.committed(blob.upload) or 0
        server.kill_workers()
        with fails(grpc.StatusCode.UNAVAILABLE):
            stream.result()

    def resumed() -> bool:
        # For a moment no worker listens.
        with Client(server.address) as client, tolerated(grpc.StatusCode.UNAVAILABLE):
            resume(client, blob, blob.upload, told, 4 * MIB)
            return True
        return False

    until(resumed)
