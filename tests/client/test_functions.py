"""Blobs and trees by other digest functions than SHA-256, over gRPC and HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cas import digest as digests
from cas.client import statcache
from cas.client.credentials import Credentials
from cas.client.doctor import Finding, examine
from cas.client.names import parse_digest
from cas.client.remote import parse
from cas.client.source import of_bytes, of_file
from cas.client.sync import Client
from cas.digest import BLAKE3, FUNCTIONS, SHA1, SHA256, Digest
from cas.errors import InvalidArgument
from cas.pb import remote_execution_pb2 as pb
from cas.store.memory import MemoryStore
from tests.client import trees
from tests.conformance.serving import Server
from tests.http.serving import serving

SIZES = (0, 9, 100_000, 3_000_000)


@pytest.fixture(params=["grpc", "http"])
def remote(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    if request.param == "grpc":
        yield f"grpc://{server.address}/main"
    else:
        with serving(MemoryStore()) as running:
            yield f"http://127.0.0.1:{running.port}/main"


@pytest.fixture
def client(remote: str) -> Iterator[Client]:
    with Client(remote) as client:
        yield client


def test_blobs_by_blake3(client: Client, tmp_path: Path) -> None:
    for size in SIZES:
        data = os.urandom(size)
        (tmp_path / "file").write_bytes(data)
        digest = client.put(data, BLAKE3)
        assert digest == digests.of(data, BLAKE3) == of_file(tmp_path / "file", BLAKE3).digest
        assert client.get(digest) == data
        client.get_file(digest, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == data
        assert client.has(digests.of(data)) is (not size)


def test_functions_may_be_mixed_in_one_call(client: Client) -> None:
    blobs = [
        of_bytes(os.urandom(size), function) for size in SIZES[1:] for function in (BLAKE3, SHA256)
    ]
    assert set(client.find_missing(blob.digest for blob in blobs)) == {b.digest for b in blobs}
    client.put_blobs(blobs)
    assert client.find_missing(blob.digest for blob in blobs) == []
    got: list[Digest] = []

    async def take(found: list[tuple[Digest, bytes]]) -> None:
        got.extend(digest for digest, _ in found)

    client._run(client.asynchronous.get_many([blob.digest for blob in blobs], take))
    assert set(got) == {blob.digest for blob in blobs}


def test_action_results_by_blake3(client: Client) -> None:
    output = client.put(os.urandom(50), BLAKE3)
    result = pb.ActionResult(stdout_digest=pb.Digest(hash=output.hex, size_bytes=output.size))
    action = digests.of(os.urandom(50), BLAKE3)
    client.put_action(action, result)
    assert client.get_action(action) == result
    assert client.get_action(digests.make(SHA256, action.hash, action.size)) is None


def test_a_tree_by_blake3(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files count as settled at once.
    monkeypatch.setattr(statcache, "SETTLED_NS", -1)
    trees.make(tmp_path / "in")
    cache = tmp_path / "cache"
    plain = client.push_tree(tmp_path / "in", cache=cache)
    pushed = client.push_tree(tmp_path / "in", cache=cache, function=BLAKE3)
    assert (plain.root.function, pushed.root.function) == (SHA256, BLAKE3)
    # What is remembered by one function's digest is read again for another's; once.
    assert pushed.hashed == plain.hashed == pushed.files
    assert client.push_tree(tmp_path / "in", cache=cache, function=BLAKE3).hashed == 0
    client.pull_tree(pushed.root, tmp_path / "out", cache=cache)
    assert trees.read(tmp_path / "out") == trees.read(tmp_path / "in")
    # The same files by another function's digests: read, and found to be right.
    assert client.pull_tree(plain.root, tmp_path / "out", cache=cache).written == 0


def examined(url: str, function: digests.Function) -> dict[str, Finding]:
    async def found() -> dict[str, Finding]:
        checks = examine(parse(url), Credentials(), 1 << 20, function)
        return {one.check: one async for one in checks}

    return asyncio.run(found())


def test_the_doctor_tries_the_function_that_is_asked_for(remote: str) -> None:
    found = examined(remote, BLAKE3)
    assert all(one.verdict == "ok" for name, one in found.items() if name != "latency")
    assert "action results" in found


def test_the_doctor_knows_what_a_remote_lacks(server: Server) -> None:
    found = examined(f"grpc://{server.address}", SHA1)
    assert found["capabilities"].verdict == "failed"
    assert "sha1" in found["capabilities"].advice


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_what_is_printed_is_read_back(function: digests.Function) -> None:
    digest = digests.of(b"x" * 77, function)
    for text in (str(digest), f"blobs/{digest}", f"{function.name}/{digest.hex}:{digest.size}"):
        assert parse_digest(text) == digest


@pytest.mark.parametrize("text", ["sha9/00/5", "blake3/00/5", f"BLAKE3/{'0' * 64}/5", "blake3/5"])
def test_what_names_no_function(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_digest(text)
