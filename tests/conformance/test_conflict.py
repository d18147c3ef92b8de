"""Several clients at one resource, over real connections.

REAPI: uploads of the same data may occur concurrently.  Design §4, invariant 5: of two streams
for one upload name the later one wins, the earlier one gets ABORTED, bytes are never
interleaved; of two uploads of one digest the first to finish wins, the other returns early
with OK.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import pytest

from tests.conformance.client import KIB, MIB, Blob, Client, fails, fresh, tolerated, until
from tests.conformance.conftest import Start
from tests.conformance.serving import Server

ABORTED = grpc.StatusCode.ABORTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def reached(client: Client, name: str, size: int) -> bool:
    return client.committed(name) == size


@pytest.mark.parametrize("kind", ["upload", "plain"])
def test_the_later_stream_wins(server: Server, client: Client, kind: str) -> None:
    """Design §4: two streams for one upload name: the later wins, the earlier gets ABORTED,
    bytes are never interleaved."""
    blob = fresh(48 * MIB)
    name = blob.upload if kind == "upload" else blob.name
    with Client(server.address) as other, client.writing() as earlier:
        earlier.send(name, 0, blob.data[: 8 * MIB])
        until(partial(reached, client, name, 8 * MIB))
        with other.writing() as later:
            later.send(name, 8 * MIB, blob.data[8 * MIB : 16 * MIB])
            until(partial(reached, client, name, 16 * MIB))
            # Now the earlier one sends what must not get in.
            for at in range(8 * MIB, 40 * MIB, MIB):
                earlier.send("", at, b"x" * MIB)
            with fails(ABORTED):
                earlier.result()
            for at in range(16 * MIB, 48 * MIB, 8 * MIB):
                end = at + 8 * MIB
                later.send("", at, blob.data[at:end], finish=end == blob.size)
            later.half_close()
            assert later.result() == blob.size
    assert client.read(blob.name) == blob.data


def test_the_latest_of_many_streams_wins(server: Server, client: Client) -> None:
    """Design §4: likewise for each stream that comes later still."""
    blob = fresh(30 * MIB)
    clients = [Client(server.address) for _ in range(4)]
    streams = []
    try:
        for number, other in enumerate(clients):
            stream = other.writing()
            streams.append(stream)
            at, end = 6 * MIB * number, 6 * MIB * (number + 1)
            stream.send(blob.upload, at, blob.data[at:end])
            until(partial(reached, client, blob.upload, end))
        for number, stream in enumerate(streams[:-1]):
            for at in range(6 * MIB * (number + 1), 30 * MIB, MIB):
                stream.send("", at, b"x" * MIB)
            with fails(ABORTED):
                stream.result()
        streams[-1].send("", 24 * MIB, blob.data[24 * MIB :], finish=True)
        streams[-1].half_close()
        assert streams[-1].result() == blob.size
    finally:
        for stream in streams:
            stream.__exit__(None, None, None)
        for other in clients:
            other.channel.close()
    assert client.read(blob.name) == blob.data


def upload_somehow(address: str, name: str, blob: Blob, step: int) -> None:
    """What a client does that always tries again."""
    with Client(address) as client:
        while True:
            at = 0
            with tolerated(grpc.StatusCode.NOT_FOUND):
                at = client.query(name)[0]
            try:
                assert client.upload(blob, name=name, offset=at, step=step) == blob.size
                return
            except grpc.RpcError as error:
                # Superseded, or another one has gone further meanwhile.
                outrun = error.code() is INVALID and "write_offset" in (error.details() or "")
                if error.code() is not ABORTED and not outrun:
                    raise


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [150_000, 6 * MIB])
def test_clients_that_fight_over_one_name(start: Start, workers: int, size: int) -> None:
    """Design §4: bytes are never interleaved, whichever worker each stream is with."""
    server = start("--workers", str(workers))
    for _ in range(2):
        blob = fresh(size)
        with ThreadPoolExecutor(6) as pool:
            steps = [1 * KIB, 10 * KIB, 16 * KIB, 64 * KIB, MIB, 4 * MIB]
            steps = [max(step, size // 100) for step in steps]
            fighting = [
                pool.submit(upload_somehow, server.address, blob.upload, blob, step)
                for step in steps
            ]
            for each in fighting:
                each.result()
        with Client(server.address) as client:
            assert client.read(blob.name) == blob.data


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [1000, 8 * MIB])
def test_eight_uploads_of_one_digest(start: Start, workers: int, size: int) -> None:
    """REAPI: uploads of the same data may occur concurrently; whoever comes late ends early,
    with the full size.  Design §4: it is stored once."""
    server = start("--workers", str(workers))
    blob = fresh(size)

    def upload(number: int) -> int:
        with Client(server.address) as client:
            return client.upload(blob.renamed(), step=(number + 1) * 16 * KIB)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(upload, range(8))) == [size] * 8
    with Client(server.address) as client:
        assert client.read(blob.name) == blob.data
    server.stop()
    # One file at most, and no upload is left over.
    files = [path for path in server.directory.rglob("*") if path.is_file()]
    large = [path for path in files if "index" not in path.parts and path.stat().st_size >= size]
    assert len(large) == (1 if size > MIB else 0), large
    assert not [path for path in files if "staging" in path.parts]


def test_eight_uploads_of_one_digest_by_plain_name(server: Server, client: Client) -> None:
    """Design §5: a plain name is everyone's; each of them may be superseded and go on."""
    blob = fresh(8 * MIB)
    with ThreadPoolExecutor(8) as pool:
        for each in [
            pool.submit(upload_somehow, server.address, blob.name, blob, MIB) for _ in range(8)
        ]:
            each.result()
    assert client.read(blob.name) == blob.data


def test_one_name_for_different_blobs_is_no_conflict(client: Client) -> None:
    """REAPI: clients may reuse a uuid for different blobs, at the same time too."""
    one, two = fresh(3 * MIB), fresh(3 * MIB)
    two = Blob(two.data, one.uuid)
    with client.writing() as first, client.writing() as second:
        for stream, blob in ((first, one), (second, two)):
            stream.send(blob.upload, 0, blob.data[:MIB])
        for stream, blob in ((first, one), (second, two)):
            stream.send("", MIB, blob.data[MIB:], finish=True)
            stream.half_close()
        assert first.result() == second.result() == 3 * MIB
    for blob in (one, two):
        assert client.read(blob.name) == blob.data
