"""SplitBlob and SpliceBlob, over a real connection.

Each test's docstring says which sentence of REAPI's comments it holds the server to, or what
Bazel's client does.
"""

from __future__ import annotations

import http.client
import random
import uuid
from collections.abc import Iterator, Sequence

import grpc
import pytest
from blake3 import blake3

from cas.pb import admin_pb2
from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import KIB, MIB, Blob, Client, fails, fresh
from tests.conformance.conftest import Start
from tests.conformance.serving import PATIENCE, Server
from tests.test_fastcdc import plain_cuts

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND

UNKNOWN = pb.ChunkingFunction.UNKNOWN
FAST_CDC = pb.ChunkingFunction.FAST_CDC_2020
REP_MAX = pb.ChunkingFunction.REP_MAX_CDC

AVERAGE = 4 * KIB
SIZE = 200 * KIB


@pytest.fixture(scope="module")
def server(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of its own, with chunks so small that blobs of some hundred KiB have many."""
    directory = tmp_path_factory.mktemp(f"chunks-{engine}")
    server = Server(
        directory / "store",
        directory / "log",
        *("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--workers", "1"),
        *("--engine", engine, "--chunk-size", "4KiB", "--inline-threshold", "4KiB"),
    )
    yield server
    server.stop()


def chunks_of(blob: Blob, average: int = AVERAGE) -> list[Blob]:
    """What a client cuts."""
    out, at = [], 0
    for length in plain_cuts(blob.data, average):
        out.append(Blob(blob.data[at : at + length]))
        at += length
    return out


def split(client: Client, blob: Blob, function: int = FAST_CDC, **more: object) -> list[pb.Digest]:
    request = pb.SplitBlobRequest(blob_digest=blob.digest, chunking_function=function, **more)  # type: ignore[arg-type]
    return list(client.split_blob(request, timeout=PATIENCE).chunk_digests)


def splice(
    client: Client, blob: Blob, chunks: Sequence[Blob], function: int = FAST_CDC
) -> pb.Digest:
    request = pb.SpliceBlobRequest(
        blob_digest=blob.digest,
        chunk_digests=[chunk.digest for chunk in chunks],
        chunking_function=function,  # type: ignore[arg-type]
    )
    answer: pb.SpliceBlobResponse = client.splice_blob(request, timeout=PATIENCE)
    return answer.blob_digest


def send(client: Client, blob: Blob) -> list[pb.Digest]:
    """As Bazel sends a large blob (ChunkedBlobUploader): cuts it, asks which chunks are missing,
    writes each of those, splices.  What it had to write."""
    chunks = chunks_of(blob)
    missing = client.missing(*chunks)
    for chunk in {chunk.hash: chunk for chunk in chunks if chunk.digest in missing}.values():
        client.upload(chunk, step=16 * KIB)
    assert splice(client, blob, chunks) == blob.digest
    return missing


def fetch(client: Client, blob: Blob, local: dict[str, bytes]) -> int:
    """As Bazel fetches one (ChunkedBlobDownloader): asks for its chunks, checks their sizes, reads
    those that it lacks.  The bytes read."""
    digests = split(client, blob)
    assert all(0 < digest.size_bytes <= 4 * AVERAGE for digest in digests)
    assert sum(digest.size_bytes for digest in digests) == blob.size
    received = 0
    for digest in digests:
        if digest.hash not in local:
            data = client.read(f"blobs/{digest.hash}/{digest.size_bytes}")
            local[digest.hash] = data
            received += len(data)
    assert b"".join(local[digest.hash] for digest in digests) == blob.data
    return received


def edited(blob: Blob) -> Blob:
    """Its next version."""
    at = blob.size // 2
    return Blob(blob.data[:at] + b"something new" + blob.data[at:])


def delete(client: Client, digest: pb.Digest) -> None:
    """As eviction would."""
    path = "/cas.admin.v1.Admin/DeleteBlob"
    method = client._method("unary_unary", path, admin_pb2.DeleteResponse)
    method(admin_pb2.DeleteBlobRequest(digest=digest), timeout=PATIENCE)


def test_capabilities(client: Client) -> None:
    """Servers which implement it MUST declare it; FastCdc2020Params: 1 KiB to 1 MiB, seed 0."""
    request = pb.GetCapabilitiesRequest()
    cache = client.get_capabilities(request, timeout=PATIENCE).cache_capabilities
    assert cache.split_blob_support
    assert cache.splice_blob_support
    assert cache.fast_cdc_2020_params == pb.FastCdc2020Params(avg_chunk_size_bytes=AVERAGE, seed=0)
    assert not cache.HasField("rep_max_cdc_params")


def test_nothing_is_served_where_it_is_switched_off(start: Start) -> None:
    """Clients MUST check that the server supports this capability."""
    with Client(start("--chunk-size", "none").address) as client:
        request = pb.GetCapabilitiesRequest()
        cache = client.get_capabilities(request, timeout=PATIENCE).cache_capabilities
        assert not cache.split_blob_support
        assert not cache.splice_blob_support
        assert not cache.HasField("fast_cdc_2020_params")
        blob = fresh(100)
        client.put(blob)
        with fails(grpc.StatusCode.UNIMPLEMENTED):
            split(client, blob)
        with fails(grpc.StatusCode.UNIMPLEMENTED):
            splice(client, fresh(9), [blob])


def test_bazels_default_is_the_servers(start: Start) -> None:
    """FastCdc2020Params: the recommended value is 524288."""
    with Client(start().address) as client:
        request = pb.GetCapabilitiesRequest()
        cache = client.get_capabilities(request, timeout=PATIENCE).cache_capabilities
        assert cache.fast_cdc_2020_params.avg_chunk_size_bytes == 524288
        blob = fresh(5 * MIB // 2)
        client.upload(blob)
        assert split(client, blob) == [chunk.digest for chunk in chunks_of(blob, 512 * KIB)]


def test_two_versions_as_bazel_sends_and_fetches_them(client: Client) -> None:
    """What is the same in both is sent once and fetched once."""
    first = fresh(SIZE)
    second = edited(first)
    many = len(send(client, first))
    assert many == len(chunks_of(first))
    assert 0 < len(send(client, second)) < many // 2
    assert send(client, second) == []
    local: dict[str, bytes] = {}
    assert fetch(client, first, local) == first.size
    assert 0 < fetch(client, second, local) < first.size // 2


def test_a_spliced_blob_is_read_like_any_other(client: Client, server: Server) -> None:
    """Whoever does not chunk reads it: by ByteStream, at any offset, in batches, over HTTP."""
    blob = fresh(SIZE)
    send(client, blob)
    assert client.missing(blob) == []
    assert client.read(blob.name) == blob.data
    assert client.read(blob.name, 90_000, 5_000) == blob.data[90_000:95_000]
    request = pb.BatchReadBlobsRequest(digests=[blob.digest])
    (answer,) = client.batch_read_blobs(request, timeout=PATIENCE).responses
    assert answer.data == blob.data
    host, port = server.http.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    connection.request("GET", f"/cas/{blob.hash}")
    assert connection.getresponse().read() == blob.data
    connection.close()


@pytest.mark.parametrize("size", [1, 100, 4 * KIB, 20 * KIB, 64 * KIB])
def test_small_blobs_are_spliced_too(client: Client, size: int) -> None:
    """Blobs smaller than max_chunk_size SHOULD be uploaded without chunking: they need not be."""
    blob = Blob(random.Random(uuid.uuid4().int).randbytes(size + 16))
    half = blob.size // 2
    parts = [Blob(blob.data[:half]), Blob(blob.data[half:])]
    client.put(*parts)
    assert splice(client, blob, parts, UNKNOWN) == blob.digest
    assert client.read(blob.name) == blob.data


def test_a_blob_that_came_whole_is_split(client: Client) -> None:
    """SplitBlob: 1. the blob chunks are stored in CAS, 2. concatenated they are the blob."""
    blob = fresh(SIZE)
    client.upload(blob)
    digests = split(client, blob)
    assert digests == [chunk.digest for chunk in chunks_of(blob)]
    assert fetch(client, blob, {}) == SIZE
    assert split(client, blob) == digests


@pytest.mark.parametrize("function", [UNKNOWN, FAST_CDC, REP_MAX, 77])
def test_the_server_chooses_what_it_cuts_by(client: Client, function: int) -> None:
    """SplitBlobRequest.chunking_function: the server MAY use a different chunking function."""
    blob = fresh(50 * KIB)
    client.upload(blob)
    request = pb.SplitBlobRequest(blob_digest=blob.digest, chunking_function=function)  # type: ignore[arg-type]
    answer = client.split_blob(request, timeout=PATIENCE)
    assert answer.chunking_function == FAST_CDC
    assert list(answer.chunk_digests) == [chunk.digest for chunk in chunks_of(blob)]


def test_chunks_that_repeat(client: Client) -> None:
    """The order of the digests given by this list is that of the blob, each as often as it is."""
    # Where it is cut depends on these few bytes: they are always the same.
    zeros = Blob(bytes(100 * KIB) + b"the end of the first")
    client.upload(zeros)
    digests = split(client, zeros)
    assert len(digests) > len({digest.hash for digest in digests})
    assert fetch(client, zeros, {}) < zeros.size
    other = Blob(zeros.data + bytes(64 * KIB) + b"the end of the second")
    assert 0 < len(send(client, other)) <= 2
    assert client.read(other.name) == other.data


def test_the_empty_blob(client: Client) -> None:
    """It is made of nothing."""
    assert split(client, Blob(b"")) == []
    assert splice(client, Blob(b""), []) == Blob(b"").digest
    assert splice(client, Blob(b""), [Blob(b"")]) == Blob(b"").digest


def test_absent_blobs(client: Client) -> None:
    """NOT_FOUND: the requested blob is not present; at least one of the chunks is not present.
    Bazel then takes, or sends, the blob whole."""
    blob = fresh(SIZE)
    with fails(NOT_FOUND, blob.hash):
        split(client, blob)
    chunks = chunks_of(blob)
    client.put(*chunks[1:])
    with fails(NOT_FOUND, chunks[0].hash, blob.hash):
        splice(client, blob, chunks)
    assert client.missing(blob) == [blob.digest]


def test_a_wrong_digest_is_refused(client: Client) -> None:
    """INVALID_ARGUMENT: the digest of the spliced blob is different from the expected one; the
    server MUST only add blobs after verifying their digests."""
    blob = fresh(SIZE)
    chunks = chunks_of(blob)
    client.put(*chunks)
    wrong = Blob(b"x" + blob.data[1:])
    with fails(INVALID, blob.hash, wrong.hash):
        splice(client, wrong, chunks)
    with fails(INVALID, blob.hash):
        splice(client, blob, [chunks[1], chunks[0], *chunks[2:]])
    with fails(INVALID, f"expected {blob.size}"):
        splice(client, blob, chunks[1:])
    with fails(INVALID, f"expected {blob.size}"):
        splice(client, blob, [*chunks, chunks[0]])
    assert len(client.missing(blob, wrong)) == 2
    assert splice(client, blob, chunks) == blob.digest


def test_malformed_requests(client: Client) -> None:
    """SpliceBlobRequest.blob_digest: the client MUST set this field."""
    blob = fresh(100)
    client.put(blob)
    with fails(INVALID, "hash"):
        client.splice_blob(pb.SpliceBlobRequest(chunk_digests=[blob.digest]), timeout=PATIENCE)
    with fails(INVALID, "hash"):
        client.split_blob(pb.SplitBlobRequest(), timeout=PATIENCE)
    bad = pb.Digest(hash=blob.hash.upper(), size_bytes=blob.size)
    with fails(INVALID, "hash"):
        client.splice_blob(
            pb.SpliceBlobRequest(blob_digest=blob.digest, chunk_digests=[bad]), timeout=PATIENCE
        )
    with fails(INVALID, "size"):
        digest = pb.Digest(hash=blob.hash, size_bytes=-1)
        client.split_blob(pb.SplitBlobRequest(blob_digest=digest), timeout=PATIENCE)
    with fails(INVALID, "instance name"):
        split(client, blob, instance_name="a//b")
    with fails(INVALID, "digest function"):
        split(client, blob, digest_function=pb.DigestFunction.VSO)


def test_too_large_a_blob_is_refused(start: Start) -> None:
    """max_cas_blob_size_bytes: servers SHOULD reject larger blobs with INVALID_ARGUMENT."""
    with Client(start("--max-blob-size", "100KiB").address) as client:
        half = fresh(60 * KIB)
        client.put(half)
        with fails(INVALID, "max_blob_size"):
            splice(client, Blob(half.data * 2), [half, half])


def test_a_known_blob_is_left_as_it_is(client: Client) -> None:
    """The server MAY accept a request as no-op if the client-specified blob is already in CAS;
    ALREADY_EXISTS: and the server did not extend the lifetime of the chunks specified."""
    blob = fresh(SIZE)
    client.upload(blob)
    halves = [Blob(blob.data[: SIZE // 2]), Blob(blob.data[SIZE // 2 :])]
    client.upload(halves[0])
    with fails(grpc.StatusCode.ALREADY_EXISTS, halves[1].hash, "SplitBlob"):
        splice(client, blob, halves)
    client.upload(halves[1])
    assert splice(client, blob, halves) == blob.digest
    assert split(client, blob) == [chunk.digest for chunk in chunks_of(blob)]


def test_other_cuts_are_never_called_fast_cdc(client: Client) -> None:
    """ChunkingFunction UNKNOWN: the server only verifies that chunks concatenate.  Bazel fails
    where a chunk of a list by FastCDC is larger than that makes them."""
    blob = fresh(SIZE)
    halves = [Blob(blob.data[: SIZE // 2]), Blob(blob.data[SIZE // 2 :])]
    for half in halves:
        client.upload(half)
    splice(client, blob, halves, FAST_CDC)
    assert split(client, blob, UNKNOWN) == [half.digest for half in halves]
    assert split(client, blob, FAST_CDC) == [chunk.digest for chunk in chunks_of(blob)]


def test_a_list_by_another_function_goes_back_to_those_who_ask_for_it(client: Client) -> None:
    """SplitBlobRequest.chunking_function: the function that the client prefers."""
    blob = fresh(SIZE)
    halves = [Blob(blob.data[: SIZE // 2]), Blob(blob.data[SIZE // 2 :])]
    for half in halves:
        client.upload(half)
    splice(client, blob, halves, REP_MAX)
    request = pb.SplitBlobRequest(blob_digest=blob.digest, chunking_function=REP_MAX)
    answer = client.split_blob(request, timeout=PATIENCE)
    assert answer.chunking_function == REP_MAX
    assert list(answer.chunk_digests) == [half.digest for half in halves]


def test_a_list_never_names_a_chunk_that_is_gone(client: Client) -> None:
    """If a split request is answered successfully, the blob chunks are stored in CAS."""
    blob = fresh(SIZE)
    send(client, blob)
    digests = split(client, blob)
    for gone in (digests[0], digests[-1]):
        delete(client, gone)
        assert client.read(blob.name) == blob.data
        assert split(client, blob) == digests
        assert client.missing(*chunks_of(blob)) == []
    delete(client, blob.digest)
    with fails(NOT_FOUND, blob.hash):
        split(client, blob)
    assert client.missing(*chunks_of(blob)) == []
    assert send(client, blob) == []
    assert client.read(blob.name) == blob.data


def test_digest_functions(client: Client) -> None:
    """SpliceBlobRequest.digest_function: of all chunks and of the blob to be spliced."""
    data = fresh(50 * KIB).data
    chunks = [chunk.data for chunk in chunks_of(Blob(data))]
    function = pb.DigestFunction.BLAKE3

    def digest(content: bytes) -> pb.Digest:
        return pb.Digest(hash=blake3(content).hexdigest(), size_bytes=len(content))

    updates = pb.BatchUpdateBlobsRequest(digest_function=function)
    for chunk in chunks:
        updates.requests.add(digest=digest(chunk), data=chunk)
    client.batch_update_blobs(updates, timeout=PATIENCE)
    spliced = pb.SpliceBlobRequest(
        blob_digest=digest(data),
        chunk_digests=[digest(chunk) for chunk in chunks],
        digest_function=function,
    )
    assert client.splice_blob(spliced, timeout=PATIENCE).blob_digest == digest(data)
    assert client.read(f"blobs/blake3/{digest(data).hash}/{len(data)}") == data
    asked = pb.SplitBlobRequest(blob_digest=digest(data), digest_function=function)
    answer = client.split_blob(asked, timeout=PATIENCE)
    assert list(answer.chunk_digests) == [digest(chunk) for chunk in chunks]
    with fails(NOT_FOUND):
        spliced.digest_function = pb.DigestFunction.SHA256
        client.splice_blob(spliced, timeout=PATIENCE)


def test_many_ask_for_one_blob_at_the_same_time(client: Client, server: Server) -> None:
    """All get the same list, and it is cut once."""
    blob = fresh(MIB)
    client.upload(blob)
    request = pb.SplitBlobRequest(blob_digest=blob.digest)
    calls = [client.split_blob.future(request, timeout=PATIENCE) for _ in range(20)]
    expected = [chunk.digest for chunk in chunks_of(blob)]
    assert all(list(call.result().chunk_digests) == expected for call in calls)
