"""zstd between client and server: chosen where offered and worthwhile, resumed, verified."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cas.client.client import BATCHED, AsyncClient
from cas.client.errors import RemoteError
from cas.client.retry import Retry
from cas.client.wire import Wire
from cas.digest import Digest
from cas.errors import InvalidArgument
from cas.store.memory import MemoryStore
from tests.client.serving import HttpCache, Proxy, random_cuts, serving
from tests.conformance.serving import Server
from tests.http.serving import Served
from tests.http.serving import serving as serving_http

MIB = 1 << 20
QUICK = Retry(attempts=40, first=0.01, longest=0.05)


def half_noise(size: int) -> bytes:
    """Shrinks to half."""
    chance = random.Random(os.urandom(16))
    return b"".join(chance.randbytes(2048) + bytes(2048) for _ in range(size // 4096))


@pytest.fixture(scope="module")
def front() -> Iterator[Served]:
    with serving_http(MemoryStore()) as served:
        yield served


@pytest.fixture(params=["grpc", "http"])
def either(request: pytest.FixtureRequest, server: Server, front: Served) -> str:
    return (
        f"grpc://{server.address}" if request.param == "grpc" else f"http://127.0.0.1:{front.port}"
    )


def test_what_shrinks_goes_as_zstd_both_ways(either: str, tmp_path: Path) -> None:
    async def test() -> None:
        for size in (8192, MIB, BATCHED + MIB):
            data = half_noise(size)
            async with AsyncClient(either, zstd=True) as client:
                digest = await client.put(data)
                assert client.tally.sent_bytes < 0.7 * size
                assert await client.get(digest) == data
                await client.get_file(digest, tmp_path / "file")
                assert (tmp_path / "file").read_bytes() == data
            async with AsyncClient(either, zstd=False) as client:
                assert await client.get(digest) == data

    asyncio.run(test())


@pytest.mark.parametrize("size", [500, MIB, BATCHED + MIB])
def test_what_does_not_shrink_goes_as_it_is(either: str, size: int) -> None:
    data = random.Random(os.urandom(16)).randbytes(size)

    async def test() -> None:
        async with AsyncClient(either, zstd=True) as client:
            digest = await client.put(data)
            assert client.tally.sent_bytes == size
            assert await client.get(digest) == data

    asyncio.run(test())


def test_what_crosses_no_network_goes_as_it_is_unless_told_otherwise(either: str) -> None:
    async def test() -> None:
        for zstd in (None, False):
            async with AsyncClient(either, zstd=zstd) as client:
                await client.put(half_noise(MIB))
                assert client.tally.sent_bytes == MIB

    asyncio.run(test())


def test_a_cache_that_does_not_say_so_is_sent_no_zstd() -> None:
    data = half_noise(3 * MIB)

    async def test() -> None:
        cache = HttpCache()
        async with serving(cache) as address, AsyncClient(f"http://{address}", zstd=True) as client:
            digest = await client.put(data)
            assert cache.blobs[f"/cas/{digest.hex}"] == data

    asyncio.run(test())


def watched(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets at which uploads begin."""
    offsets: list[int] = []
    write: Callable[..., Any] = wire.write

    async def noting(digest: Digest, name: str, offset: int, *more: Any) -> int:
        offsets.append(offset)
        size: int = await write(digest, name, offset, *more)
        return size

    monkeypatch.setattr(wire, "write", noting)
    return offsets


def test_a_compressed_upload_goes_on_where_it_broke(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = half_noise(24 * MIB)

    async def test() -> None:
        cuts = random_cuts(1, 6, MIB, 4 * MIB)
        async with (
            Proxy(server.address, cuts) as proxy,
            AsyncClient(f"grpc://{proxy.address}", retry=QUICK, zstd=True) as client,
        ):
            offsets = watched(client._wire, monkeypatch)
            digest = await client.put(data)
            assert proxy.cuts >= 3
            assert offsets == sorted(offsets)
            assert offsets[-1] > 0
            assert client.tally.sent_bytes < len(data) // 2 + proxy.cuts * 8 * MIB
        async with AsyncClient(f"grpc://{server.address}") as client:
            assert await client.get(digest) == data

    asyncio.run(test())


def test_a_remote_that_counts_otherwise_gets_it_from_the_start(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REAPI leaves open what QueryWriteStatus counts; who goes wrong by it is not believed."""
    data = half_noise(12 * MIB)

    async def test() -> None:
        async with (
            Proxy(server.address, random_cuts(4, 2, MIB, 2 * MIB)) as proxy,
            AsyncClient(f"grpc://{proxy.address}", retry=QUICK, zstd=True) as client,
        ):
            offsets = watched(client._wire, monkeypatch)
            committed = client._wire.committed

            async def other(name: str) -> int:
                size = await committed(name)
                return size // 2 if size < len(data) else size

            monkeypatch.setattr(client._wire, "committed", other)
            digest = await client.put(data)
            assert max(offsets) > 0
            assert offsets[-1] == 0
            assert await client.get(digest) == data

    asyncio.run(test())


def test_a_compressed_download_goes_on_where_it_broke(either: str, tmp_path: Path) -> None:
    data = half_noise(24 * MIB)

    async def test() -> None:
        async with AsyncClient(either, zstd=True) as client:
            digest = await client.put(data)
        scheme, target = either.split("://")
        async with (
            Proxy(target, random_cuts(2, 4, MIB, 3 * MIB)) as proxy,
            AsyncClient(f"{scheme}://{proxy.address}", retry=QUICK, zstd=True) as client,
        ):
            await client.get_file(digest, tmp_path / "file")
            assert proxy.cuts >= 2
            assert client.tally.got_bytes == len(data)
        assert (tmp_path / "file").read_bytes() == data

    asyncio.run(test())


def test_an_encoding_that_nobody_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiohttp import web

    async def handle(self: HttpCache, request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    monkeypatch.setattr(HttpCache, "handle", handle)

    async def test() -> None:
        async with (
            serving(HttpCache()) as address,
            AsyncClient(f"http://{address}", zstd=True) as client,
        ):
            with pytest.raises((RemoteError, InvalidArgument), match="gzip"):
                await client.get(Digest(b"\x01" + bytes(32) + b"\x02", 2))

    asyncio.run(test())
