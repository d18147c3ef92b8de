"""Digest functions: every call with each of them, all at once on one store.

Each test's docstring says which sentence of REAPI it holds the server to.  Hashes are computed
here anew (`tests/plainly.py`, hashlib, blake3), by no code of the server.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import grpc
import pytest
from blake3 import blake3
from google.protobuf.message import Message

from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from tests.conformance.client import Blob, Client, fails
from tests.conformance.conftest import ENGINES, arguments
from tests.conformance.serving import PATIENCE, Server
from tests.plainly import sha256tree

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND

HASHES: dict[str, Callable[[bytes], str]] = {
    "SHA256": lambda data: hashlib.sha256(data).hexdigest(),
    "BLAKE3": lambda data: blake3(data).hexdigest(),
    "SHA1": lambda data: hashlib.sha1(data).hexdigest(),
    "SHA384": lambda data: hashlib.sha384(data).hexdigest(),
    "SHA512": lambda data: hashlib.sha512(data).hexdigest(),
    "MD5": lambda data: hashlib.md5(data).hexdigest(),
    "SHA256TREE": lambda data: sha256tree(data).hex(),
}
NAMED = {"BLAKE3", "SHA256TREE"}
"""All others are told by the length of a hash."""

LARGE = 150_000
"""Bytes: in a file of its own."""


@dataclass(frozen=True)
class Other(Blob):
    """A blob under a digest of a function."""

    function: str = "SHA256"

    @property
    def hash(self) -> str:
        return HASHES[self.function](self.data)

    @property
    def name(self) -> str:
        segment = f"{self.function.lower()}/" if self.function in NAMED else ""
        return f"blobs/{segment}{self.hash}/{self.size}"

    @property
    def number(self) -> pb.DigestFunction.Value:
        return cast(pb.DigestFunction.Value, pb.DigestFunction.Value.Value(self.function))


def other(function: str, size: int) -> Other:
    return Other(random.Random(uuid.uuid4().int).randbytes(size), function=function)


def message(function: str, content: Message) -> Other:
    return Other(content.SerializeToString(deterministic=True), function=function)


@pytest.fixture(scope="module", params=ENGINES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One that serves all functions."""
    directory = tmp_path_factory.mktemp("functions")
    functions = ",".join(HASHES).lower()
    server = Server(
        directory / "store",
        directory / "log",
        *arguments(request.param),
        "--digest-functions",
        functions,
    )
    yield server
    server.stop()


@pytest.fixture(params=HASHES)
def function(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def find(client: Client, *blobs: Other, number: int | None = None) -> list[pb.Digest]:
    request = pb.FindMissingBlobsRequest(
        digest_function=blobs[0].number if number is None else number,  # type: ignore[arg-type]
        blob_digests=[blob.digest for blob in blobs],
    )
    return list(client.find_missing_blobs(request, timeout=PATIENCE).missing_blob_digests)


def put(client: Client, *blobs: Other, number: int | None = None) -> list[int]:
    request = pb.BatchUpdateBlobsRequest(
        digest_function=blobs[0].number if number is None else number,  # type: ignore[arg-type]
        requests=[
            pb.BatchUpdateBlobsRequest.Request(digest=blob.digest, data=blob.data) for blob in blobs
        ],
    )
    responses = client.batch_update_blobs(request, timeout=PATIENCE).responses
    return [response.status.code for response in responses]


def read(client: Client, *blobs: Other) -> list[bytes]:
    request = pb.BatchReadBlobsRequest(
        digest_function=blobs[0].number, digests=[blob.digest for blob in blobs]
    )
    responses = client.batch_read_blobs(request, timeout=PATIENCE).responses
    assert not any(response.status.code for response in responses)
    return [response.data for response in responses]


def test_all_are_announced(client: Client) -> None:
    """CacheCapabilities.digest_functions: all the digest functions supported."""
    answer = client.get_capabilities(pb.GetCapabilitiesRequest(), timeout=PATIENCE)
    numbers = answer.cache_capabilities.digest_functions
    assert [pb.DigestFunction.Value.Name(number) for number in numbers] == list(HASHES)


def test_batches(client: Client, function: str) -> None:
    """BatchUpdateBlobs and BatchReadBlobs: the function used to compute the digests."""
    blobs = [other(function, size) for size in (10, 11, 300, 1025, LARGE)]
    assert find(client, *blobs) == [blob.digest for blob in blobs]
    assert put(client, *blobs) == [0] * len(blobs)
    assert find(client, *blobs) == []
    assert read(client, *blobs) == [blob.data for blob in blobs]
    # As well one by one, as they are read in another way.
    assert find(client, blobs[0]) == []
    assert read(client, blobs[-1]) == [blobs[-1].data]


def test_a_function_left_out(client: Client, function: str) -> None:
    """FindMissingBlobsRequest.digest_function: left unset, the hash's length tells."""
    # Of more than a leaf: SHA256TREE is SHA-256 up to that.
    blobs = [other(function, 2000 + number) for number in range(6)]
    fine = [0] * len(blobs)
    if function in NAMED:
        # So it is SHA-256 that is meant, and that they are not.
        assert put(client, *blobs, number=0) == [INVALID.value[0]] * len(blobs)
        assert find(client, *blobs) == [blob.digest for blob in blobs]
    else:
        assert put(client, *blobs, number=0) == fine
        assert find(client, *blobs, number=0) == find(client, *blobs) == []


def test_another_functions_hash(client: Client, function: str) -> None:
    """FindMissingBlobsRequest.blob_digests: all of them of the request's function."""
    for named in HASHES:
        wrong = other(named, 10)
        if len(wrong.hash) != len(other(function, 10).hash):
            with fails(INVALID, wrong.hash[:60], function.lower()):
                find(client, wrong, number=pb.DigestFunction.Value.Value(function))
    with fails(INVALID):
        find(client, other("SHA256", 10), other("MD5", 10), number=0)


@pytest.mark.parametrize("size", [9, LARGE, 3_000_000])
def test_streams(client: Client, function: str, size: int) -> None:
    """REAPI on resource names: the function's segment stands where the length does not tell."""
    if function == "SHA256TREE":
        size = min(size, 200_000)
    blob = other(function, size)
    name = f"main/{blob.upload}"
    with fails(NOT_FOUND):
        client.query(name)
    half = size // 2
    assert client.write([bs.WriteRequest(resource_name=name, data=blob.data[:half])]) == half
    assert client.query(name) == (half, False)
    assert client.upload(blob, name=name, offset=half) == size
    assert client.query(name) == client.query(blob.name) == (size, True)
    assert client.read(blob.name) == blob.data
    assert client.read(f"main/{blob.name}", half, 100) == blob.data[half : half + 100]
    assert client.upload(blob, name=f"uploads/again/{blob.name}") == size


@pytest.mark.parametrize("size", [9, LARGE])
def test_wrong_bytes(client: Client, function: str, size: int) -> None:
    """REAPI: what was uploaded is verified against its digest."""
    blob = other(function, size)
    data = blob.data[:-1] + bytes((blob.data[-1] ^ 1,))
    for finish in (True, False):
        requests = [bs.WriteRequest(resource_name=blob.upload, data=data, finish_write=finish)]
        if not finish:
            requests.append(bs.WriteRequest(write_offset=size, finish_write=True))
        with fails(INVALID, blob.hash):
            client.write(requests)
    assert find(client, blob) == [blob.digest]


def test_the_empty_blob(client: Client, function: str) -> None:
    """REAPI: servers must behave as though empty blobs are always available."""
    empty = Other(b"", function=function)
    assert find(client, empty) == []
    assert read(client, empty) == [b""]
    assert client.read(empty.name) == b""
    assert client.query(empty.upload) == (0, True)


def test_the_same_bytes_under_two_functions(client: Client, function: str) -> None:
    """Digest: of two functions, even where their hashes are the same, two digests."""
    named = "SHA256TREE" if function == "SHA256" else "SHA256"
    blob = other(function, 100)
    assert put(client, blob) == [0]
    again = Other(blob.data, function=named)
    assert find(client, again) == [again.digest]
    assert find(client, blob) == []


def tree(function: str) -> tuple[list[Other], Other, Other]:
    """(what is below, the root's Directory message, the same as a Tree)."""
    file = other(function, 10)
    below = pb.Directory(
        files=[pb.FileNode(name="file", digest=file.digest)],
        symlinks=[pb.SymlinkNode(name="link", target="file")],
    )
    child = message(function, below)
    top = pb.Directory(directories=[pb.DirectoryNode(name="below", digest=child.digest)])
    whole = message(function, pb.Tree(root=top, children=[below]))
    return [file, child], message(function, top), whole


def test_trees(client: Client, function: str) -> None:
    """GetTreeRequest.digest_function: of the root digest; what is below has the same."""
    below, root, _ = tree(function)
    assert put(client, root, *below) == [0, 0, 0]
    request = pb.GetTreeRequest(root_digest=root.digest, digest_function=root.number)
    (page,) = client.get_tree(request, timeout=PATIENCE)
    assert [each.SerializeToString(deterministic=True) for each in page.directories] == [
        root.data,
        below[1].data,
    ]


@pytest.mark.parametrize("as_tree", [True, False], ids=["Tree", "root directory"])
def test_action_results(client: Client, function: str, as_tree: bool) -> None:
    """ActionResult: what it names has the function of the action's digest, trees included."""
    action, stdout = other(function, 30), other(function, 20)
    below, root, whole = tree(function)
    held = [stdout, *([whole, below[0]] if as_tree else [root, *below])]
    directory = pb.OutputDirectory(path="out")
    if as_tree:
        directory.tree_digest.CopyFrom(whole.digest)
    else:
        directory.root_directory_digest.CopyFrom(root.digest)
    result = pb.ActionResult(stdout_digest=stdout.digest, output_directories=[directory])
    update = pb.UpdateActionResultRequest(
        action_digest=action.digest, digest_function=action.number, action_result=result
    )
    ask = pb.GetActionResultRequest(
        action_digest=action.digest, digest_function=action.number, inline_stdout=True
    )
    assert put(client, *held[1:]) == [0] * (len(held) - 1)
    client.update_action_result(update, timeout=PATIENCE)
    # One blob, the last that is named, is not there yet.
    with fails(NOT_FOUND):
        client.get_action_result(ask, timeout=PATIENCE)
    assert put(client, stdout) == [0]
    got = client.get_action_result(ask, timeout=PATIENCE)
    assert got.stdout_raw == stdout.data
    got.ClearField("stdout_raw")
    assert got == result
    if function in NAMED:
        ask.digest_function = pb.DigestFunction.UNKNOWN
        with fails(NOT_FOUND):
            client.get_action_result(ask, timeout=PATIENCE)
