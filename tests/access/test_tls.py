"""TLS on both ports and both engines: versions, client certificates, renewal while it runs."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme

from cas.pb import remote_execution_pb2 as pb
from tests.access.serving import (
    DENIED,
    TOKENS,
    UNAUTHENTICATED,
    ask,
    bearer,
    replace,
    serving,
    written,
)
from tests.conformance.client import Client, fails, fresh, tolerated
from tests.server.serving import PATIENCE, Server


@dataclass(frozen=True)
class Party:
    """A certificate and whom it trusts."""

    ca: bytes
    """Of the servers that it trusts."""
    chain: bytes | None = None
    key: bytes | None = None

    def grpc(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.chain)

    def ssl(self, directory: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca.decode())
        if self.chain is not None and self.key is not None:
            path = directory / f"{time.monotonic_ns()}.pem"
            path.write_bytes(self.key + self.chain)
            context.load_cert_chain(path)
        return context


def party(ca: bytes, leaf: trustme.LeafCert | None = None) -> Party:
    if leaf is None:
        return Party(ca)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return Party(ca, chain, leaf.private_key_pem.bytes())


def pem(ca: trustme.CA) -> bytes:
    return ca.cert_pem.bytes()


def install(directory: Path, ca: trustme.CA) -> list[str]:
    """A server's certificate of `ca` in place; the arguments that name it."""
    directory.mkdir(exist_ok=True)
    leaf = party(b"", ca.issue_cert("127.0.0.1", "localhost"))
    assert leaf.chain is not None
    assert leaf.key is not None
    replace(directory / "cert.pem", leaf.chain)
    replace(directory / "key.pem", leaf.key)
    return ["--tls-cert", str(directory / "cert.pem"), "--tls-key", str(directory / "key.pem")]


@pytest.fixture(scope="module", params=["cq", "aio"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


CA = trustme.CA()
CLIENTS = trustme.CA()


@pytest.fixture(scope="module")
def mutual(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes nobody without a certificate."""
    directory = tmp_path_factory.mktemp(f"tls-{engine}")
    (directory / "clients.pem").write_bytes(pem(CLIENTS))
    arguments = [*written(directory / "files"), *install(directory / "tls", CA)]
    arguments += ["--tls-client-ca", str(directory / "clients.pem"), "--engine", engine]
    with serving(directory / "server", *arguments) as server:
        yield server


def write(server: Server, who: Party, authorization: str | None = None) -> int:
    metadata = () if authorization is None else (("authorization", authorization),)
    with Client(server.address, credentials=who.grpc()) as client:
        return client.upload(fresh(100), metadata=metadata)


BUILD = party(pem(CA), CLIENTS.issue_cert("build.example", common_name="build"))
BY_NAME = party(pem(CA), CLIENTS.issue_cert("other.example", common_name="build.example"))
OTHER = party(pem(CA), CLIENTS.issue_cert("other.example"))
FOREIGN = party(pem(CA), trustme.CA().issue_cert("build.example"))
WITHOUT = party(pem(CA))


def test_a_certificate_names_its_principal(mutual: Server, tmp_path: Path) -> None:
    for who in (BUILD, BY_NAME):
        assert write(mutual, who) == 100
        put = ask(mutual.http, "PUT", "/cache/key", b"x", tls=who.ssl(tmp_path))
        assert put.status == 200
    with fails(DENIED, "cert:other.example may not write"):
        write(mutual, OTHER)
    assert ask(mutual.http, "PUT", "/cache/key", b"x", tls=OTHER.ssl(tmp_path)).status == 403


def test_a_header_counts_before_a_certificate(mutual: Server, tmp_path: Path) -> None:
    assert write(mutual, OTHER, bearer(TOKENS["writer"])) == 100
    with fails(DENIED, "token:reader may not write"):
        write(mutual, BUILD, bearer(TOKENS["reader"]))
    with fails(UNAUTHENTICATED):
        write(mutual, BUILD, bearer("wrong-wrong-wrong-wrong"))
    wrong = bearer("wrong-wrong-wrong-wrong")
    tls = BUILD.ssl(tmp_path)
    assert ask(mutual.http, "GET", "/cache/a", authorization=wrong, tls=tls).status == 401


@pytest.mark.parametrize("who", [FOREIGN, WITHOUT], ids=["another CA's", "none"])
def test_without_a_right_certificate_there_is_no_connection(
    mutual: Server, tmp_path: Path, who: Party
) -> None:
    with fails(grpc.StatusCode.UNAVAILABLE):
        write(mutual, who, bearer(TOKENS["writer"]))
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask(mutual.http, "GET", "/healthz", tls=who.ssl(tmp_path))


def test_an_author_has_the_certificates_name(mutual: Server) -> None:
    with Client(mutual.address, credentials=BUILD.grpc()) as client:
        request = pb.UpdateActionResultRequest(
            action_digest=fresh(9).digest, action_result=pb.ActionResult(exit_code=1)
        )
        client.update_action_result(request, timeout=PATIENCE)


@pytest.mark.parametrize("port", ["grpc", "http"])
@pytest.mark.parametrize(
    ("version", "served"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_versions(
    mutual: Server, tmp_path: Path, port: str, version: ssl.TLSVersion, served: bool
) -> None:
    context = BUILD.ssl(tmp_path)
    # This side allows what the other side is to refuse.
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1") if not served else nullcontext():
        context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    host, _, number = (mutual.address if port == "grpc" else mutual.http).rpartition(":")
    with socket.create_connection((host, int(number)), PATIENCE) as plain:
        if served:
            with context.wrap_socket(plain, server_hostname=host) as opened:
                assert opened.version() == version.name.replace("_", ".")
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(plain, server_hostname=host)


def test_plain_connections_get_nothing(mutual: Server) -> None:
    with Client(mutual.address) as client, fails(grpc.StatusCode.UNAVAILABLE):
        client.missing(fresh(10))
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(mutual.http, "GET", "/healthz")


def poll(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def works(server: Server, who: Party, directory: Path) -> tuple[bool, bool]:
    """Whether new connections come about, over gRPC and over HTTP."""
    over_grpc = False
    with (
        Client(server.address, credentials=who.grpc()) as client,
        tolerated(grpc.StatusCode.UNAVAILABLE),
    ):
        client.missing(fresh(10))
        over_grpc = True
    try:
        over_http = ask(server.http, "GET", "/healthz", tls=who.ssl(directory)).status == 200
    except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
        over_http = False
    return over_grpc, over_http


YES, NO = (True, True), (False, False)


def test_certificates_are_renewed_while_connections_stay(tmp_path: Path, engine: str) -> None:
    first, second = trustme.CA(), trustme.CA()
    old, new = party(pem(first)), party(pem(second))
    files = tmp_path / "tls"
    arguments = [*install(files, first), "--engine", engine, "--anonymous", "write"]
    with serving(tmp_path / "server", *arguments) as server:
        assert works(server, old, tmp_path) == YES
        with Client(server.address, credentials=old.grpc()) as client:
            blob = fresh(3_000_000)
            client.upload(blob)
            assert (
                ask(server.http, "GET", f"/cas/{blob.hash}", tls=old.ssl(tmp_path)).body
                == blob.data
            )
            small = fresh(64 << 10)
            client.upload(small)
            assert (
                ask(server.http, "GET", f"/cas/{small.hash}", tls=old.ssl(tmp_path)).body
                == small.data
            )

            # A certificate whose key is not there yet changes nothing.
            right = (files / "cert.pem").read_bytes()
            install(tmp_path / "other", second)
            replace(files / "cert.pem", (tmp_path / "other" / "cert.pem").read_bytes())
            assert works(server, old, tmp_path) == YES
            replace(files / "cert.pem", b"nonsense")
            assert works(server, old, tmp_path) == YES
            (files / "cert.pem").unlink()
            assert works(server, old, tmp_path) == YES
            replace(files / "cert.pem", right)
            assert works(server, old, tmp_path) == YES

            install(files, second)
            assert works(server, new, tmp_path) == YES
            assert works(server, old, tmp_path) == NO
            assert client.read(blob.name) == blob.data
        assert server.events("the TLS certificate cannot be renewed; the one before stays in use")
        assert server.events("the TLS certificate was renewed")
        assert "PRIVATE KEY" not in server.log.read_text()


def test_client_cas_are_renewed(tmp_path: Path, engine: str) -> None:
    first, second = trustme.CA(), trustme.CA()
    clients = tmp_path / "clients.pem"
    clients.write_bytes(pem(first))
    one = party(pem(CA), first.issue_cert("build.example"))
    two = party(pem(CA), second.issue_cert("build.example"))
    arguments = [*install(tmp_path / "tls", CA), "--tls-client-ca", str(clients)]
    with serving(tmp_path / "server", *arguments, "--engine", engine) as server:
        assert works(server, one, tmp_path) == YES
        assert works(server, two, tmp_path) == NO
        replace(clients, pem(second))
        assert works(server, one, tmp_path) == NO
        assert works(server, two, tmp_path) == YES
        assert write(server, two) == 100, "without rules, who has a certificate may write"


@pytest.mark.parametrize("wrong", ["absent", "nonsense", "another key", "a passphrase"])
def test_a_start_that_cannot_be(tmp_path: Path, wrong: str) -> None:
    arguments = install(tmp_path, CA)
    key = tmp_path / "key.pem"
    if wrong == "absent":
        key.unlink()
    elif wrong == "nonsense":
        key.write_text("nonsense")
    elif wrong == "another key":
        install(tmp_path / "other", CA)
        key.write_bytes((tmp_path / "other" / "key.pem").read_bytes())
    else:
        from cryptography.hazmat.primitives import serialization as form

        private = form.load_pem_private_key(key.read_bytes(), None)
        encryption = form.BestAvailableEncryption(b"secret-passphrase")
        key.write_bytes(
            private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, encryption)
        )
    with (
        pytest.raises(AssertionError, match="before it was ready") as caught,
        serving(tmp_path / "server", *arguments, "--http", "none"),
    ):
        pass
    assert str(tmp_path / "cert.pem") in str(caught.value)
    assert "Traceback" not in str(caught.value)
