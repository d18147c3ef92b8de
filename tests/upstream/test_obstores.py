"""obstore's own stores answer as `objects.Objects` says."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from cas.errors import ConfigError
from cas.upstream.objects import Absent, Broken, Refused
from cas.upstream.obstores import PART, ObStore, connect

KEYS = {"access_key_id": "a", "secret_access_key": "b", "region": "here"}
DATA = random.Random(5).randbytes(3 << 20)


@pytest.fixture(params=["memory", "file"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObStore:
    url = "memory:///" if request.param == "memory" else f"file://{tmp_path}/bucket"
    return connect(url, {}, connect_timeout=5)


async def _read(objects: ObStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    found = await objects.get(key, start, end)
    assert found.size == len(DATA)
    return b"".join([piece async for piece in found.pieces()])


def test_what_is_put_is_there(objects: ObStore) -> None:
    async def run() -> None:
        await objects.put("v1/a", DATA)
        assert await objects.head("v1/a") == len(DATA)
        assert await _read(objects, "v1/a") == DATA
        assert await _read(objects, "v1/a", 1000, 1010) == DATA[1000:1010]
        assert await _read(objects, "v1/a", 3_000_000) == DATA[3_000_000:]

    asyncio.run(run())


def test_an_object_comes_in_pieces(objects: ObStore) -> None:
    async def run() -> None:
        await objects.put("v1/a", DATA)
        pieces = [piece async for piece in (await objects.get("v1/a", 0, None)).pieces()]
        assert b"".join(pieces) == DATA
        assert all(pieces)

    asyncio.run(run())


def test_what_is_put_again_takes_the_place_of_what_was_there(objects: ObStore) -> None:
    async def run() -> None:
        await objects.put("v1/a", DATA)
        await objects.put("v1/a", b"other")
        assert await objects.head("v1/a") == 5

    asyncio.run(run())


def test_an_object_in_parts_is_there_once_they_all_came(objects: ObStore) -> None:
    whole = random.Random(6).randbytes(2 * PART + 17)

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(whole), PART):
            with pytest.raises(Absent):
                await objects.head("v1/big")
            yield whole[at : at + PART]

    async def broken() -> AsyncIterator[bytes]:
        yield whole[:PART]
        raise ValueError("the disk fails")

    async def run() -> None:
        await objects.put_parts("v1/big", parts())
        found = await objects.get("v1/big", 0, None)
        assert b"".join([piece async for piece in found.pieces()]) == whole
        with pytest.raises(Exception, match="disk fails"):
            await objects.put_parts("v1/none", broken())
        with pytest.raises(Absent):
            await objects.head("v1/none")

    asyncio.run(run())


def test_what_is_absent_is_absent(objects: ObStore) -> None:
    async def run() -> None:
        with pytest.raises(Absent):
            await objects.head("v1/none")
        with pytest.raises(Absent):
            await objects.get("v1/none", 0, None)
        with pytest.raises(Absent):
            await objects.get("v1/none", 5, 9)
        with pytest.raises(Absent):
            await objects.copy("v1/none", "v1/b")
        await objects.delete("v1/none")

    asyncio.run(run())


def test_a_copy_onto_itself_renews_an_object() -> None:
    async def run() -> None:
        objects = connect("memory:///", {}, connect_timeout=5)
        await objects.put("v1/a", DATA)
        await asyncio.sleep(0.3)
        old = await objects.look("v1/a")
        assert old.size == len(DATA)
        assert old.age >= 0.29
        assert (await objects.get("v1/a", 0, None)).age >= old.age
        began = time.time()
        await objects.copy("v1/a", "v1/a")
        assert await _read(objects, "v1/a") == DATA
        renewed = await objects.look("v1/a")
        assert renewed.age <= time.time() - began + 0.1

    asyncio.run(run())


def test_s3_is_told_to_replace_what_is_copied_onto_itself() -> None:
    """It refuses such a copy otherwise."""
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        result = "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>"
        return web.Response(text=result, content_type="application/xml")

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            endpoint = "http://{}:{}".format(*runner.addresses[0][:2])
            objects = connect("s3://bucket", {**KEYS, "endpoint": endpoint}, connect_timeout=5)
            await objects.copy("v1/a", "v1/a")
            await objects.copy("v1/a", "v1/b")
        finally:
            await runner.cleanup()

    asyncio.run(run())
    name = "x-amz-metadata-directive"
    told = [(found.path, found.headers.get(name)) for found in asked]
    assert told == [("/bucket/v1/a", "REPLACE"), ("/bucket/v1/b", None)]
    assert name in asked[0].headers["Authorization"], "what is not signed is refused, too"


def test_copy_delete_and_list(objects: ObStore) -> None:
    async def run() -> None:
        await objects.put("v1/a/1", b"one")
        await objects.copy("v1/a/1", "v1/b/1")
        await objects.delete("v1/a/1")
        await objects.put("v1/b/2", b"two!")
        await objects.put("v1/c", b"")
        listed = {entry async for batch in objects.list("v1/b") for entry in batch}
        assert listed == {("v1/b/1", 3), ("v1/b/2", 4)}
        with pytest.raises(Absent):
            await objects.head("v1/a/1")

    asyncio.run(run())


def test_no_connection_is_a_failure_that_may_pass() -> None:
    # Nothing listens on port 1 of this machine.
    options = {**KEYS, "endpoint": "http://127.0.0.1:1"}
    objects = connect("s3://bucket/prefix", options, connect_timeout=5)
    with pytest.raises(Broken):
        asyncio.run(_head(objects))


async def _head(objects: ObStore) -> int:
    return await objects.head("v1/a")


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, Refused), (401, Refused), (500, Broken), (503, Broken), (429, Broken)],
)
def test_what_a_status_means(status: int, error: type[Exception]) -> None:
    async def run() -> None:
        async def answer(_: web.BaseRequest) -> web.Response:
            return web.Response(status=status)

        server = web.ServerRunner(web.Server(answer))
        await server.setup()
        site = web.TCPSite(server, "127.0.0.1", 0)
        await site.start()
        try:
            port = server.addresses[0][1]
            endpoint = f"http://127.0.0.1:{port}"
            objects = connect("s3://bucket", {**KEYS, "endpoint": endpoint}, connect_timeout=5)
            with pytest.raises(error):
                await objects.head("v1/a")
            with pytest.raises(error):
                await objects.get("v1/a", 0, None)
            with pytest.raises(error):
                await objects.put("v1/a", b"x")
        finally:
            await server.cleanup()

    asyncio.run(run())


def test_a_bucket_that_is_not_there_refuses_writes(tmp_path: Path) -> None:
    async def run() -> None:
        async def answer(_: web.BaseRequest) -> web.Response:
            return web.Response(status=404)

        server = web.ServerRunner(web.Server(answer))
        await server.setup()
        site = web.TCPSite(server, "127.0.0.1", 0)
        await site.start()
        try:
            endpoint = f"http://127.0.0.1:{server.addresses[0][1]}"
            objects = connect("s3://bucket", {**KEYS, "endpoint": endpoint}, connect_timeout=5)
            with pytest.raises(Refused):
                await objects.put("v1/a", b"x")
        finally:
            await server.cleanup()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "options"),
    [("ftp://host/x", {}), ("bucket", {}), ("s3://b", {"no_such_option": "1"})],
    ids=["scheme", "none", "option"],
)
def test_what_is_no_store_is_refused_at_once(url: str, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="upstream"):
        connect(url, options, connect_timeout=5)
