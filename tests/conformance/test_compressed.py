"""Blobs as zstd: ByteStream's `compressed-blobs`, and batches.

Sources: REAPI's comments on service ContentAddressableStorage (resource names and what they say
of offsets and sizes), on BatchUpdateBlobs and BatchReadBlobs; design §5.  Streams are made and
read by zstandard, not by the server's code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import grpc
import pytest
import zstandard

from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import (
    KIB,
    MIB,
    Blob,
    Client,
    fails,
    fresh,
    request_metadata,
    tolerated,
    until,
)
from tests.conformance.conftest import Start
from tests.conformance.serving import PATIENCE

CUT = 700_000
"""Where uploads break: no boundary of anything."""


def text(size: int) -> Blob:
    """A blob that shrinks to about a third."""
    blob = fresh(size // 2 + 8)
    return Blob(blob.data.hex().encode()[:size])


def pack(data: bytes, level: int = 3, *, checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(data)


def unpack(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    content: bytes = reader.read()
    return content


def read_name(blob: Blob) -> str:
    return f"compressed-blobs/zstd/{blob.hash}/{blob.size}"


def upload_name(blob: Blob) -> str:
    return f"uploads/{blob.uuid}/{read_name(blob)}"


def messages(
    name: str, data: bytes, offset: int = 0, step: int = 64 * KIB, *, finish: bool = True
) -> Iterator[bs.WriteRequest]:
    """What sends a stream of zstd for the content from `offset` on."""
    for at in range(0, max(1, len(data)), step):
        end = min(at + step, len(data))
        yield bs.WriteRequest(
            resource_name="" if at else name,
            write_offset=offset + at,
            data=data[at:end],
            finish_write=finish and end == len(data),
        )


SIZES = {"inline": 5_000, "in one message": 300 * KIB, "in several messages": 3 * MIB}


@pytest.fixture(params=list(SIZES.values()), ids=list(SIZES))
def blob(request: pytest.FixtureRequest) -> Blob:
    return text(request.param)


@pytest.fixture
def large() -> Blob:
    return text(3 * MIB)


# ---- Read


@pytest.mark.parametrize("make", [text, fresh], ids=["shrinks", "does not shrink"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_reads_at_any_offset(client: Client, make: Callable[[int], Blob], size: int) -> None:
    """ReadRequest.read_offset refers to the offset in the uncompressed form."""
    blob = make(size)
    client.upload(blob)
    for offset in (0, 1, size // 2, size - 1, size):
        assert unpack(client.read(read_name(blob), offset)) == blob.data[offset:]


def test_it_is_worth_it(client: Client, large: Blob) -> None:
    client.upload(large)
    assert len(client.read(read_name(large))) < 0.7 * large.size


def test_the_empty_blob(client: Client) -> None:
    empty = Blob(b"")
    assert unpack(client.read(read_name(empty))) == b""
    for stream in (b"", pack(b"")):
        assert client.write(messages(upload_name(empty), stream)) == -1


def test_a_limit_is_refused(client: Client, blob: Blob) -> None:
    """Servers MUST return INVALID_ARGUMENT if read_limit is non-zero."""
    client.upload(blob)
    for limit in (1, blob.size, -1):
        with fails(grpc.StatusCode.INVALID_ARGUMENT, "read_limit"):
            client.read(read_name(blob), limit=limit)


def test_offsets_outside(client: Client, blob: Blob) -> None:
    client.upload(blob)
    for offset in (-1, blob.size + 1):
        with fails(grpc.StatusCode.OUT_OF_RANGE, str(offset)):
            client.read(read_name(blob), offset)


def test_what_is_not_there(client: Client) -> None:
    with fails(grpc.StatusCode.NOT_FOUND):
        client.read(read_name(fresh(100)))


# ---- Write


@pytest.mark.parametrize("level", [1, 9])
@pytest.mark.parametrize("step", [16 * KIB, 4 * MIB], ids=["small messages", "one message"])
def test_uploads(client: Client, blob: Blob, level: int, step: int) -> None:
    """Design §5: the final committed_size is the compressed count."""
    packed = pack(blob.data, level, checksum=True)
    assert client.write(messages(upload_name(blob), packed, step=step)) == len(packed)
    assert client.read(blob.name) == blob.data
    assert client.query(upload_name(blob)) == (blob.size, True)


def test_many_frames(client: Client, large: Blob) -> None:
    """RFC 8878: concatenated frames are their contents concatenated; skippable ones are nothing."""
    frames = [pack(large.data[at : at + 100_000]) for at in range(0, large.size, 100_000)]
    packed = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc".join(frames)
    assert client.write(messages(upload_name(large), packed)) == len(packed)
    assert client.read(large.name) == large.data


def test_what_is_there_ends_the_call(client: Client, blob: Blob) -> None:
    """The request will terminate immediately … committed_size is the value -1."""
    client.upload(blob)
    packed = pack(blob.data)
    assert client.write(messages(upload_name(blob), packed)) == -1
    with client.writing() as stream:
        stream.send(upload_name(blob.renamed()), 0, packed[:10])
        assert stream.result() == -1


def test_bazel_5_0_0_wants_what_it_sent(client: Client, large: Blob) -> None:
    """bazel#14654: it takes nothing but the count of what it has sent, all of it."""
    client.upload(large)
    packed = pack(large.data)
    metadata = request_metadata(version="5.0.0")
    assert client.write(messages(upload_name(large), packed), metadata) == len(packed)


def test_another_client_is_first(client: Client, large: Blob) -> None:
    """… which may occur in the middle of a single upload."""
    packed = pack(large.data)
    with client.writing() as stream:
        stream.send(upload_name(large), 0, packed[:CUT])
        until(lambda: client.committed(upload_name(large)))
        client.upload(large)
        stream.send("", CUT, packed[CUT:])
        assert stream.result() == -1


@pytest.mark.parametrize("blob", [text(5_000), text(2 * MIB)], ids=["small", "large"])
def test_another_content(client: Client, blob: Blob) -> None:
    """Servers MUST verify that these match … and MUST return INVALID_ARGUMENT."""
    for wrong in (blob.data[:-1] + b"!", blob.data[:-1]):
        for step in (16 * KIB, 4 * MIB):
            stream = messages(upload_name(blob), pack(wrong), step=step)
            with fails(grpc.StatusCode.INVALID_ARGUMENT, blob.hash):
                client.write(stream)
    assert client.missing(blob) == [blob.digest]


@pytest.mark.parametrize("size", [1_000, 2 * MIB], ids=["small", "large"])
def test_a_bomb_is_cut(client: Client, size: int) -> None:
    """Design §5: no more is decoded than was declared."""
    blob = text(size)
    bomb = pack(bytes(256 * MIB))
    for step in (1 * KIB, 4 * MIB):
        with fails(grpc.StatusCode.INVALID_ARGUMENT, f"than the {size} bytes expected"):
            client.write(messages(upload_name(blob), bomb, step=step))


def wrong_checksum(data: bytes) -> bytes:
    packed = pack(data, checksum=True)
    return packed[:-1] + bytes([packed[-1] ^ 1])


def large_window(data: bytes) -> bytes:
    """An empty frame that asks for 128 MiB (RFC 8878, 3.1.1.1.2): 1 KiB, doubled 17 times."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([17 << 3]) + b"\x01\x00\x00"


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing of zstd": (lambda data: data, "no zstd frame begins with"),
    "something behind": (lambda data: pack(data) + b"and more", "no zstd frame begins with"),
    "a little behind": (lambda data: pack(data) + b"\0", "ends within a frame"),
    "no end": (lambda data: pack(data)[:-1], "ends within a frame"),
    "no checksum": (lambda data: pack(data, checksum=True)[:-4], "ends within a frame"),
    "a wrong checksum": (wrong_checksum, "is damaged"),
    "a frame cut short": (lambda data: pack(data)[:5], "ends within a frame"),
    "a window of 128 MiB": (large_window, "asks for a window of 134217728 bytes"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("size", [1_000, 2 * MIB], ids=["small", "large"])
def test_damaged_streams(client: Client, kind: str, size: int) -> None:
    damage, said = DAMAGED[kind]
    blob = text(size)
    for step in (64 * KIB, 4 * MIB):
        with fails(grpc.StatusCode.INVALID_ARGUMENT, said):
            client.write(messages(upload_name(blob), damage(blob.data), step=step))
    assert client.missing(blob) == [blob.digest]
    # Nothing of it is left in the way.
    assert client.write(messages(upload_name(blob), pack(blob.data))) > 0


def test_offsets_add_up(client: Client, large: Blob) -> None:
    """In subsequent requests, write_offset MUST be the sum of the first request's and the total
    size of all the compressed data bundles in the previous requests."""
    packed = pack(large.data)
    with client.writing() as stream:
        stream.send(upload_name(large), 0, packed[:1000])
        stream.send("", 1001, packed[1000:])
        with fails(grpc.StatusCode.INVALID_ARGUMENT, "write_offset is 1001, expected 1000"):
            stream.result()


# ---- Resumption


def resume(client: Client, blob: Blob) -> int:
    """Goes on as Bazel does: a new stream of zstd from the content's committed size on."""
    committed = client.committed(upload_name(blob))
    assert committed is not None
    assert 0 < committed < blob.size
    packed = pack(blob.data[committed:])
    stream = messages(upload_name(blob), packed, committed)
    assert client.write(stream) == committed + len(packed)
    assert client.read(blob.name) == blob.data
    return committed


def test_an_upload_that_pauses(client: Client, large: Blob) -> None:
    """The committed size of an unfinished upload is the content's: where the next stream
    begins.  A frame that was cut counts as far as it can be decoded."""
    packed = pack(large.data)
    told = client.write(messages(upload_name(large), packed[:CUT], finish=False))
    assert resume(client, large) == told > CUT


def test_an_upload_that_breaks_resumes_after_a_restart(start: Start, large: Blob) -> None:
    """… across connections, workers and restarts."""
    server = start()
    packed = pack(large.data)
    with Client(server.address) as client, client.writing() as stream:
        stream.send(upload_name(large), 0, packed[:CUT])
        until(lambda: client.committed(upload_name(large)))
    server.kill()
    server = start(directory=server.directory)
    with Client(server.address) as client:
        resume(client, large)


def test_a_wrong_offset_takes_nothing_over(client: Client, large: Blob) -> None:
    packed = pack(large.data)
    told = client.write(messages(upload_name(large), packed[:CUT], finish=False))
    for offset in (-1, 0, CUT, told + 1, large.size + 1):
        with fails(grpc.StatusCode.INVALID_ARGUMENT, str(told)):
            client.write(messages(upload_name(large), pack(b"x"), offset))
    assert resume(client, large) == told


def test_all_of_it_was_there(client: Client, large: Blob) -> None:
    """Only finish_write was lost."""
    client.write(messages(upload_name(large), pack(large.data), finish=False))
    assert client.committed(upload_name(large)) == large.size
    assert client.write(messages(upload_name(large), b"", large.size)) == large.size
    assert client.read(large.name) == large.data


# ---- Batches


def update(*requests: tuple[Blob, bytes, int]) -> pb.BatchUpdateBlobsRequest:
    return pb.BatchUpdateBlobsRequest(
        requests=[
            pb.BatchUpdateBlobsRequest.Request(
                digest=blob.digest,
                data=data,
                compressor=compressor,  # type: ignore[arg-type]
            )
            for blob, data, compressor in requests
        ]
    )


def test_batches_are_written(client: Client) -> None:
    """BatchUpdateBlobsRequest.Request.compressor, for each blob of its own."""
    blobs = [text(100), text(5_000), text(300 * KIB), text(2_000), text(2_000), text(2_000)]
    right = [(blob, pack(blob.data), 1) for blob in blobs[:3]]
    wrong = [
        (blobs[3], pack(blobs[2].data), 1),
        (blobs[4], blobs[4].data, 1),
        (blobs[5], blobs[5].data, 2),
    ]
    plain = text(4_000)
    request = update(*right, *wrong, (plain, plain.data, 0))
    answer = client.batch_update_blobs(request, timeout=PATIENCE)
    invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [r.status.code for r in answer.responses] == [0, 0, 0, *[invalid] * 3, 0]
    said = [response.status.message for response in answer.responses[3:6]]
    assert "than the 2000 bytes expected" in said[0]
    assert "no zstd frame begins with" in said[1]
    assert "compressor 2 is not served" in said[2]
    assert client.missing(*blobs, plain) == [blob.digest for blob in blobs[3:]]


def test_a_batch_of_bombs_is_refused(client: Client) -> None:
    """max_batch_total_size_bytes: what the blobs become counts."""
    blobs = [Blob(bytes(3 * MIB + n)) for n in (1, 2)]
    request = update(*((blob, pack(blob.data), 1) for blob in blobs))
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "max_batch_total_size"):
        client.batch_update_blobs(request, timeout=PATIENCE)


def test_batches_are_read(client: Client) -> None:
    """BatchReadBlobsResponse.Response.compressor: one of the acceptable ones, or identity."""
    blobs = [text(100), text(5_000), text(300 * KIB), fresh(5_000)]
    client.put(*blobs)
    for acceptable in ([], [0], [1], [0, 1, 2], [2]):
        request = pb.BatchReadBlobsRequest(
            digests=[*(blob.digest for blob in blobs), fresh(9).digest],
            acceptable_compressors=acceptable,  # type: ignore[arg-type]
        )
        answers = list(client.batch_read_blobs(request, timeout=PATIENCE).responses)
        assert answers.pop().status.code == grpc.StatusCode.NOT_FOUND.value[0]
        zstd = 1 if 1 in acceptable else 0
        # Too small, and what does not shrink, go as they are.
        assert [answer.compressor for answer in answers] == [0, zstd, zstd, 0]
        for blob, answer in zip(blobs, answers, strict=True):
            data = unpack(answer.data) if answer.compressor else answer.data
            assert data == blob.data


def test_both_are_announced(client: Client) -> None:
    """supported_compressors and supported_batch_update_compressors."""
    cache = client.get_capabilities(
        pb.GetCapabilitiesRequest(), timeout=PATIENCE
    ).cache_capabilities
    assert list(cache.supported_compressors) == [pb.Compressor.ZSTD]
    assert list(cache.supported_batch_update_compressors) == [pb.Compressor.ZSTD]


# ---- At rest


def test_a_store_that_compresses(start: Start) -> None:
    """--compression zstd: what comes back is the same whichever way it came; and a compressed
    read from the beginning is what is stored, whoever reads it."""
    server = start("--compression", "zstd")
    blobs = [text(5_000), text(300 * KIB), text(3 * MIB), text(3 * MIB), fresh(2 * MIB)]
    with Client(server.address) as client:
        for blob in blobs[:3]:
            client.upload(blob, step=64 * KIB)
        for blob in blobs[3:]:
            client.write(messages(upload_name(blob), pack(blob.data)))
    server.stop()
    files = {path.name[:64]: path for path in server.directory.glob("blobs/*/*/*")}
    server = start(directory=server.directory)
    with Client(server.address) as client:
        for blob in blobs:
            assert client.read(blob.name) == blob.data
            for offset in (0, 1, blob.size // 2, blob.size - 1):
                assert client.read(blob.name, offset, 1000) == blob.data[offset : offset + 1000]
                assert unpack(client.read(read_name(blob), offset)) == blob.data[offset:]
        for blob in blobs[1:4]:
            assert files[blob.hash].stat().st_size < 0.7 * blob.size
            assert client.read(read_name(blob)) == files[blob.hash].read_bytes()
        assert files[blobs[4].hash].read_bytes() == blobs[4].data
        request = pb.BatchReadBlobsRequest(digests=[blob.digest for blob in blobs[:2]])
        answers = client.batch_read_blobs(request, timeout=PATIENCE).responses
        assert [answer.data for answer in answers] == [blob.data for blob in blobs[:2]]


# ---- Anything


def test_random_damage_is_only_refused(client: Client) -> None:
    """Whatever is changed in a stream, the call ends with a clean error, or the blob is right."""
    rng = random.Random(9)
    for _ in range(60):
        blob = text(rng.choice([200, 20_000, 300 * KIB]))
        packed = bytearray(pack(blob.data, rng.choice([1, 3, -5]), checksum=rng.random() < 0.5))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(packed))
            kind = rng.randrange(3)
            if kind == 0:
                packed[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del packed[at : at + rng.randrange(1, 40)]
            else:
                packed[at:at] = rng.randbytes(rng.randrange(1, 40))
            packed = packed or bytearray(b"\0")
        stream = messages(upload_name(blob), bytes(packed), step=rng.choice([500, MIB]))
        with tolerated(grpc.StatusCode.INVALID_ARGUMENT):
            client.write(stream)
            assert client.read(blob.name) == blob.data
            continue
        assert client.missing(blob)
