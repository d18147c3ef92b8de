"""Which account of Azure's the environment names; and what a container does that is not S3's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from cas.errors import ConfigError
from cas.upstream.azure import CONNECTION, settings
from cas.upstream.objects import Broken
from cas.upstream.obstores import PART, connect

KEY = "bm90LWEtc2VjcmV0"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No account is named by who runs this."""
    for name in ("ENDPOINT", "ACCOUNT_NAME", "ACCOUNT_KEY", "CONNECTION_STRING", "USE_EMULATOR"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"DefaultEndpointsProtocol=https;AccountName=team;AccountKey={KEY}==",
            {
                "use_emulator": False,
                "account_name": "team",
                "account_key": f"{KEY}==",
                "endpoint": "https://team.blob.core.windows.net",
            },
        ),
        (
            f"AccountName=team;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn;",
            {
                "use_emulator": False,
                "account_name": "team",
                "account_key": KEY,
                "endpoint": "https://team.blob.core.chinacloudapi.cn",
            },
        ),
        (
            "BlobEndpoint=https://team.blob.core.windows.net/;SharedAccessSignature=?sv=1&sig=a%3D",
            {
                "use_emulator": False,
                "account_name": "team",
                "sas_key": "sv=1&sig=a%3D",
                "endpoint": "https://team.blob.core.windows.net",
            },
        ),
        (
            f"AccountName=cas;AccountKey={KEY};BlobEndpoint=http://azurite:10000/cas",
            {
                "use_emulator": False,
                "account_name": "cas",
                "account_key": KEY,
                "endpoint": "http://azurite:10000/cas",
            },
        ),
        ("UseDevelopmentStorage=true", {"use_emulator": True}),
    ],
    ids=["portal", "suffix", "signature", "azurite", "development"],
)
def test_a_connection_string_names_an_account(text: str, expected: dict[str, object]) -> None:
    assert settings({CONNECTION: text}) == expected


def test_what_is_said_outright_goes_first() -> None:
    text = f"AccountName=a;AccountKey={KEY};BlobEndpoint=https://a.example"
    assert settings({CONNECTION: text}, "https://b.example")["endpoint"] == "https://b.example"
    named = {CONNECTION: text, "AZURE_STORAGE_ACCOUNT_NAME": "c"}
    assert settings(named) == {}
    assert settings({"AZURE_STORAGE_ENDPOINT": "http://d"}) == {"endpoint": "http://d"}
    assert settings({}) == {}


@pytest.mark.parametrize("text", ["secret", "AccountKey=secret", "a=b;secret"])
def test_no_error_holds_what_may_be_a_secret(text: str) -> None:
    with pytest.raises(ConfigError, match=CONNECTION) as caught:
        settings({CONNECTION: text})
    assert "secret" not in str(caught.value)


def test_an_account_that_nobody_names_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="expected AZURE_STORAGE_ACCOUNT_NAME or"):
        connect("az://box/team", {}, connect_timeout=5)


class Heap:
    """Answers as Azure does where another has sent the same object in parts, and was done first."""

    def __init__(self, size: int | None) -> None:
        """`size` is that of what is there; None if nothing is."""
        self.size = size
        self.asked: list[str] = []

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        async for _ in request.content.iter_any():
            pass
        self.asked.append(f"{request.method} {request.query.get('comp', '')}".strip())
        if request.method == "HEAD":
            if self.size is None:
                return web.Response(status=404)
            headers = {"Content-Length": str(self.size), "ETag": '"e"'}
            headers["Last-Modified"] = "Mon, 01 Jan 2024 00:00:00 GMT"
            return web.Response(headers=headers)
        return web.Response(status=400 if request.query.get("comp") == "blocklist" else 201)


@pytest.mark.parametrize(
    ("there", "fails"),
    [(PART + 5, False), (PART + 4, True), (None, True)],
    ids=["the same", "another", "none"],
)
@pytest.mark.parametrize("by", ["option", "environment"])
def test_an_object_that_another_was_done_with_first_is_sent(
    there: int | None, fails: bool, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield bytes(PART)
        yield bytes(5)

    async def run(heap: Heap) -> None:
        server = web.ServerRunner(web.Server(heap))
        await server.setup()
        site = web.TCPSite(server, "127.0.0.1", 0)
        await site.start()
        try:
            endpoint = "http://{}:{}/cas".format(*server.addresses[0][:2])
            options = {"account_name": "cas", "account_key": KEY}
            if by == "environment":
                # It says itself that it is not encrypted.
                monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", endpoint)
            else:
                options["endpoint"] = endpoint
            objects = connect("az://box", options, connect_timeout=5)
            await objects.put_parts("v1/a", parts())
        finally:
            await server.cleanup()

    heap = Heap(there)
    if fails:
        with pytest.raises(Broken):
            asyncio.run(run(heap))
    else:
        asyncio.run(run(heap))
    assert heap.asked[-2:] == ["PUT blocklist", "HEAD"]
    assert heap.asked.count("PUT block") == 2


def test_no_account_of_the_environment_is_another_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONNECTION, "no connection string")
    connect("memory:///", {}, connect_timeout=5)
