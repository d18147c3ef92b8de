"""What `cas doctor` finds, and what it advises."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from pathlib import Path

import pytest
import trustme

from cas.client.credentials import Credentials
from cas.client.doctor import Finding, examine
from cas.client.remote import parse
from tests.client.serving import HttpCache, serving
from tests.conformance.serving import Server

NOBODY = Credentials()


async def findings(url: str, credentials: Credentials = NOBODY) -> dict[str, Finding]:
    return {one.check: one async for one in examine(parse(url), credentials, 1 << 20)}


def bad(found: dict[str, Finding]) -> dict[str, str]:
    return {name: one.verdict for name, one in found.items() if one.verdict != "ok"}


def test_a_sound_grpc_server_is_well(server: Server) -> None:
    found = asyncio.run(findings(f"grpc://{server.address}"))
    assert bad({name: one for name, one in found.items() if name != "latency"}) == {}
    assert list(found) == [
        *("address", "capabilities", "latency", "round trip", "action results"),
        *("throughput", "clock"),
    ]
    assert "REAPI 2.0" in found["capabilities"].detail


def test_a_sound_http_server_is_well() -> None:
    async def test() -> None:
        async with serving(HttpCache()) as address:
            found = await findings(f"http://{address}")
        assert bad({name: one for name, one in found.items() if name != "latency"}) == {}
        assert "0 s" in found["clock"].detail or "1 s" in found["clock"].detail

    asyncio.run(test())


def test_what_is_wrong_is_found() -> None:
    async def test() -> None:
        async with serving(HttpCache(read_only=True)) as address:
            found = await findings(f"http://{address}")
            assert found["round trip"].verdict == found["action results"].verdict == "warning"
            assert "writing does not" in found["round trip"].detail
        async with serving(HttpCache(authorization="Bearer x")) as address:
            found = await findings(f"http://{address}")
            assert bad(found) == {"HTTP": "failed"}
            assert "--token-file" in found["HTTP"].advice
        async with serving(HttpCache(date="Thu, 01 Jan 2015 00:00:00 GMT")) as address:
            found = await findings(f"http://{address}")
            assert found["clock"].verdict == "warning"
            assert "behind" in found["clock"].detail

    asyncio.run(test())


def test_the_wrong_protocol_is_recognised(server: Server) -> None:
    async def test() -> None:
        async with serving(HttpCache()) as address:
            found = await findings(f"grpc://{address}")
            assert f"try http://{address}" in found["capabilities"].advice
        found = await findings(f"http://{server.address}")
        assert f"try grpc://{server.address}" in found["HTTP"].advice
        found = await findings(f"grpcs://{server.address}")
        assert "try grpc://" in found["TLS"].advice

    asyncio.run(test())


def test_an_untrusted_certificate_is_told_and_a_trusted_one_counted(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def test() -> None:
        async with serving(HttpCache(), context) as address:
            found = await findings(f"https://{address}")
            assert bad(found) == {"TLS": "failed"}
            assert "--ca" in found["TLS"].advice
            found = await findings(f"https://{address}", Credentials(ca=tmp_path / "ca.pem"))
            assert found["TLS"].verdict == "ok"
            assert "valid for" in found["TLS"].detail
            assert found["round trip"].verdict == "ok"

    asyncio.run(test())


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("grpc://127.0.0.1:1", "start the server"),
        ("unix:/nowhere/cas.sock", "start the server"),
    ],
)
def test_what_is_not_there_ends_the_checks(url: str, advice: str) -> None:
    found = asyncio.run(findings(url))
    assert bad(found) == {"address": "failed"}
    assert list(found) == ["address"]
    assert advice in found["address"].advice


def test_what_lies_behind_is_told() -> None:
    async def told(upstream: dict[str, object] | None) -> Finding | None:
        said = {"upstream": upstream} if upstream is not None else []
        cache = HttpCache(blobs={"/status": json.dumps(said).encode()})
        async with serving(cache) as address:
            return (await findings(f"http://{address}/some/instance")).get("upstream")

    async def test() -> None:
        assert await told(None) is None
        assert await told({"url": None, "down": False}) is None
        well = await told({"url": "s3://b", "down": False, "requests": 1200, "fetched_blobs": 7})
        assert well is not None
        assert (well.verdict, well.detail) == ("ok", "s3://b: 7 blobs fetched, 1,200 requests")
        down = await told({"url": "s3://b", "down": True, "down_since": time.time() - 100})
        assert down is not None
        assert down.verdict == "failed"
        assert "s3://b cannot be had, for 10" in down.detail
        circle = await told({"url": "grpc://b", "circle_seen": time.time() - 100})
        assert circle is not None
        assert circle.verdict == "failed"
        assert "grpc://b leads back to this node" in circle.detail
        over = await told({"url": "grpc://b", "circle_seen": time.time() - 3600})
        assert over is not None
        assert over.verdict == "ok"
        late = await told({"url": "s3://b", "unsent": {"entries": 3, "oldest_seconds": 90.0}})
        assert late is not None
        assert late.verdict == "warning"
        assert "3 writes wait to be sent, the oldest for 90 s" in late.detail

    asyncio.run(test())
