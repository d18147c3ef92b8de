"""TLS, certificates of ours, tokens, passwords and credential helpers, over both protocols."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import json
import ssl
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from cas.client import credentials as creds
from cas.client.client import AsyncClient
from cas.client.credentials import Credentials
from cas.client.errors import RemoteError, Unauthenticated
from cas.client.retry import Retry
from cas.client.source import of_bytes
from cas.pb import remote_execution_pb2 as pb
from tests.client.serving import HttpCache, Proxy, serving
from tests.conformance.serving import Server

FEW = Retry(attempts=2, first=0.01, longest=0.01)
SOME = of_bytes(b"some").digest


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


class Pki:
    """An authority, a context for servers (one that asks for certificates, one that does not),
    and credentials for clients."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        ours = authority.issue_cert("client@example.org")
        self.certificate = directory / "client.pem"
        self.key = directory / "client.key"
        for number, part in enumerate(ours.cert_chain_pems):
            part.write_to_path(str(self.certificate), append=number > 0)
        ours.private_key_pem.write_to_path(str(self.key))
        self.plain, self.asking = (
            self._server(authority, required) for required in (ssl.CERT_NONE, ssl.CERT_REQUIRED)
        )
        self.trusting = Credentials(ca=self.ca)
        self.known = Credentials(ca=self.ca, certificate=self.certificate, key=self.key)

    @staticmethod
    def _server(authority: trustme.CA, required: ssl.VerifyMode) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["h2", "http/1.1"])
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = required
        return context


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.mark.parametrize("mutual", [False, True], ids=["TLS", "mTLS"])
def test_grpc_over_tls(server: Server, pki: Pki, mutual: bool) -> None:
    context, right = (pki.asking, pki.known) if mutual else (pki.plain, pki.trusting)
    wrong = pki.trusting if mutual else Credentials()

    async def test() -> None:
        async with Proxy(server.address, ssl=context) as proxy:
            url = f"grpcs://{proxy.address}"
            async with AsyncClient(url, right) as client:
                assert await client.get(await client.put(b"secret")) == b"secret"
            async with AsyncClient(url, wrong, retry=FEW) as client:
                with pytest.raises(RemoteError):
                    await client.has(SOME)

    run(test())


@pytest.mark.parametrize("mutual", [False, True], ids=["TLS", "mTLS"])
def test_http_over_tls(pki: Pki, mutual: bool) -> None:
    context, right = (pki.asking, pki.known) if mutual else (pki.plain, pki.trusting)
    wrong = pki.trusting if mutual else Credentials()

    async def test() -> None:
        async with serving(HttpCache(), context) as address:
            url = f"https://{address}"
            async with AsyncClient(url, right) as client:
                assert await client.get(await client.put(b"secret")) == b"secret"
            async with AsyncClient(url, wrong, retry=FEW) as client:
                with pytest.raises(RemoteError):
                    await client.has(SOME)

    run(test())


def helper(directory: Path, answers: list[dict[str, object] | str]) -> str:
    """A program that gives one answer after the other, and notes what it was asked."""
    program = directory / "helper"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        f"log = pathlib.Path({str(directory / 'asked')!r})\n"
        "asked = log.read_text().splitlines() if log.exists() else []\n"
        "log.write_text('\\n'.join([*asked, sys.argv[1] + ' ' + sys.stdin.read()]))\n"
        f"answers = {answers!r}\n"
        "answer = answers[min(len(asked), len(answers) - 1)]\n"
        "sys.exit(answer) if isinstance(answer, str) else print(json.dumps(answer))\n"
    )
    program.chmod(0o755)
    return str(program)


def asked(directory: Path) -> list[str]:
    return (directory / "asked").read_text().splitlines()


def bearer(token: str) -> dict[str, object]:
    return {"headers": {"Authorization": [f"Bearer {token}"]}}


def test_tokens_passwords_and_helpers_over_http(tmp_path: Path) -> None:
    password = "Basic " + base64.b64encode(b"me:p:w").decode()
    wanted = {
        "Bearer t0": Credentials(token="t0"),
        password: Credentials(user="me", password="p:w"),
        "Bearer t1": Credentials(helper=helper(tmp_path, [bearer("t1")])),
    }

    async def test() -> None:
        for header, credentials in wanted.items():
            async with serving(HttpCache(authorization=header)) as address:
                async with AsyncClient(f"http://{address}", credentials) as client:
                    assert not await client.has(SOME)
                    assert not await client.has(SOME)
                if credentials.user:
                    async with AsyncClient(f"http://me:p%3Aw@{address}") as client:
                        assert not await client.has(SOME)
                async with AsyncClient(f"http://{address}") as client:
                    with pytest.raises(Unauthenticated):
                        await client.has(SOME)

    run(test())
    (line,) = asked(tmp_path)
    command, _, request = line.partition(" ")
    assert command == "get"
    assert json.loads(request)["uri"].startswith("http://127.0.0.1:")


def test_a_helper_is_asked_again_when_its_token_was_refused(tmp_path: Path) -> None:
    program = helper(tmp_path, [bearer("stale"), bearer("right"), bearer("third")])

    async def test() -> None:
        cache = HttpCache(authorization="Bearer right")
        async with (
            serving(cache) as address,
            AsyncClient(f"http://{address}", Credentials(helper=program), retry=FEW) as client,
        ):
            assert not await client.has(SOME)
            cache.authorization = "nothing is right"
            with pytest.raises(RemoteError):
                await client.has(SOME)

    run(test())
    assert len(asked(tmp_path)) == 3


def test_a_token_reaches_a_grpc_server(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []

    async def answer(request: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        if seen[-1].get("authorization") != "Bearer t1":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        return pb.ServerCapabilities().SerializeToString()

    async def test() -> None:
        server = grpc.aio.server()
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "GetCapabilities": grpc.unary_unary_rpc_method_handler(answer)
        }
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "build.bazel.remote.execution.v2.Capabilities", handlers
                ),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        url = f"grpc://127.0.0.1:{port}"
        program = helper(tmp_path, [bearer("t0"), bearer("t1")])
        try:
            for credentials in (Credentials(token="t1"), Credentials(helper=program)):
                async with AsyncClient(url, credentials, retry=FEW) as client:
                    await client.offer()
            async with AsyncClient(url, retry=FEW) as client:
                with pytest.raises(Unauthenticated, match="who are you"):
                    await client.offer()
        finally:
            await server.stop(None)

    run(test())


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["no login; run login first"], "ended with code 1: no login; run login first"),
        ([{"headers": ["x"]}], "answered .* expected"),
        ([{"headers": {}, "expires": "tomorrow"}], "answered .* expected"),
    ],
)
def test_a_helper_that_fails_is_named(
    tmp_path: Path, answers: list[dict[str, object] | str], said: str
) -> None:
    with pytest.raises(Unauthenticated, match=said):
        asyncio.run(creds.ask(helper(tmp_path, answers), "https://h"))
    with pytest.raises(Unauthenticated, match="/nowhere: No such file"):
        asyncio.run(creds.ask("/nowhere", "https://h"))


def test_what_a_helper_says_expires() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    answer = json.dumps({**bearer("x"), "expires": soon.isoformat()}).encode()
    headers, seconds = creds.read_answer("h", answer)
    assert headers == (("authorization", "Bearer x"),)
    assert 3000 < seconds < 3600
    assert creds.read_answer("h", b"{}") == ((), creds.KEPT_SECONDS)


@given(st.binary(max_size=60))
def test_whatever_a_helper_says_is_headers_or_an_error(answer: bytes) -> None:
    with contextlib.suppress(Unauthenticated):
        headers, _ = creds.read_answer("h", answer)
        assert all(name == name.lower() for name, _ in headers)


def test_secrets_are_not_shown() -> None:
    shown = repr(Credentials(token="hidden", user="me", password="hidden"))
    assert "hidden" not in shown
