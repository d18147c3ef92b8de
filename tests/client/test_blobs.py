"""Blobs to a server and back, over gRPC and HTTP, through connections that break."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cas import digest as digests
from cas.client.client import BATCHED, AsyncClient
from cas.client.errors import Unauthenticated, Unavailable
from cas.client.retry import Retry
from cas.client.source import Blob, File, of_bytes, of_file
from cas.client.sync import Client
from cas.errors import DigestMismatch, InvalidArgument, NotFound
from cas.pb import remote_execution_pb2 as pb
from tests.client.serving import HttpCache, Proxy, random_cuts, serving
from tests.conformance.serving import Server

T = TypeVar("T")
MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
QUICK = Retry(attempts=40, first=0.01, longest=0.05)
FEW = Retry(attempts=2, first=0.01, longest=0.01)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def fresh(size: int) -> bytes:
    return random.Random(os.urandom(16)).randbytes(size)


@asynccontextmanager
async def remote(kind: str, server: Server) -> AsyncIterator[str]:
    if kind == "grpc":
        yield f"grpc://{server.address}"
    else:
        async with serving(HttpCache()) as address:
            yield f"http://{address}"


both = pytest.mark.parametrize("kind", ["grpc", "http"])


@both
def test_blobs_of_every_size_come_back(kind: str, server: Server) -> None:
    sizes = (0, 1, 1000, BATCHED, BATCHED + 1, MIB, 3 * MIB + 7)
    blobs = [fresh(size) for size in sizes]

    async def test() -> None:
        async with remote(kind, server) as url, AsyncClient(url) as client:
            named = [await client.put(blob) for blob in blobs]
            assert not await client.find_missing(named)
            assert [await client.get(digest) for digest in named] == blobs
            seen: dict[bytes, bytes] = {}

            async def take(found: list[tuple[digests.Digest, bytes]]) -> None:
                seen.update((digest.key, data) for digest, data in found)

            await client.get_many(named, take)
            assert [seen[digest.key] for digest in named] == blobs

    run(test())


@both
def test_only_what_is_missing_is_sent(kind: str, server: Server) -> None:
    old, new = fresh(1000), fresh(1000)

    async def test() -> None:
        async with remote(kind, server) as url, AsyncClient(url) as client:
            await client.put(old)
            before = client.tally.sent_blobs
            await client.put_blobs([of_bytes(old), of_bytes(new), of_bytes(new), of_bytes(b"")])
            assert client.tally.sent_blobs == before + 1
            assert client.tally.sent_bytes == 2000
            assert not await client.has(of_bytes(fresh(9)).digest)

    run(test())


@both
def test_what_is_absent_is_named(kind: str, server: Server) -> None:
    async def test() -> None:
        async with remote(kind, server) as url, AsyncClient(url) as client:
            for size in (10, 2 * MIB):
                absent = of_bytes(fresh(size)).digest
                with pytest.raises(NotFound, match=str(absent)):
                    await client.get(absent)
            assert await client.get_action(absent) is None

    run(test())


@both
def test_action_results_come_back(kind: str, server: Server) -> None:
    action = of_bytes(fresh(20)).digest
    result = pb.ActionResult(exit_code=7, stdout_raw=b"said")

    async def test() -> None:
        async with remote(kind, server) as url, AsyncClient(url) as client:
            await client.put_action(action, result)
            found = await client.get_action(action)
            assert found is not None
            assert (found.exit_code, found.stdout_raw) == (7, b"said")

    run(test())


def test_damaged_blobs_are_not_handed_on(tmp_path: Path) -> None:
    async def test() -> None:
        cache = HttpCache()
        async with serving(cache) as address, AsyncClient(f"http://{address}") as client:
            for size in (100, 2 * MIB):
                digest = await client.put(fresh(size))
                cache.blobs[f"/cas/{digest.hex}"] = fresh(size)
                with pytest.raises(DigestMismatch):
                    await client.get(digest)
                with pytest.raises(DigestMismatch):
                    await client.get_file(digest, tmp_path / "file")
                assert os.listdir(tmp_path) == []
                cache.blobs[f"/cas/{digest.hex}"] += b"more"
                with pytest.raises(InvalidArgument):
                    await client.get(digest)

    run(test())


def test_an_upload_goes_on_where_it_broke(server: Server) -> None:
    data = fresh(12 * MIB)

    async def test() -> None:
        cuts = random_cuts(1, 6, MIB, 4 * MIB)
        async with (
            Proxy(server.address, cuts) as proxy,
            AsyncClient(f"grpc://{proxy.address}", retry=QUICK) as client,
        ):
            digest = await client.put(data)
            assert proxy.cuts >= 3
            # What was lost on the way is sent again, not what had arrived: without resumption
            # no try would have got through before the cuts were used up.
            assert client.tally.sent_bytes < len(data) + proxy.cuts * 8 * MIB
        async with AsyncClient(f"grpc://{server.address}") as client:
            assert await client.get(digest) == data

    run(test())


@pytest.mark.parametrize("kind", ["grpc", "http", "http without ranges"])
def test_a_download_goes_on_where_it_broke(kind: str, server: Server, tmp_path: Path) -> None:
    data = fresh(12 * MIB)

    async def test() -> None:
        http = HttpCache(ranges=kind == "http")
        async with serving(http) as address:
            scheme, target = ("grpc", server.address) if kind == "grpc" else ("http", address)
            async with AsyncClient(f"{scheme}://{target}") as client:
                digest = await client.put(data)
            cuts = random_cuts(2, 4, MIB, 4 * MIB)
            async with (
                Proxy(target, cuts) as proxy,
                AsyncClient(f"{scheme}://{proxy.address}", retry=QUICK) as client,
            ):
                await client.get_file(digest, tmp_path / "file")
                # The first connection may have carried the question what the remote can do.
                assert proxy.cuts >= 3
                assert client.tally.got_bytes == len(data)
        assert (tmp_path / "file").read_bytes() == data

    run(test())


def test_many_small_blobs_survive_broken_connections(server: Server) -> None:
    blobs = [of_bytes(fresh(random.Random(n).randint(0, 20_000))) for n in range(600)]

    async def test() -> None:
        cuts = random_cuts(3, 5, 100_000, 2 * MIB)
        async with (
            Proxy(server.address, cuts) as proxy,
            AsyncClient(f"grpc://{proxy.address}", retry=QUICK) as client,
        ):
            await client.put_blobs(blobs)
            assert proxy.cuts >= 2
            assert not await client.find_missing(blob.digest for blob in blobs)

    run(test())


def test_a_busy_remote_is_asked_again_and_a_dead_one_is_given_up() -> None:
    async def test() -> None:
        cache = HttpCache(fail=3)
        async with (
            serving(cache) as address,
            AsyncClient(f"http://{address}", retry=QUICK) as client,
        ):
            await client.put(b"hello")
            assert client.tally.sent_blobs == 1
        for scheme in ("http", "grpc"):
            async with AsyncClient(f"{scheme}://{address}", retry=FEW) as client:
                with pytest.raises(Unavailable):
                    await client.put(b"hello")

    run(test())


def test_a_refusal_is_not_tried_again() -> None:
    async def test() -> None:
        cache = HttpCache(authorization="Bearer right")
        async with (
            serving(cache) as address,
            AsyncClient(f"http://{address}", retry=QUICK) as client,
        ):
            with pytest.raises(Unauthenticated):
                await client.has(of_bytes(b"x").digest)
            assert len(cache.seen) == 1

    run(test())


def test_a_file_that_changed_meanwhile_is_named(url: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncClient(url) as client:
            for size in (100, 2 * MIB):
                file = tmp_path / f"file-{size}"
                file.write_bytes(fresh(size))
                blob = of_file(file)
                file.write_bytes(fresh(size))
                with pytest.raises(InvalidArgument, match=rf"{file} changed"):
                    await client.send([Blob(blob.digest, File(file))])

    run(test())


def test_transfers_stay_within_their_budget(url: str) -> None:
    blobs = [of_bytes(fresh(3 * MIB)) for _ in range(6)]

    async def test() -> None:
        async with AsyncClient(url, budget=MIB) as client:
            await client.put_blobs(blobs)
            assert not await client.find_missing(blob.digest for blob in blobs)

    run(test())


def test_the_synchronous_face_does_the_same(url: str, tmp_path: Path) -> None:
    data = fresh(5000)
    (tmp_path / "in").write_bytes(data)
    with Client(url) as client:
        digest = client.put(tmp_path / "in")
        assert digest == digests.of(data)
        assert client.has(digest)
        assert client.get(digest) == data
        client.get_file(digest, tmp_path / "out")
        client.put_action(digest, pb.ActionResult(exit_code=3))
        found = client.get_action(digest)
        assert found is not None
        assert found.exit_code == 3
        assert client.find_missing([digest]) == []
    assert (tmp_path / "out").read_bytes() == data


def test_the_client_needs_nothing_of_the_server() -> None:
    script = (
        "import sys, cas.client.sync, cas.client.overgrpc, cas.client.overhttp\n"
        "parts = ('server', 'store', 'index', 'api', 'rpc', 'http', 'config', 'options')\n"
        "print(*(m for m in sys.modules if m == 'lmdb' or m.startswith("
        "tuple(f'cas.{part}' for part in parts))))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.strip() == ""
