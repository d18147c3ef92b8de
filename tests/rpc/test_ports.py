"""Where an engine listens, and how it knows who calls."""

from __future__ import annotations

import functools
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from cas.rpc.handler import Engine
from tests.rpc.serving import (
    PATIENCE,
    UNARY_UNARY,
    Server,
    code_of,
    make_engine,
    service,
    unary_unary,
)

Seen = tuple[str, Mapping[str, Sequence[bytes]]]


@pytest.fixture
def engine(engine_name: str) -> Any:
    engine = make_engine(engine_name)
    yield engine
    engine.stop(None)
    assert engine.wait_for_termination(PATIENCE)


def answering(engine: Engine) -> list[Seen]:
    """Gives `engine` a method ``who`` and returns what it will have seen of its callers."""
    seen: list[Seen] = []

    async def who(request: bytes, context: Any) -> bytes:
        seen.append((context.peer(), context.auth_context()))
        return request

    engine.add_generic_rpc_handlers([service(who=UNARY_UNARY(who))])
    return seen


def test_ports_that_are_picked(engine: Engine) -> None:
    seen = answering(engine)
    ports = [engine.add_insecure_port("127.0.0.1:0") for _ in range(2)]
    engine.start()
    assert len({0, *ports}) == 3
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert unary_unary(channel, "who")(b"x") == b"x"
    # Plain text knows nobody; newer versions say at least how safe it is.
    assert all("x509_common_name" not in auth for _, auth in seen)


def test_a_port_that_is_taken(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=address):
            engine.add_insecure_port(address)
        with pytest.raises(OSError, match=address):
            engine.add_secure_port(address, grpc.ssl_server_credentials([key_pair()]))


@pytest.mark.parametrize("address", ["127.0.0.1:no-port", "192.0.2.1:0", "unix:/none/such/place"])
def test_an_address_that_cannot_be_bound(engine: Engine, address: str) -> None:
    with pytest.raises(OSError, match=address):
        engine.add_insecure_port(address)


def test_one_port_for_two_engines(engine_name: str) -> None:
    """As the workers of one server share it."""
    first, second = make_engine(engine_name), make_engine(engine_name)
    port = first.add_insecure_port("127.0.0.1:0")
    assert second.add_insecure_port(f"127.0.0.1:{port}") == port
    for engine in (first, second):
        engine.start()
        engine.stop(None)
        assert engine.wait_for_termination(PATIENCE)


def test_a_unix_socket(engine: Engine, tmp_path: Path) -> None:
    seen = answering(engine)
    path = tmp_path / "socket"
    assert engine.add_insecure_port(f"unix:{path}") == 1
    engine.start()
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert unary_unary(channel, "who")(b"x") == b"x"
    assert seen[0][0].startswith("unix:")


def test_tls(engine: Engine) -> None:
    seen = answering(engine)
    authority = trustme.CA()
    port = engine.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([key_pair(authority)]))
    engine.start()
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    with grpc.secure_channel(f"localhost:{port}", trusting) as channel:
        assert unary_unary(channel, "who")(b"x") == b"x"
    peer, auth = seen[0]
    assert peer.startswith("ipv4:127.0.0.1:")
    assert auth["transport_security_type"] == [b"ssl"]
    assert "x509_common_name" not in auth

    other = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
    with grpc.secure_channel(f"localhost:{port}", other) as channel:
        assert code_of(lambda: unary_unary(channel, "who")(b"")) == grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert code_of(lambda: unary_unary(channel, "who")(b"")) == grpc.StatusCode.UNAVAILABLE


def test_mutual_tls(engine: Engine) -> None:
    seen = answering(engine)
    authority, clients = trustme.CA(), trustme.CA()
    credentials = grpc.ssl_server_credentials(
        [key_pair(authority)], clients.cert_pem.bytes(), require_client_auth=True
    )
    port = engine.add_secure_port("127.0.0.1:0", credentials)
    engine.start()
    target, root = f"localhost:{port}", authority.cert_pem.bytes()
    key, chain = key_pair(clients, "builder.test", common_name="builder")
    known = grpc.ssl_channel_credentials(root, key, chain)
    with grpc.secure_channel(target, known) as channel:
        assert unary_unary(channel, "who")(b"x") == b"x"
    _, auth = seen[0]
    assert auth["x509_common_name"] == [b"builder"]
    assert auth["x509_subject_alternative_name"] == [b"builder.test"]
    assert b"BEGIN CERTIFICATE" in auth["x509_pem_cert"][0]

    key, chain = key_pair(trustme.CA(), "builder.test", common_name="builder")
    for stranger in (
        grpc.ssl_channel_credentials(root),
        grpc.ssl_channel_credentials(root, key, chain),
    ):
        with grpc.secure_channel(target, stranger) as channel:
            call = functools.partial(unary_unary(channel, "who"), b"")
            assert code_of(call) == grpc.StatusCode.UNAVAILABLE
    assert len(seen) == 1


def test_ports_of_both_kinds(engine: Engine, tmp_path: Path) -> None:
    answering(engine)
    authority = trustme.CA()
    plain = engine.add_insecure_port("127.0.0.1:0")
    engine.add_insecure_port(f"unix:{tmp_path}/socket")
    secret = engine.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([key_pair(authority)])
    )
    engine.start()
    server = Server(engine, "")
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    for channel in (
        grpc.insecure_channel(f"127.0.0.1:{plain}"),
        grpc.insecure_channel(f"unix:{tmp_path}/socket"),
        grpc.secure_channel(f"localhost:{secret}", trusting),
    ):
        with server.channels.enter_context(channel) as open_channel:
            assert unary_unary(open_channel, "who")(b"x") == b"x"


def key_pair(
    authority: trustme.CA | None = None, name: str = "localhost", **more: Any
) -> tuple[bytes, bytes]:
    """A private key and its certificate chain, PEM."""
    certificate = (authority or trustme.CA()).issue_cert(name, **more)
    chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
    return certificate.private_key_pem.bytes(), chain
