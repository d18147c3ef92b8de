"""Paths: what a request is about.

Rule: pure, text in and values out; every path that a client sends is read here and nowhere
else.  The forms::

    /[instance/]cas/hash                    blobs, as Bazel and others have them
    /[instance/]ac/hash                     action results, and ccache's entries (layout=bazel)
    /[instance/]cache/key                   Gradle; plain ccache, whose keys may hold slashes
    /[instance/]webdav/key                  sccache: keys with slashes, or a collection
    /[instance/]v8/artifacts[/hash]         Turborepo; ?teamId=… or slug=… is an instance too
    /[instance/]v1/cache/hash               Nx

The instance is everything before the first of these, read from the left, and may hold
slashes.  The length of a hash tells its digest function, as in REAPI's resource names; one that
those have to name is named by the segment before `cas` and `ac`: ``/[instance/]blake3/cas/hash``.
Bazel puts these two words and nothing else between its URL and a hash, whatever the function: so
the function goes into the URL that it is given.

  Paths name entries of an index, never files; dots, empty segments and slashes in
disguise are refused all the same, since proxies would read them in another way than we do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from cas.digest import BY_CODE, BY_NAME, KNOWN, Function, Functions, raw_hash, shorten
from cas.errors import InvalidArgument, NotFound
from cas.reapi.instances import check_instance, check_text

Kind = Literal["cas", "ac", "cache", "webdav", "turborepo", "nx"]

MAX_KEY_BYTES: Final = 4096
MAX_FIELDS: Final = 16


class Target(NamedTuple):
    """What a path names."""

    kind: Kind
    instance: str
    key: str
    """What follows; of `cas` and `ac` the hash, of a WebDAV collection with a slash last.
    Empty where Turborepo asks about many."""
    prefix: bytes = b""
    """Of `cas` and `ac`: the digest's key without its size."""

    @property
    def function(self) -> Function:
        """Of `cas` and `ac`."""
        return BY_CODE[self.prefix[0]]


def parse(raw: str, among: Functions = KNOWN) -> Target:
    """Reads a request's target as it came, of a digest function `among` those.

    Raises NotFound for what no protocol has, InvalidArgument naming the value for what is
    malformed.
    """
    path, _, query = raw.partition("?")
    if not path.startswith("/"):
        path = _without_authority(path)
    segments = path.split("/")
    # The hottest path first: no instance, nothing in disguise.
    if len(segments) == 3 and segments[1] in _HASHED:
        return _hashed(segments[1], "", segments[2], among)
    if "%" in path:
        segments = [_decoded(segment) for segment in segments]
    place = _marker(segments)
    if place is None:
        raise NotFound(f"nothing is served under {shorten(path, 300)}")
    at, kind, rest = place
    before = segments[1:at]
    function = _named(before[-1], among) if before and kind in _HASHED else None
    if function is not None:
        before.pop()
    instance = check_instance("/".join(before))
    if before and not instance:
        raise InvalidArgument(f"path {shorten(path, 300)} names an empty instance by a slash")
    if kind in _HASHED:
        return _hashed(kind, instance, rest[0], among, function)
    key = "/".join(rest)
    _check_key(path, kind, rest, key)
    if kind == "turborepo" and query:
        team = _team(query)
        instance = check_instance(f"{instance}/{team}" if instance and team else instance or team)
    return Target(kind, instance, key)


def _marker(segments: Sequence[str]) -> tuple[int, Kind, Sequence[str]] | None:
    """Where the instance ends, the protocol, and the segments behind its own."""
    last = len(segments) - 1
    for at in range(1, last + 1):
        segment = segments[at]
        left = last - at
        if segment in _HASHED and left == 1:
            return at, _HASHED[segment], segments[at + 1 :]
        if segment == "v8" and left in (1, 2) and segments[at + 1] == "artifacts":
            return at, "turborepo", segments[at + 2 :]
        if segment == "v1" and left == 2 and segments[at + 1] == "cache":
            return at, "nx", segments[at + 2 :]
        if segment == "webdav" or (segment == "cache" and left):
            return at, "webdav" if segment == "webdav" else "cache", segments[at + 1 :]
    return None


def _team(query: str) -> str:
    """Turborepo's team: an instance below the path's own."""
    try:
        fields = dict(parse_qsl(query, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError:
        raise InvalidArgument(f"query {shorten(query)} cannot be read") from None
    return fields.get("teamId") or fields.get("slug") or ""


_HASHED: Final[dict[str, Literal["cas", "ac"]]] = {"cas": "cas", "ac": "ac"}


def _hashed(
    kind: str, instance: str, key: str, among: Functions, function: Function | None = None
) -> Target:
    if function is None:
        function = among.of_hash(key)
    return Target(_HASHED[kind], instance, key, function.prefix + raw_hash(key, function))


def _named(segment: str, among: Functions) -> Function | None:
    """The function that a segment names, if it is one that has to be named."""
    function = BY_NAME.get(segment)
    return among.of_name(segment) if function is not None and function.in_names else None


def _check_key(path: str, kind: Kind, segments: Sequence[str], key: str) -> None:
    names = segments[:-1] if kind == "webdav" and segments and not segments[-1] else segments
    if not {"", ".", ".."}.isdisjoint(names):
        raise InvalidArgument(
            f"path {shorten(path, 300)} has an empty segment or dots; expected neither"
        )
    check_text(f"key {shorten(key)}", key, MAX_KEY_BYTES)


def _without_authority(target: str) -> str:
    """The path of a target in absolute form (RFC 9112, 3.2.2), whatever its host."""
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        return "/" + rest.partition("/")[2]
    raise InvalidArgument(f"request target {shorten(target, 300)} is not a path")


def _decoded(segment: str) -> str:
    if "%" not in segment:
        return segment
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeError:
        raise InvalidArgument(f"path segment {shorten(segment)} is not UTF-8") from None
    if "/" in text or "\\" in text or "%" in text:
        raise InvalidArgument(
            f"path segment {shorten(segment)} hides a slash, a backslash or a percent sign"
        )
    return text
