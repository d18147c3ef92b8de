"""Paths to targets, and header fields to what they ask for: pure."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.digest import BLAKE3, ENABLED, SHA1, SHA256, SHA256TREE, SHA512, Function
from cas.errors import InvalidArgument, NotFound, OutOfRange
from cas.http import headers, paths
from cas.http.headers import Span

HASH = "0123456789abcdef" * 4
exactly = settings(derandomize=True, max_examples=200, deadline=None)


@pytest.mark.parametrize(
    ("path", "kind", "instance", "key"),
    [
        (f"/cas/{HASH}", "cas", "", HASH),
        (f"/ac/{HASH}?x=y", "ac", "", HASH),
        (f"/a/b/cas/{HASH}", "cas", "a/b", HASH),
        (f"/a%20b/ac/{HASH}", "ac", "a b", HASH),
        (f"/cas/cas/{HASH}", "cas", "cas", HASH),
        (f"/cas/x/ac/{HASH}", "ac", "cas/x", HASH),
        (f"http://host:8080/cas/{HASH}", "cas", "", HASH),
        (f"HTTPS://host/i/cas/{HASH}", "cas", "i", HASH),
        ("/cache/abc", "cache", "", "abc"),
        ("/cache/ab/cdef", "cache", "", "ab/cdef"),
        ("/team/cache/k", "cache", "team", "k"),
        (f"/cache/cas/{HASH}", "cache", "", f"cas/{HASH}"),
        ("/webdav/", "webdav", "", ""),
        ("/webdav", "webdav", "", ""),
        ("/webdav/a/b/", "webdav", "", "a/b/"),
        ("/webdav/%C3%A9/x", "webdav", "", "é/x"),
        ("/x/webdav/cache/k", "webdav", "x", "cache/k"),
        ("/v8/artifacts/0a", "turborepo", "", "0a"),
        ("/v8/artifacts?slug=s", "turborepo", "s", ""),
        ("/v8/artifacts/0a?teamId=t", "turborepo", "t", "0a"),
        ("/v8/artifacts/0a?slug=s&teamId=", "turborepo", "s", "0a"),
        ("/i/v8/artifacts/0a?slug=s", "turborepo", "i/s", "0a"),
        ("/v1/cache/0a", "nx", "", "0a"),
        ("/i/v1/cache/0a", "nx", "i", "0a"),
        ("/v1/cache/ab/cd", "cache", "v1", "ab/cd"),
    ],
)
def test_what_a_path_names(path: str, kind: str, instance: str, key: str) -> None:
    target = paths.parse(path)
    assert target[:3] == (kind, instance, key)
    expected = SHA256.prefix + bytes.fromhex(HASH) if kind in ("cas", "ac") else b""
    assert target.prefix == expected


@pytest.mark.parametrize(
    ("path", "kind", "instance", "function"),
    [
        (f"/blake3/cas/{HASH}", "cas", "", BLAKE3),
        (f"/a/b/blake3/ac/{HASH}", "ac", "a/b", BLAKE3),
        (f"/blake3/blake3/cas/{HASH}", "cas", "blake3", BLAKE3),
        (f"/sha256tree/cas/{HASH}", "cas", "", SHA256TREE),
        (f"/bl%61ke3/cas/{HASH}", "cas", "", BLAKE3),
        (f"http://host/blake3/cas/{HASH}", "cas", "", BLAKE3),
        # Not of a function that has to be named.
        (f"/sha256/cas/{HASH}", "cas", "sha256", SHA256),
        (f"/cas/{HASH[:40]}", "cas", "", SHA1),
        (f"/ac/{HASH * 2}", "ac", "", SHA512),
    ],
)
def test_which_function_a_path_means(
    path: str, kind: str, instance: str, function: Function
) -> None:
    target = paths.parse(path)
    assert (target.kind, target.instance, target.function) == (kind, instance, function)
    assert target.prefix == function.prefix + bytes.fromhex(target.key)


def test_a_function_is_named_before_hashes_only() -> None:
    assert paths.parse("/blake3/cache/k").instance == "blake3"
    assert paths.parse("/blake3/cas/cache/k").instance == "blake3/cas"


def test_what_is_not_served_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'sha256tree' is not served"):
        paths.parse(f"/sha256tree/cas/{HASH}", ENABLED)
    with pytest.raises(InvalidArgument, match="40 characters"):
        paths.parse(f"/cas/{HASH[:40]}", ENABLED)


@pytest.mark.parametrize(
    "path", ["/", "/x", "/cas", f"/{HASH}", "/cache", f"/cas/{HASH}/x", "/v8/x", "/v1/x/y"]
)
def test_what_nothing_serves(path: str) -> None:
    with pytest.raises(NotFound):
        paths.parse(path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/cas/abc", "64 .sha256.*lowercase hex"),
        (f"/cas/{HASH.upper()}", "64 lowercase hex"),
        (f"/cas/{HASH[:-1]}g", "64 lowercase hex"),
        (f"/cas/{HASH[:-1]}%20", "66 characters"),
        (f"/../cas/{HASH}", "instance"),
        (f"/a/../../cas/{HASH}", "instance"),
        (f"/a//cas/{HASH}", "instance"),
        (f"//cas/{HASH}", "instance"),
        (f"/%2e%2e/cas/{HASH}", "instance"),
        (f"/uploads/cas/{HASH}", "uploads"),
        (f"/a%2f..%2fb/cas/{HASH}", "hides a slash"),
        (f"/a%5cb/cas/{HASH}", "hides a slash"),
        (f"/%252e/cas/{HASH}", "percent"),
        (f"/%ff/cas/{HASH}", "not UTF-8"),
        (f"/a%00b/cas/{HASH}", "control character"),
        ("/cache/../../etc/passwd", "dots"),
        ("/cache/a/./b", "dots"),
        ("/cache/a//b", "empty segment"),
        ("/cache/", "empty segment"),
        ("/webdav/a/../b", "dots"),
        ("/webdav/..", "dots"),
        ("/webdav//", "empty segment"),
        ("/webdav/a%0d%0ab", "control character"),
        ("/cache/" + "x" * 5000, "at most 4096"),
        ("ftp://host/cas/x", "not a path"),
        ("*", "not a path"),
        ("/v8/artifacts/x?slug=../y", "instance"),
        ("/v8/artifacts/x?slug=" + "y" * 300, "instance"),
        ("/v8/artifacts/x?" + "a=b&" * 100, "cannot be read"),
        ("/v8/artifacts/x?slug=%ff", "cannot be read"),
        (f"/{'i' * 300}/cas/{HASH}", "at most 255"),
    ],
)
def test_what_is_malformed_is_named(path: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        paths.parse(path)


@exactly
@given(st.text(max_size=80))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        target = paths.parse(f"/{text}")
    except (InvalidArgument, NotFound):
        return
    names = [*target.instance.split("/"), *target.key.removesuffix("/").split("/")]
    assert not {".", ".."} & set(names)
    assert "\0" not in target.instance + target.key


segments = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda s: not set(s) & set("/\\%?") and s not in {".", ".."} and s.isprintable()
)


@exactly
@given(st.lists(segments, min_size=1, max_size=5))
def test_keys_come_back_percent_encoded_or_not(parts: list[str]) -> None:
    key = "/".join(parts)
    encoded = "/".join("".join(f"%{b:02x}" for b in part.encode()) for part in parts)
    assert paths.parse(f"/webdav/{encoded}").key == key
    assert paths.parse(f"/webdav/{key}").key == key


@pytest.mark.parametrize(
    ("field", "span"),
    [
        ("bytes=0-", (0, 1000)),
        ("bytes=5-9", (5, 10)),
        ("bytes = 5-9 ", (5, 10)),
        ("bytes=999-5000", (999, 1000)),
        ("bytes=-1", (999, 1000)),
        ("bytes=-5000", (0, 1000)),
        ("bytes=0-1,5-9", None),
        ("bytes=9-5", None),
        ("bytes=-", None),
        ("bytes=x-y", None),
        ("lines=0-1", None),
        ("bytes=٣-٤", None),
        ("bytes=" + "9" * 40 + "-", None),
    ],
)
def test_a_range_is_cut_or_ignored(field: str, span: tuple[int, int] | None) -> None:
    assert headers.byte_range(field, 1000) == (None if span is None else Span(*span))


@pytest.mark.parametrize(
    ("field", "size"),
    [("bytes=1000-", 1000), ("bytes=-0", 1000), ("bytes=5000-6000", 1000), ("bytes=0-0", 0)],
)
def test_a_range_behind_the_end_is_refused(field: str, size: int) -> None:
    with pytest.raises(OutOfRange):
        headers.byte_range(field, size)


@exactly
@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 1500))
def test_a_range_is_a_slice(first: int, last: int, size: int) -> None:
    data = bytes(range(256)) * 8
    try:
        span = headers.byte_range(f"bytes={first}-{last}", size)
    except OutOfRange:
        assert first >= size
        return
    if span is None:
        assert last < first
    else:
        assert data[span.start : span.end] == data[:size][first : last + 1]


@pytest.mark.parametrize(
    ("field", "does"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False),
     ("", False)],
)  # fmt: skip
def test_conditions(field: str, does: bool) -> None:
    assert headers.matches(field, "a") is does


@pytest.mark.parametrize(
    ("field", "does"),
    [("zstd", True), ("gzip, ZSTD;q=0.5", True), ("gzip", False), ("zstd;q=0", False),
     ("zstd; q=0.000, gzip", False), ("", False), ("xzstd", False), ("*", False)],
)  # fmt: skip
def test_who_takes_zstd(field: str, does: bool) -> None:
    assert headers.accepts_zstd(field) is does


@pytest.mark.parametrize("field", ["", "-1", "+5", "1_0", "٣", " 5", "9" * 20])
def test_what_is_no_size(field: str) -> None:
    with pytest.raises(InvalidArgument, match="whole number"):
        headers.whole_number("X", field)
