"""What hostile clients try.  Each test's docstring is a row of docs/http-attacks.md.

Rule: raw bytes to a real server; after each attack the server answers others as before.
"""

from __future__ import annotations

import logging
import re
import resource
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from cas.http import answers
from cas.http.bodies import Pace
from cas.http.context import HttpLimits
from cas.store.memory import MemoryStore
from tests.http.serving import (
    MAX_BLOB,
    PATIENCE,
    Served,
    answer_on,
    local_store,
    serving,
    sha,
    some_bytes,
)

ROOT = Path(__file__).resolve().parents[2]
HASH = sha(b"x")


@pytest.fixture
def healthy(served: Served) -> Iterator[Served]:
    yield served
    assert served.get(f"/cas/{sha(b'')}").status == 200


@pytest.fixture
def impatient() -> Iterator[Served]:
    """A server that soon gives up on slow clients."""
    limits = HttpLimits(max_blob_size=MAX_BLOB, pace=Pace(idle=0.3, rate=100_000))
    with serving(MemoryStore(), limits=limits, idle_seconds=0.5) as own:
        yield own


def lines(*fields: str, method: str = "PUT", path: str = f"/cas/{HASH}", body: str = "") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *fields, "", body]).encode()


# --- paths ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/cas/../../../etc/passwd",
        f"/cache/../cas/{HASH}/../../secret",
        "/cache/%2e%2e/%2e%2e/etc/passwd",
        "/cache/..%2f..%2fetc%2fpasswd",
        "/cache/..%5c..%5cetc",
        "/cache/%252e%252e%252fetc",
        "/webdav/a/../../b",
        "//etc/passwd",
        "/./cache/x",
        "file:///etc/passwd",
        "/cache/x%00.png",
        "/cache/a%0d%0aSet-Cookie:%20x",
        "/%c0%ae%c0%ae/cache/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_traversal(healthy: Served, method: str, path: str) -> None:
    """Path traversal: dots, encoded once and twice, overlong UTF-8, backslashes, NUL, CR LF"""
    answer = healthy.raw(lines("Content-Length: 1", method=method, path=path, body="x"))
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body
    assert "set-cookie" not in answer.headers


def test_traversal_writes_nothing_outside_the_store(tmp_path: Path) -> None:
    """Keys that look like files of the host"""
    (tmp_path / "inner").mkdir()
    with local_store(tmp_path / "inner/store") as store, serving(store) as own:
        for key in ("..%2f..%2fout", "%2e%2e/out", "...", "~", "C:", "a:b", ".git", "-rf", "*"):
            own.put(f"/cache/{key}", b"x" * 30_000)
        assert own.get("/cache/...").body == b"x" * 30_000
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["store"]


def test_a_long_path(healthy: Served) -> None:
    """A request line of 1 MiB"""
    with healthy.connected() as opened:
        try:
            opened.sendall(b"GET /cache/" + b"a" * (1 << 20))
        except (ConnectionResetError, BrokenPipeError):
            return
        assert answer_on(opened).status in (0, 400)


# --- requests within requests ----------------------------------------------------------


SMUGGLED = f"GET /cas/{HASH} HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 1", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 1"),
        ("Content-Length: 1", "Content-Length: 2"),
        ("Content-Length: 1, 2",),
        ("Content-Length: +1",),
        ("Content-Length: -1",),
        ("Content-Length: 0x1",),
        ("Content-Length: 1_0",),
        ("Content-Length:",),
        ("Content-Length : 1",),
        ("Content-Length: 1\n",),
        (" Content-Length: 1",),
        ("X: y", "\tContent-Length: 1"),
        ("Content-Length: 99999999999999999999999",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding\x0b: chunked",),
        ("Transfer-Encoding: \x0bchunked",),
        ("X\x00Y: z",),
        ("X: a\x00b",),
        ("X: a\rContent-Length: 1",),
    ],
)
def test_smuggling(healthy: Served, fields: tuple[str, ...]) -> None:
    """Request smuggling: two lengths, length and chunks, numbers that others read differently,
    folded and misspelt fields, control characters"""
    with healthy.connected() as opened:
        opened.sendall(lines(*fields) + SMUGGLED.encode() * 3)
        opened.shutdown(socket.SHUT_WR)
        answered = b""
        try:
            while got := opened.recv(65_536):
                answered += got
        except ConnectionResetError:
            pass
    # One refusal at most: nothing behind it was taken for a request.
    assert answered.count(b"HTTP/1.1 ") <= 1
    assert answered[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.0 400")


@pytest.mark.parametrize(
    "body",
    ["-1\r\n\r\n", "0x1\r\nx\r\n0\r\n\r\n", "+1\r\nx\r\n0\r\n\r\n", "fffffffffffffffff\r\nx",
     "1\r\nxx\r\n0\r\n\r\n", "1 \nx\r\n0\r\n\r\n", "g\r\n", "\r\n", "1;" + "e" * 20_000],
)  # fmt: skip
def test_bad_chunks(healthy: Served, body: str) -> None:
    """Chunks: negative, signed, prefixed and oversized lengths, missing CR LF, long extensions"""
    before = healthy.get(f"/cas/{HASH}").status
    with healthy.connected() as opened:
        opened.sendall(lines("Transfer-Encoding: chunked", body=body))
        opened.shutdown(socket.SHUT_WR)
        assert answer_on(opened).status in (0, 400)
    assert healthy.get(f"/cas/{HASH}").status == before


# --- headers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        [f"X: {'a' * 9000}"],
        [f"{'X' * 9000}: a"],
        [f"X-{n}: a" for n in range(500)],
        [f"Cookie: {'a=b; ' * 20_000}"],
        [f"Range: bytes={'0-0,' * 1500}0-0", f"If-None-Match: {'x,' * 3500}", "Expect: magic"],
    ],
    ids=["long value", "long name", "many", "huge", "expectation"],
)
def test_huge_headers(healthy: Served, fields: list[str]) -> None:
    """Headers: one of 9 kB, 500 of them, 100 kB in all, expectations that nobody knows"""
    with healthy.connected() as opened:
        try:
            opened.sendall(lines("Content-Length: 1", *fields, body="x"))
        except (ConnectionResetError, BrokenPipeError):
            return
        assert answer_on(opened).status in (0, 400, 417, 431)


def test_what_is_not_http(healthy: Served, caplog: pytest.LogCaptureFixture) -> None:
    """TLS, HTTP/2 and noise on the port; the log gets no traceback"""
    caplog.set_level(logging.INFO)
    for noise in (b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 100,
                  b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", some_bytes(3000)):  # fmt: skip
        with healthy.connected() as opened:
            opened.sendall(noise)
            opened.shutdown(socket.SHUT_WR)
            assert answer_on(opened).status in (0, 400, 404, 405, 505)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_methods_that_proxies_know(healthy: Served) -> None:
    """CONNECT, TRACE and made-up methods"""
    for method in ("CONNECT", "TRACE", "DELETE", "PATCH", "BREW"):
        path = "x:80" if method == "CONNECT" else f"/cas/{HASH}"
        assert healthy.raw(lines(method=method, path=path)).status in (400, 404, 405)


def test_upgrades_are_not_followed(healthy: Served) -> None:
    """Upgrade to WebSocket or h2c, requests hidden behind it"""
    fields = ("Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    answer = healthy.raw(lines(*fields, method="GET", path=f"/cas/{sha(b'')}"))
    assert answer.status == 200


# --- slowness --------------------------------------------------------------------------


def ended(opened: socket.socket) -> bool:
    """Whether the server ends the connection, in the time that a test has."""
    opened.settimeout(PATIENCE)
    try:
        while opened.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def test_slow_heads(impatient: Served) -> None:
    """Slow loris: heads that never end, connections that never ask"""
    with impatient.connected() as silent, impatient.connected() as opened:
        opened.sendall(f"GET /cas/{HASH} HTTP/1.1\r\nX: ".encode())
        assert ended(silent)
        assert ended(opened)


def test_slow_bodies(impatient: Served) -> None:
    """Slow bodies: none of it comes, or a byte at a time"""
    for drip in (False, True):
        with impatient.connected() as opened:
            opened.sendall(lines("Content-Length: 5000000", body="x" * 10))
            if drip:
                drip_until_answered(opened)
            refused = answer_on(opened)
            assert refused.status == 408
            assert "did not get on" in refused.text
    assert impatient.get(f"/cas/{sha(b'')}").status == 200


def drip_until_answered(opened: socket.socket) -> None:
    """Sends a byte now and then."""
    for _ in range(int(PATIENCE / 0.05)):
        opened.sendall(b"x")
        if select.select([opened], [], [], 0.05)[0]:
            return


def test_slow_readers(
    healthy: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Slow readers: thousands of answers asked for, none taken"""
    monkeypatch.setattr(answers, "STALL_SECONDS", 0.5)
    data = some_bytes(16_000, 40)
    healthy.put(f"/cas/{sha(data)}", data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with healthy.connected() as opened:
        opened.settimeout(1)
        ask = f"GET /cas/{sha(data)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        # A gigabyte of answers, if they were made; the server stops to read instead.
        asked = 0
        try:
            while asked < 70:
                opened.sendall(ask * 1000)
                asked += 1
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
        assert asked < 70
        assert ended(opened)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10, "KiB of memory"


def test_bodies_that_never_end(healthy: Served) -> None:
    """Chunks without end: more than max_blob_size"""
    piece = b"%x\r\n%b\r\n" % (1 << 20, b"\0" * (1 << 20))
    with healthy.connected() as opened:
        opened.sendall(lines("Transfer-Encoding: chunked", path="/cache/endless"))
        try:
            for _ in range(MAX_BLOB // (1 << 20) + 20):
                opened.sendall(piece)
        except (ConnectionResetError, BrokenPipeError):
            return
        assert answer_on(opened).status == 413
    assert healthy.get("/cache/endless").status == 404


# --- compression -----------------------------------------------------------------------


def bomb(size: int, *, tell: bool) -> bytes:
    """Zeros that were compressed as far as they can be."""
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=tell)
    packer = compressor.compressobj(size=size if tell else -1)
    parts = [packer.compress(b"\0" * (1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize("path", [f"/cas/{HASH}", f"/ac/{HASH}", "/cache/bomb", "/v1/cache/bomb"])
@pytest.mark.parametrize("tell", [True, False])
def test_bombs(healthy: Served, path: str, tell: bool) -> None:
    """Decompression bombs: kilobytes of zstd that become more than max_blob_size"""
    packed = bomb(MAX_BLOB + (16 << 20), tell=tell)
    assert len(packed) < 20_000
    began = time.monotonic()
    refused = healthy.put(path, packed, Content_Encoding="zstd")
    assert refused.status == 413
    assert time.monotonic() - began < PATIENCE
    assert healthy.get(path).status == 404


def test_bombs_cannot_lie(healthy: Served) -> None:
    """Bombs that declare less than they become"""
    packed = bomb(8 << 20, tell=False)

    def declared(size: str) -> int:
        path = f"/cas/{HASH}"
        return healthy.put(path, packed, Content_Encoding="zstd", X_Digest_SizeBytes=size).status

    assert declared("1000") == 413
    assert declared(str(MAX_BLOB * 2)) == 413
    for number in ("-1", "x", "", "9" * 30):
        assert declared(number) == 400


def test_windows_are_bounded(healthy: Served) -> None:
    """Frames that ask for gigabytes of memory to be decoded"""
    # RFC 8878, 3.1.1.1.2: no single segment, window descriptor of exponent 31.
    frame = b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\x00\x00"
    refused = healthy.put(f"/cas/{HASH}", frame, Content_Encoding="zstd")
    assert refused.status == 400
    assert "zstd" in refused.text


def test_stacked_encodings(healthy: Served) -> None:
    """Encodings upon encodings"""
    for coding in ("gzip", "zstd, zstd", "zstd, gzip", "x" * 4000):
        assert healthy.put(f"/cas/{HASH}", b"x", Content_Encoding=coding).status == 415


# --- floods ----------------------------------------------------------------------------


def test_too_many_requests_at_once() -> None:
    """More requests at once than max_concurrent_calls"""
    limits = HttpLimits(max_requests=2)
    with (
        serving(MemoryStore(), limits=limits) as own,
        own.connected() as one,
        own.connected() as other,
    ):
        for opened in (one, other):
            opened.sendall(lines("Content-Length: 5", body="x"))
        for _ in range(int(PATIENCE / 0.05)):
            refused = own.get(f"/cas/{sha(b'')}")
            if refused.status == 503:
                break
            time.sleep(0.05)
        assert refused.status == 503
        assert "max_concurrent_calls" in refused.text
        assert refused.headers["retry-after"] == "1"


def test_values_of_others(healthy: Served) -> None:
    """Poisoning: an action result from bytes that are none, a blob under another's hash"""
    key = sha(b"poison")
    assert healthy.put(f"/ac/{key}", b"\xcc\xac poison").status == 200
    assert healthy.get(f"/ac/{key}", Accept="application/json").status in (200, 404)
    assert healthy.get(f"/ac/{key}", User_Agent="bazel/7").status == 404
    assert healthy.put(f"/cas/{key}", b"other bytes").status == 400


# --- the table -------------------------------------------------------------------------


def test_the_table_has_every_attack() -> None:
    table = (ROOT / "docs/http-attacks.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", table))
    here = {name for name in globals() if name.startswith("test_")}
    assert named == here - {"test_the_table_has_every_attack"}
