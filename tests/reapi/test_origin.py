"""Fetches from origins: real ones, on this machine, that behave in every way."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from cas import digest as digests
from cas.digest import BLAKE3, SHA256, SHA512, Digest
from cas.reapi import hosts
from cas.reapi.integrity import Checksum
from cas.reapi.origin import FetchError, OriginOptions, Origins, Wanted
from cas.store.interface import BlobStore
from cas.store.memory import MemoryStore
from cas.store.pending import Pending, resolved

PATIENCE = 60.0
DATA = random.Random(7).randbytes(700_000)
CA = trustme.CA()


class Handler(BaseHTTPRequestHandler):
    """Answers `GET /name` by the method `name`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        name, _, self.rest = self.path[1:].partition("/")
        answer: Callable[[], None] = getattr(self, name)
        answer()

    def head(self, status: int, **fields: object) -> None:
        self.send_response(status)
        for field, value in fields.items():
            self.send_header(field.replace("_", "-"), str(value))
        self.end_headers()

    def whole(self) -> None:
        self.head(200, Content_Length=len(DATA))
        self.wfile.write(DATA)

    def chunked(self) -> None:
        self.head(200, Transfer_Encoding="chunked")
        for at in range(0, len(DATA), 100_000):
            part = DATA[at : at + 100_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def to_the_end(self) -> None:
        self.head(200)
        self.wfile.write(DATA)

    def empty(self) -> None:
        self.head(200, Content_Length=0)

    def status(self) -> None:
        self.head(int(self.rest), Content_Length=0)

    def cut_short(self) -> None:
        self.head(200, Content_Length=len(DATA) + 1)
        self.wfile.write(DATA)

    def cut_chunk(self) -> None:
        self.head(200, Transfer_Encoding="chunked")
        self.wfile.write(b"ffff\r\nonly this")

    def packed(self) -> None:
        self.head(200, Content_Encoding="gzip", Content_Length=3)
        self.wfile.write(b"xyz")

    def garbage(self) -> None:
        self.wfile.write(b"\xff" * 100 + b"\r\n\r\n")

    def redirect(self) -> None:
        self.head(302, Location=self.rest, Content_Length=0)

    def slow_body(self) -> None:
        self.head(200)
        self.trickle()

    def slow_head(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.trickle()

    def trickle(self) -> None:
        try:
            while True:
                self.wfile.write(b"x")
                time.sleep(0.02)
        except OSError:
            pass

    def asked(self) -> None:
        text = "".join(f"{name}: {value}\n" for name, value in self.headers.items()).encode()
        self.head(200, Content_Length=len(text))
        self.wfile.write(text)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as port:
        yield port


@pytest.fixture
def store() -> Iterator[BlobStore]:
    store = MemoryStore()
    yield store
    store.close()


class Client:
    """Fetches into a store from the hosts that are given."""

    def __init__(self, store: BlobStore, *allowed: str, **options: object) -> None:
        patterns = tuple(map(hosts.parse, allowed))
        self.origins = Origins(store, OriginOptions(hosts=patterns, **options))  # type: ignore[arg-type]
        self.kept: list[Digest] = []

    def begin(self, url: str, seconds: float = PATIENCE, **wanted: object) -> Pending[Digest]:
        def keep(digest: Digest) -> Pending[None]:
            self.kept.append(digest)
            return resolved(None)

        asked = {"function": SHA256, **wanted}
        return self.origins.begin(Wanted(url, seconds=seconds, **asked), keep)  # type: ignore[arg-type]

    def fetch(self, url: str, **wanted: object) -> Digest:
        return self.begin(url, **wanted).wait(PATIENCE)  # type: ignore[arg-type]


@pytest.fixture
def client(store: BlobStore, port: int) -> Iterator[Client]:
    client = Client(store, f"localhost:{port}", private=True)
    yield client
    client.origins.close()


def content(store: BlobStore, digest: Digest) -> bytes:
    opened = store.open(digest)
    view = memoryview(bytearray(opened.size))
    opened.read_into(view, 0)
    return bytes(view)


def why(client: Client, url: str, **wanted: object) -> str:
    with pytest.raises(FetchError) as caught:
        client.fetch(url, **wanted)
    assert client.kept == []
    return caught.value.why


@pytest.mark.parametrize("how", ["whole", "chunked", "to_the_end"])
@pytest.mark.parametrize("function", [SHA256, BLAKE3], ids=lambda f: f.name)
def test_what_is_there_becomes_a_blob(
    client: Client, store: BlobStore, port: int, how: str, function: digests.Function
) -> None:
    digest = client.fetch(f"http://localhost:{port}/{how}", function=function)
    assert digest == digests.of(DATA, function)
    assert content(store, digest) == DATA
    assert client.kept == [digest]


def test_nothing_is_a_blob_too(client: Client, port: int) -> None:
    assert client.fetch(f"http://localhost:{port}/empty") == digests.of(b"")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("status/404", "absent"),
        ("status/410", "absent"),
        ("status/401", "refused"),
        ("status/403", "refused"),
        ("status/204", "broken"),
        ("status/500", "broken"),
        ("cut_short", "broken"),
        ("cut_chunk", "broken"),
        ("packed", "broken"),
        ("garbage", "broken"),
        ("redirect/" + "http://127.0.0.1/x", "refused"),
        ("redirect/" + "http://localhost:1/x", "refused"),
        ("redirect/" + "file:///etc/passwd", "refused"),
        ("redirect/", "broken"),
    ],
)
def test_what_goes_wrong(
    client: Client, store: BlobStore, port: int, path: str, expected: str
) -> None:
    assert why(client, f"http://localhost:{port}/{path}") == expected
    assert not store.contains(digests.of(DATA))


def test_redirects_are_followed_where_they_are_allowed(client: Client, port: int) -> None:
    for target in (f"http://localhost:{port}/whole", "/whole", "/redirect//whole"):
        assert client.fetch(f"http://localhost:{port}/redirect/{target}") == digests.of(DATA)


def test_what_is_asked(client: Client, store: BlobStore, port: int) -> None:
    said = content(store, client.fetch(f"http://localhost:{port}/asked")).decode()
    assert sorted(said.splitlines()) == [
        "Accept-Encoding: identity",
        "Accept: */*",
        "Connection: close",
        f"Host: localhost:{port}",
        "User-Agent: cas",
    ]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/whole", "http://localhost/whole", "urn:x"])
def test_hosts_that_are_not_allowed_are_not_asked(client: Client, port: int, url: str) -> None:
    assert why(client, url.format(port)) == "refused"


def test_a_name_that_leads_home_is_refused(store: BlobStore, port: int) -> None:
    client = Client(store, f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}")
    for host in ("localhost", "127.0.0.1", "[::1]"):
        with pytest.raises(FetchError, match="no public address"):
            client.fetch(f"http://{host}:{port}/whole")
    client.origins.close()


@pytest.mark.parametrize("how", ["whole", "chunked", "to_the_end"])
def test_more_than_is_allowed(store: BlobStore, port: int, how: str) -> None:
    for size, fits in ((len(DATA), True), (len(DATA) - 1, False)):
        client = Client(store, f"localhost:{port}", private=True, max_size=size)
        if fits:
            assert client.fetch(f"http://localhost:{port}/{how}") == digests.of(DATA)
        else:
            assert why(client, f"http://localhost:{port}/{how}") == "too large"
        client.origins.close()


@pytest.mark.parametrize("how", ["slow_body", "slow_head"])
def test_what_trickles_in_is_cut_in_time(client: Client, port: int, how: str) -> None:
    assert why(client, f"http://localhost:{port}/{how}", seconds=0.5) == "late"


def test_checksums(client: Client, store: BlobStore, port: int) -> None:
    url = f"http://localhost:{port}/whole"
    right = Checksum(SHA512, hashlib.sha512(DATA).digest())
    wrong = Checksum(SHA512, hashlib.sha512(b"other").digest())
    assert why(client, url, checksums=[wrong]) == "broken"
    assert not store.contains(digests.of(DATA))
    assert client.fetch(url, checksums=[wrong, right]) == digests.of(DATA)


def test_nobody_listens(store: BlobStore) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        client = Client(store, f"127.0.0.1:{port}", private=True)
        assert why(client, f"http://127.0.0.1:{port}/") == "broken"
        client.origins.close()


def test_closing_ends_what_runs(store: BlobStore, port: int) -> None:
    client = Client(store, f"localhost:{port}", private=True)
    pending = [client.begin(f"http://localhost:{port}/slow_body") for _ in range(6)]
    # Some are under way, others have not begun.
    until = time.monotonic() + PATIENCE
    while not client.origins._open.sockets:
        assert time.monotonic() < until
        time.sleep(0.01)
    client.origins.close()
    for one in pending:
        with pytest.raises(FetchError) as caught:
            one.wait(PATIENCE)
        assert caught.value.why == "broken"
    assert client.kept == []


@pytest.fixture(scope="module")
def secure() -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("localhost").configure_cert(context)
    with serving(context) as port:
        yield port


def test_https(
    store: BlobStore, port: int, secure: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(store, f"localhost:{port}", f"localhost:{secure}", private=True)
    url = f"https://localhost:{secure}"
    with pytest.raises(FetchError, match="certificate"):
        client.fetch(f"{url}/whole")
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert client.fetch(f"{url}/whole") == digests.of(DATA)
    client.kept.clear()
    # From there on nothing is asked without TLS.
    with pytest.raises(FetchError, match="from HTTPS to HTTP"):
        client.fetch(f"{url}/redirect/http://localhost:{port}/whole")
    assert client.fetch(f"http://localhost:{port}/redirect/{url}/whole") == digests.of(DATA)
    client.origins.close()
