"""Servers that ask who calls: real processes, with credentials of every kind.

Rule: what tests of more than one file need; tests of access go over real sockets.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import signal
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import grpc

from tests.access import issuing
from tests.server.serving import PATIENCE, Server, spawn

PASSWORD = "open-sesame-17"
TOKENS = {
    role: f"{role}-token-mF9B5f41JqM6aYhB" for role in ("none", "reader", "writer", "admin", "main")
}
RULES = """
[[access]]
role = "read"
principal = "token:reader"

[[access]]
role = "write"
principal = "token:writer"

[[access]]
role = "admin"
principal = "token:admin"

[[access]]
role = "write"
principal = "token:main"
instance = "main"

[[access]]
role = "read"
principal = "user:alice"

[[access]]
role = "write"
principal = "jwt:*"
claims = {{ branch = "main" }}

[[access]]
role = "write"
principal = "cert:build.example"

[[jwt]]
issuer = "{issuer}"
audience = "{audience}"
jwks = "{jwks}"
role_claim = "cas_role"
instance_claim = "cas_instance"
"""


def bearer(token: str) -> str:
    return f"Bearer {token}"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


SECRETS = [PASSWORD, basic("alice", PASSWORD).split()[1], *TOKENS.values()]
"""None of these may be in a log."""


def written(directory: Path) -> list[str]:
    """Writes files of credentials; the arguments that name them."""
    directory.mkdir(exist_ok=True)
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (directory / "htpasswd").write_text(f"alice:{hashed}\nbob:{hashed}\n")
    # One as its hash: both forms are served.
    kept = {**TOKENS, "admin": f"sha256:{hashlib.sha256(TOKENS['admin'].encode()).hexdigest()}"}
    (directory / "tokens").write_text("".join(f"{name} {text}\n" for name, text in kept.items()))
    (directory / "jwks").write_text(issuing.jwks(issuing.jwk("EdDSA", "one")))
    (directory / "cas.toml").write_text(
        RULES.format(issuer=issuing.ISSUER, audience=issuing.AUDIENCE, jwks=str(directory / "jwks"))
    )
    return [
        *("--config", str(directory / "cas.toml")),
        *("--htpasswd", str(directory / "htpasswd")),
        *("--tokens", str(directory / "tokens")),
    ]


UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED

ROLES = {
    "nobody": (None, UNAUTHENTICATED, UNAUTHENTICATED),
    "unknown": (bearer("unknown-token-unknown"), UNAUTHENTICATED, UNAUTHENTICATED),
    "none": (bearer(TOKENS["none"]), DENIED, DENIED),
    "reader": (bearer(TOKENS["reader"]), None, DENIED),
    "writer": (bearer(TOKENS["writer"]), None, None),
    "admin": (bearer(TOKENS["admin"]), None, None),
    "writer of this instance": (bearer(TOKENS["main"]), None, None),
}
"""What each sends, and what he gets when he reads and when he writes in ``main``."""

WRONG = {
    "a wrong password": basic("alice", "wrong-password"),
    "an unknown user": basic("mallory", PASSWORD),
    "a password as a token": bearer(PASSWORD * 2),
    "no scheme": TOKENS["admin"],
    "another scheme": f"Digest {TOKENS['admin']}",
    "nothing": "",
    "a huge header": bearer("x" * 7_000),
    "another issuer": bearer(issuing.token(iss="https://other.example", branch="main")),
    "another audience": bearer(issuing.token(aud="other", branch="main")),
    "expired": bearer(issuing.token(exp=int(time.time()) - 3600, branch="main")),
    "an unknown key": bearer(issuing.token(kid="two", branch="main")),
    "another key": bearer(issuing.token(number=1, branch="main")),
    "alg none": bearer(issuing.by_hand({"alg": "none"}, issuing.claims(branch="main"))),
    "alg HS256": bearer(issuing.confused("EdDSA")),
}


@contextmanager
def serving(directory: Path, *arguments: str) -> Iterator[Server]:
    """A server on free ports of this machine; it drains well, and tells no secret."""
    directory.mkdir(exist_ok=True)
    log = directory / "log"
    default = ["--dir", str(directory / "store"), "--workers", "1", "--log-level", "debug"]
    default += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--durability", "none"]
    server = spawn(log, [*default, *arguments])
    try:
        server.await_ready()
        yield server
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0, log.read_text()
    finally:
        server.process.kill()
        server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()
    text = log.read_text()
    for secret in SECRETS:
        assert secret not in text


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    address: str,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    authorization: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """One HTTP request."""
    host, _, port = address.rpartition(":")
    connection = (
        http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        if tls is None
        else http.client.HTTPSConnection(host, int(port), timeout=PATIENCE, context=tls)
    )
    try:
        fields = {} if authorization is None else {"Authorization": authorization}
        connection.request(method, path, body, fields)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read())
    finally:
        connection.close()


def replace(path: Path, content: bytes) -> None:
    """Puts another file in its place, as who renews certificates does."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    os.replace(new, path)
