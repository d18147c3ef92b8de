"""Values under keys of a client's choice: Gradle, ccache, Turborepo, Nx.

Rule: content that is not named by its hash never meets what is: values have namespaces of
their own, one for each protocol and instance.  They are as durable, and as much subject to
eviction, as all else.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from aiohttp.web import BaseRequest

from cas import digest as digests
from cas.digest import SHA256, Digest
from cas.errors import BlobTooLarge, InvalidArgument, NotFound
from cas.http.answers import JSON, OCTETS, Answer
from cas.http.blobs import content
from cas.http.bodies import Body
from cas.http.context import Context, Reply, author
from cas.http.paths import MAX_KEY_BYTES, Target
from cas.http.status import Refused
from cas.reapi.instances import check_text
from cas.reapi.instances import namespace as namespace
from cas.store.interface import NewValue, Value

Place = tuple[str, str]
"""Namespace and key."""


def place_of(target: Target) -> Place:
    return namespace(target.kind, target.instance), target.key


async def read(context: Context, request: BaseRequest, target: Target) -> Reply:
    """GET and HEAD."""
    return await answer(context, request, find(context, target, place_of(target)))


def find(context: Context, target: Target, place: Place) -> Value:
    """Raises NotFound."""
    value = context.store.value(*place)
    if value is None:
        where = f" in instance {target.instance!r}" if target.instance else ""
        raise NotFound(f"nothing is kept under {digests.shorten(target.key)}{where}")
    return value


async def answer(
    context: Context, request: BaseRequest, value: Value, fields: bytes = OCTETS
) -> Reply:
    return await content(context, request, value.digest, value.data, fields=fields)


async def write(context: Context, request: BaseRequest, target: Target) -> Reply:
    """PUT, in place of what was there."""
    await put(context, request, place_of(target), target)
    return Answer(200)


async def delete(context: Context, request: BaseRequest, target: Target) -> Reply:
    """DELETE."""
    place = place_of(target)
    find(context, target, place)
    await context.runtime.wait(context.store.drop_value(*place))
    return Answer(204)


async def put(
    context: Context, request: BaseRequest, place: Place, target: Target, meta: bytes = b""
) -> None:
    """Keeps the request's body."""
    if not target.key or target.key.endswith("/"):
        raise InvalidArgument(f"key {digests.shorten(target.key)} is empty or ends with a slash")
    body = context.body(request)
    small = context.store.inline_threshold
    if body.length is not None and body.length <= small and not body.encoded:
        data, _ = await body.whole(context.runtime, small)
        await put_bytes(context, request, place, data, meta)
    else:
        await put_spooled(context, request, place, body, meta=meta)


async def put_bytes(
    context: Context, request: BaseRequest, place: Place, data: bytes, meta: bytes = b""
) -> None:
    digest = digests.of(data)
    inline = len(data) <= context.store.inline_threshold
    if not inline:
        await context.writer.put(digest, data)
    await _keep(context, request, place, digest, data if inline else None, meta)


async def put_spooled(
    context: Context,
    request: BaseRequest,
    place: Place,
    body: Body,
    *,
    begun: bytes = b"",
    meta: bytes = b"",
) -> None:
    """As `put_bytes`, for what is still to come, behind `begun`."""
    runtime = context.runtime
    digest, pending = await body.spooled(context.store, runtime, SHA256, begun=begun)
    await runtime.wait(pending)
    await _keep(context, request, place, digest, None, meta)


async def _keep(
    context: Context,
    request: BaseRequest,
    place: Place,
    digest: Digest,
    data: bytes | None,
    meta: bytes,
) -> None:
    new = NewValue(digest, data, meta, author(request))
    await context.runtime.wait(context.store.put_value(*place, new))


# --- Nx ------------------------------------------------------------------------------


async def write_nx(context: Context, request: BaseRequest, target: Target) -> Reply:
    """PUT: a record is never overridden (Nx's OpenAPI definition)."""
    place = place_of(target)
    if context.store.value(*place) is not None:
        raise Refused(HTTPStatus.CONFLICT, f"a record of {target.key} exists; it is kept")
    await put(context, request, place, target)
    return Answer(200)


# --- Turborepo -----------------------------------------------------------------------

KEPT_FIELDS = ("x-artifact-tag", "x-artifact-duration", "x-artifact-sha", "x-artifact-dirty-hash")
"""What a client sends with an artifact and wants back with it: its signature, and the time
that it took to make, in ms, among them."""
MAX_FIELD = 600
"""Characters of one: what the API allows for a tag."""


async def read_turborepo(context: Context, request: BaseRequest, target: Target) -> Reply:
    """GET and HEAD of an artifact; GET of ``status``."""
    if target.key == "status":
        return Answer(200, JSON, b'{"status":"enabled"}')
    value = find(context, target, place_of(target))
    kept = json.loads(value.meta) if value.meta else {}
    fields = "".join(f"{name}: {text}\r\n" for name, text in kept.items())
    return await answer(context, request, value, OCTETS + fields.encode("ascii"))


async def write_turborepo(context: Context, request: BaseRequest, target: Target) -> Reply:
    """PUT of an artifact."""
    if target.key in ("", "status", "events"):
        raise InvalidArgument(f"no artifact can have the hash {target.key!r}")
    kept = {name: request.headers[name] for name in KEPT_FIELDS if name in request.headers}
    for name, text in kept.items():
        if len(text) > MAX_FIELD or not (text.isascii() and text.isprintable()):
            raise InvalidArgument(
                f"{name} {digests.shorten(text)} is not up to {MAX_FIELD} printable characters"
            )
    meta = json.dumps(kept).encode() if kept else b""
    await put(context, request, place_of(target), target, meta)
    return Answer(202, JSON, b'{"urls":[]}')


async def post_turborepo(context: Context, request: BaseRequest, target: Target) -> Reply:
    """POST of ``events``, what a client tells of its hits and misses, which is not kept; and of
    a query: what there is of many artifacts."""
    if not target.key:
        return Answer(200, JSON, await _asked(context, request, target))
    if target.key != "events":
        raise NotFound(f"nothing takes a POST under {digests.shorten(target.key)}")
    await context.body(request).discard()
    return Answer(200, JSON, b"{}")


MAX_QUERY = 64 << 10
"""Bytes of a query's body: some hundreds of hashes."""


async def _asked(context: Context, request: BaseRequest, target: Target) -> bytes:
    """By hash: null, or the size, the time that it took to make, and the tag if it has one."""
    body, complete = await context.body(request).whole(context.runtime, MAX_QUERY)
    if not complete:
        raise BlobTooLarge(f"the query has more than {MAX_QUERY} bytes")
    space = namespace(target.kind, target.instance)
    found = {key: context.store.value(space, key) for key in _hashes(body)}
    return json.dumps({key: value and _told(value) for key, value in found.items()}).encode()


def _hashes(body: bytes) -> list[str]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidArgument("the query is no JSON") from None
    hashes = asked.get("hashes") if isinstance(asked, dict) else None
    if not isinstance(hashes, list) or not all(isinstance(key, str) for key in hashes):
        raise InvalidArgument('the query is not {"hashes": ["…", …]}')
    for key in hashes:
        check_text(f"hash {digests.shorten(key)}", key, MAX_KEY_BYTES)
    return hashes


def _told(value: Value) -> dict[str, object]:
    kept = json.loads(value.meta) if value.meta else {}
    took = kept.get("x-artifact-duration", "")
    told: dict[str, object] = {
        "size": value.digest.size,
        "taskDurationMs": int(took) if took.isdecimal() else 0,
    }
    if "x-artifact-tag" in kept:
        told["tag"] = kept["x-artifact-tag"]
    return told
