"""Who may do what over HTTP, against real servers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cas.pb import remote_execution_pb2 as pb
from tests.access.serving import (
    DENIED,
    ROLES,
    TOKENS,
    UNAUTHENTICATED,
    WRONG,
    ask,
    bearer,
    serving,
    written,
)
from tests.conformance.client import Blob, fresh
from tests.server.serving import PATIENCE, Server


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def server(places: Path) -> Iterator[Server]:
    with serving(places / "deny", *written(places / "files")) as server:
        yield server


@pytest.fixture(scope="module")
def here(server: Server) -> Blob:
    """A blob, and an action result under its hash, that the server has."""
    blob = fresh(100)
    writer = bearer(TOKENS["writer"])
    result = pb.ActionResult(exit_code=3).SerializeToString()
    for path, body in (("cas", blob.data), ("ac", result)):
        put = ask(server.http, "PUT", f"/main/{path}/{blob.hash}", body, authorization=writer)
        assert put.status == 200
    return blob


PATHS = {
    ("GET", "/main/cas/{hash}"): (200, None),
    ("HEAD", "/main/cas/{hash}"): (200, None),
    ("GET", "/main/ac/{hash}"): (200, None),
    ("PROPFIND", "/main/webdav/"): (403, None),
    ("POST", "/main/v8/artifacts/events"): (200, b"[]"),
    ("GET", "/main/v8/artifacts/status"): (200, None),
    ("GET", "/metrics"): (200, None),
    ("GET", "/status"): (200, None),
}
CHANGES = {
    ("PUT", "/main/cas/{new}"): 200,
    ("PUT", "/main/ac/{new}"): 200,
    ("PUT", "/main/cache/{new}"): 200,
    ("PUT", "/main/webdav/a/{new}"): 201,
    ("MKCOL", "/main/webdav/a/"): 201,
    ("PUT", "/main/v8/artifacts/{new}"): 202,
    ("PUT", "/main/v1/cache/{new}"): 200,
    ("DELETE", "/main/cache/{new}"): 404,
}
STATUSES = {None: 0, UNAUTHENTICATED: 401, DENIED: 403}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "path"), PATHS)
def test_reading_over_http(server: Server, here: Blob, method: str, path: str, role: str) -> None:
    authorization, reading, _ = ROLES[role]
    status, body = PATHS[method, path]
    reply = ask(server.http, method, path.format(hash=here.hash), body, authorization=authorization)
    assert reply.status == (STATUSES[reading] or status)
    if reply.status == 401:
        assert reply.headers["www-authenticate"] == 'Basic realm="cas", Bearer realm="cas"'


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_writing_over_http(server: Server, method: str, path: str, role: str) -> None:
    authorization, _, writing = ROLES[role]
    new = fresh(30)
    body = pb.ActionResult(exit_code=1).SerializeToString() if "/ac/" in path else new.data
    asked = path.format(new=new.hash)
    sends = body if method == "PUT" else None
    reply = ask(server.http, method, asked, sends, authorization=authorization)
    assert reply.status == (STATUSES[writing] or CHANGES[method, path])
    if method == "PUT" and writing is not None:
        admin = bearer(TOKENS["admin"])
        assert ask(server.http, "GET", asked, authorization=admin).status == 404


def test_probes_and_options_are_open(server: Server) -> None:
    for path in ("/healthz", "/readyz"):
        assert ask(server.http, "GET", path).status == 200
    assert ask(server.http, "OPTIONS", "/main/cas/" + "0" * 64).status == 204


@pytest.mark.parametrize("what", WRONG)
def test_wrong_credentials(server: Server, here: Blob, what: str) -> None:
    reply = ask(server.http, "GET", f"/main/cas/{here.hash}", authorization=WRONG[what])
    assert reply.status == 401
    for word in WRONG[what].split():
        assert len(word) < 8 or word not in reply.body.decode() + str(reply.headers)


def test_two_headers_are_refused(server: Server, here: Blob) -> None:
    right = bearer(TOKENS["admin"])
    request = (
        f"GET /main/cas/{here.hash} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: {right}\r\nAuthorization: {right}\r\n\r\n"
    )
    assert exchanged(server.http, request.encode()).startswith(b"HTTP/1.1 401 ")


def exchanged(address: str, request: bytes) -> bytes:
    """All that is answered until the server closes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as opened:
        opened.sendall(request)
        return b"".join(iter(lambda: opened.recv(65_536), b""))


def test_headers_that_are_no_text_are_refused(server: Server, here: Blob) -> None:
    for odd in (b"Bearer \xff\xfe\xfd", b"\x80", b"Basic \xc3\xa9\xc3\xa9"):
        request = b"GET /main/cas/%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % (
            here.hash.encode()
        )
        answer = exchanged(server.http, request + b"Authorization: " + odd + b"\r\n\r\n")
        assert answer[9:12] in (b"400", b"401")


@pytest.fixture(scope="module")
def dropping(places: Path) -> Iterator[Server]:
    arguments = ["--denied-writes", "discard", *written(places / "files")]
    with serving(places / "discard", *arguments) as server:
        yield server


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_what_a_reader_writes_over_http_is_dropped(
    dropping: Server, method: str, path: str
) -> None:
    new = fresh(2_000_000)
    asked = path.format(new=new.hash)
    body = new.data if method == "PUT" else None
    reader = bearer(TOKENS["reader"])
    reply = ask(dropping.http, method, asked, body, authorization=reader)
    assert reply.status == (204 if method == "DELETE" else CHANGES[method, path])
    if method == "PUT":
        assert ask(dropping.http, "GET", asked, authorization=reader).status == 404
    assert ask(dropping.http, method, asked, body).status == 401
