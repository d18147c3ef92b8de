"""What was acknowledged is there after every process of the server was killed.

Design §4, invariant 2: in every mode a killed process loses nothing acknowledged and the index
is never corrupt.  (Loss of power is the store's own tests' matter: it takes a seam to lose what
the kernel holds.)
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import MIB, Blob, Client, fresh, tolerated
from tests.conformance.conftest import Start
from tests.conformance.serving import PATIENCE

MODES = ["strict", "batch", "none"]


@pytest.mark.parametrize("durability", MODES)
def test_what_was_acknowledged_survives_a_kill(start: Start, durability: str) -> None:
    """Invariant 2, for each way in."""
    server = start("--durability", durability)
    small, large, batched, output, half = (
        fresh(100),
        fresh(3 * MIB),
        fresh(200),
        fresh(300),
        fresh(2 * MIB),
    )
    action = fresh(50)
    result = pb.ActionResult(output_files=[pb.OutputFile(path="o", digest=output.digest)])
    with Client(server.address) as client:
        client.upload(small)
        client.upload(large)
        client.put(batched, output)
        client.update_action_result(
            pb.UpdateActionResultRequest(
                instance_name="main", action_digest=action.digest, action_result=result
            ),
            timeout=PATIENCE,
        )
        client.write([bs.WriteRequest(resource_name=half.upload, data=half.data[:MIB])])
        # Killed while the client still holds the answer to its last call.
        server.kill()
    again = start("--durability", durability, directory=server.directory)
    with Client(again.address) as client:
        for blob in (small, large, batched, output):
            assert client.read(blob.name) == blob.data
        request = pb.GetActionResultRequest(instance_name="main", action_digest=action.digest)
        assert client.get_action_result(request, timeout=PATIENCE) == result
        assert client.query(half.upload) == (MIB, False)
        assert client.upload(half, offset=MIB) == half.size
        assert client.read(half.name) == half.data


@pytest.mark.parametrize("durability", MODES)
def test_kills_in_the_midst_of_uploads(start: Start, durability: str) -> None:
    """Invariant 2, while writes of all kinds are under way; several times on one directory."""
    acknowledged: list[Blob] = []
    server = start("--durability", durability, "--workers", "2")
    for _ in range(2):
        stop = threading.Event()
        with ThreadPoolExecutor(6) as pool:
            writers = [
                pool.submit(keep_uploading, server.address, number, stop) for number in range(6)
            ]
            # Long enough for some to be acknowledged, and always while others are under way.
            stop.wait(1.0)
            server.kill()
            stop.set()
            for writer in writers:
                acknowledged += writer.result()
        server = start("--durability", durability, "--workers", "2", directory=server.directory)
        with Client(server.address) as client:
            assert client.missing(*acknowledged) == []
            for blob in acknowledged:
                assert client.read(blob.name) == blob.data
    assert acknowledged


def keep_uploading(address: str, number: int, stop: threading.Event) -> list[Blob]:
    """Uploads until the server is gone; what was acknowledged."""
    done: list[Blob] = []
    with Client(address) as client:
        while not stop.is_set():
            blob = fresh((100, 5_000, 17_000, 300_000, MIB, 3 * MIB)[number])
            with tolerated(grpc.StatusCode.UNAVAILABLE):
                if number % 2:
                    client.put(blob)
                else:
                    client.upload(blob, step=64 * 1024)
                done.append(blob)
    return done


def test_nothing_half_written_is_served(start: Start) -> None:
    """Invariants 1 and 4: a record only names bytes that were compared with their digest."""
    server = start()
    blobs = [fresh(5 * MIB) for _ in range(4)]
    with Client(server.address) as client:
        streams = [client.writing() for _ in blobs]
        for stream, blob in zip(streams, blobs, strict=True):
            stream.send(blob.upload, 0, blob.data[: 4 * MIB])
            stream.send("", 4 * MIB, blob.data[4 * MIB :], finish=True)
        server.kill()
        for stream in streams:
            stream.__exit__(None, None, None)
    again = start(directory=server.directory)
    with Client(again.address) as client:
        missing = {digest.hash for digest in client.missing(*blobs)}
        for blob in blobs:
            if blob.hash not in missing:
                assert client.read(blob.name) == blob.data
            assert client.upload(blob.renamed()) == blob.size
            assert client.read(blob.name) == blob.data
