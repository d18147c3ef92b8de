"""``/cas/hash``: what is written is verified, what is read is what was written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import zstandard

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

SIZES = [0, 1, 1000, 64 << 10, (64 << 10) + 1, 300_000, 1 << 20, (1 << 20) + 1, 5_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_a_blob_comes_back(served: Served, size: int) -> None:
    data = some_bytes(size)
    path = f"/cas/{sha(data)}"
    if size:
        assert served.get(path).status == 404
        assert served.ask("HEAD", path).status == 404
    assert served.put(path, data).status == 200
    assert served.put(path, data).status == 200
    for shown in (path, f"/any/instance{path}"):
        got = served.get(shown)
        assert (got.status, got.body) == (200, data)
        assert got.headers["etag"] == f'"{sha(data)}"'
        assert got.headers["content-length"] == str(size)
        assert "content-encoding" not in got.headers
        head = served.ask("HEAD", shown)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(size)


@pytest.mark.parametrize("size", [1, 17_000, 2_000_000])
def test_chunked_uploads_of_unknown_size(served: Served, size: int) -> None:
    data = some_bytes(size, 1)
    pieces = iter([data[at : at + 7000] for at in range(0, size, 7000)])
    assert served.ask("PUT", f"/cas/{sha(data)}", pieces).status == 200
    assert served.get(f"/cas/{sha(data)}").body == data


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_other_bytes_than_the_path_says_are_refused(served: Served, size: int) -> None:
    data = some_bytes(size, 2)
    wrong = sha(data + b"x")
    for body in (data, iter([data])):
        refused = served.ask("PUT", f"/cas/{wrong}", body)
        assert refused.status == 400
        assert wrong in refused.text
        assert sha(data) in refused.text
    assert served.get(f"/cas/{wrong}").status == 404


def test_wrong_bytes_for_a_blob_that_is_here_change_nothing(served: Served) -> None:
    data = some_bytes(500, 3)
    assert served.put(f"/cas/{sha(data)}", data).status == 200
    assert served.put(f"/cas/{sha(data)}", b"other").status == 400
    assert served.get(f"/cas/{sha(data)}").body == data


@pytest.mark.parametrize("size", [5000, 300_000])
def test_ranges(served: Served, size: int) -> None:
    data = some_bytes(size, 4)
    path = f"/cas/{sha(data)}"
    served.put(path, data)
    part = served.get(path, Range="bytes=10-19")
    assert (part.status, part.body) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{size}"
    assert served.get(path, Range="bytes=-7").body == data[-7:]
    assert served.get(path, Range=f"bytes={size - 3}-").body == data[-3:]
    assert served.get(path, Range="bytes=0-3,7-9").status == 200
    assert served.get(path, Range="bytes=1-2", Accept_Encoding="zstd").body == data[1:3]
    beyond = served.get(path, Range=f"bytes={size}-")
    assert beyond.status == 416
    assert beyond.headers["content-range"] == f"bytes */{size}"
    tag = f'"{sha(data)}"'
    assert served.get(path, Range="bytes=1-2", If_Range=tag).status == 206
    assert served.get(path, Range="bytes=1-2", If_Range='"other"').status == 200
    head = served.ask("HEAD", path, Range="bytes=1-2")
    assert (head.status, head.headers["content-length"]) == (200, str(size))


def test_a_known_etag_is_answered_without_content(served: Served) -> None:
    data = some_bytes(5000, 5)
    path = f"/cas/{sha(data)}"
    served.put(path, data)
    for field in (f'"{sha(data)}"', f'"x", W/"{sha(data)}"', "*"):
        same = served.get(path, If_None_Match=field)
        assert (same.status, same.body) == (304, b"")
        assert same.headers["etag"] == f'"{sha(data)}"'
    assert served.get(path, If_None_Match='"x"').status == 200
    assert served.get(f"/cas/{sha(b'never')}", If_None_Match="*").status == 404


@pytest.mark.parametrize("size", [2000, 200_000, 3_000_000])
def test_content_as_zstd_where_it_pays(served: Served, size: int) -> None:
    squeezable = (b"%d squeezable " % size) * (size // 16)
    path = f"/cas/{sha(squeezable)}"
    served.put(path, squeezable)
    packed = served.get(path, Accept_Encoding="gzip, zstd")
    assert packed.headers["content-encoding"] == "zstd"
    assert packed.headers["etag"] == f'W/"{sha(squeezable)}"'
    assert len(packed.body) < size / 4
    decoder = zstandard.ZstdDecompressor().decompressobj()
    assert decoder.decompress(packed.body) == squeezable
    plain = served.get(path, Accept_Encoding="gzip")
    assert plain.body == squeezable
    assert plain.headers["vary"] == "Accept-Encoding"

    dense = some_bytes(size, 6)
    served.put(f"/cas/{sha(dense)}", dense)
    assert served.get(f"/cas/{sha(dense)}", Accept_Encoding="zstd").body == dense


@pytest.mark.parametrize("size", [100, 100_000, 3_000_000])
def test_uploads_as_zstd(served: Served, size: int) -> None:
    data = some_bytes(size // 2, 7) + b"\0" * (size - size // 2)
    packed = zstandard.ZstdCompressor().compress(data)
    path = f"/cas/{sha(data)}"
    said = str(size)
    assert served.put(path, packed, Content_Encoding="zstd").status == 200
    assert served.get(path).body == data
    again = some_bytes(size, 8)
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(again)
    path = f"/cas/{sha(again)}"
    answer = served.put(path, packed, Content_Encoding="zstd", X_Digest_SizeBytes=said)
    assert answer.status == 200
    assert served.get(path).body == again


def test_damaged_zstd_is_refused(served: Served) -> None:
    data = some_bytes(150_000, 9)
    packed = zstandard.ZstdCompressor().compress(data)
    path = f"/cas/{sha(data)}"
    for body, said in (
        (b"not zstd at all", "not zstd"),
        (packed[:-10], "within its zstd frame"),
        (packed + packed, "follows the body's zstd frame"),
        (packed + b"x", "follows the body's zstd frame"),
        (zstandard.ZstdCompressor().compress(data + b"x"), sha(data)),
    ):
        refused = served.put(path, body, Content_Encoding="zstd")
        assert refused.status == 400
        assert said in refused.text
    short = served.put(path, packed, Content_Encoding="zstd", X_Digest_SizeBytes="49999")
    assert short.status == 413
    assert served.get(path).status == 404
    assert served.put(path, packed, Content_Encoding="gzip").status == 415


def test_what_is_too_large_is_refused_before_it_is_sent(served: Served) -> None:
    with served.connected() as opened:
        opened.sendall(
            f"PUT /cas/{sha(b'x')} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            f"Content-Length: {MAX_BLOB + 1}\r\n\r\n".encode()
        )
        refused = answer_on(opened)
    assert refused.status == 413
    assert str(MAX_BLOB) in refused.text


def test_expect_100_continue(served: Served) -> None:
    data = some_bytes(5000, 10)
    with served.connected() as opened:
        opened.sendall(
            f"PUT /cas/{sha(data)} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
        )
        assert opened.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        opened.sendall(data)
        assert answer_on(opened).status == 200


def test_methods_and_options(served: Served) -> None:
    path = f"/cas/{sha(b'x')}"
    refused = served.ask("DELETE", path)
    assert refused.status == 405
    assert refused.headers["allow"] == "GET, HEAD, PUT, OPTIONS"
    assert served.ask("OPTIONS", path).headers["allow"] == "GET, HEAD, PUT, OPTIONS"
    assert served.ask("OPTIONS", "*").status == 204
    assert served.get("/nothing/here").status == 404


def test_many_requests_on_one_connection(served: Served) -> None:
    blobs = [some_bytes(size, 11) for size in (10, 140_000, 600_000)]
    for data in blobs:
        served.put(f"/cas/{sha(data)}", data)
    wanted = [blobs[n % 3] for n in range(12)]
    lines = [f"GET /cas/{sha(data)} HTTP/1.1\r\nHost: x\r\n\r\n" for data in wanted]
    with served.connected() as opened:
        # All asked at once: answers come in order, whichever way each of them is sent.
        opened.sendall("".join(lines).encode())
        for data in wanted:
            got = answer_on_kept(opened)
            assert got == data


def answer_on_kept(opened: object) -> bytes:
    """Reads one answer byte by byte where need be, so that nothing of the next is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += opened.recv(1)  # type: ignore[attr-defined]
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += opened.recv(length - len(body))  # type: ignore[attr-defined]
    return body


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_when_a_connection_stays_open(served: Served, version: str) -> None:
    data = some_bytes(400_000, 12)
    served.put(f"/cas/{sha(data)}", data)
    ask = f"GET /cas/{sha(data)} HTTP/{version}\r\nHost: x\r\n"
    with served.connected() as opened:
        opened.sendall(f"{ask}Connection: close\r\n\r\n".encode())
        assert answer_on(opened).body == data
        assert opened.recv(1) == b""
    with served.connected() as opened:
        opened.sendall(f"{ask}Connection: keep-alive\r\n\r\n".encode() * 2)
        assert [answer_on_kept(opened), answer_on_kept(opened)] == [data, data]
    old = served.raw(f"{ask}Accept-Encoding: zstd\r\nConnection: close\r\n\r\n".encode())
    assert old.body == data


def test_a_client_that_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    data = os.urandom(8 << 20)
    with local_store(tmp_path / "store", max_open_uploads=2) as store, serving(store) as own:
        assert own.put(f"/cas/{sha(data)}", data).status == 200
        for number in range(6):
            with own.connected() as opened:
                # Half an upload, and half a download.
                opened.sendall(
                    f"PUT /cas/{sha(b'%d' % number)} HTTP/1.1\r\nHost: x\r\n"
                    f"Content-Length: 5000000\r\n\r\n".encode()
                    + data[:3_000_000]
                )
            with own.connected() as opened:
                opened.sendall(f"GET /cas/{sha(data)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                opened.recv(100)
        # Each upload that was left let go of its place.
        waiting = threading.Event()
        for _ in range(int(PATIENCE / 0.05)):
            chunked = own.ask("PUT", f"/cas/{sha(data[:100])}", iter([data[:50], data[50:100]]))
            if chunked.status == 200:
                break
            assert chunked.status == 503
            assert "max_open_uploads" in chunked.text
            waiting.wait(0.05)
        assert chunked.status == 200
        assert own.get(f"/cas/{sha(data)}").body == data
    left = [path for path in (tmp_path / "store/staging").rglob("*") if path.is_file()]
    assert left == []
