"""Blobs by their hash: ``/cas/hash``.

Rule: what is written here was verified; what is read is what was written, whole or a range
of it, as it is or as zstd.  `content` answers for every protocol that has content to give.
"""

from __future__ import annotations

from aiohttp.web import BaseRequest

from cas import digest as digests
from cas.digest import Digest
from cas.errors import NotFound, OutOfRange
from cas.http import headers
from cas.http.answers import OCTETS, Answer, refusal
from cas.http.bodies import WHOLE
from cas.http.context import Context, Reply
from cas.http.headers import Span
from cas.http.paths import Target
from cas.http.sending import WORTHWHILE, Stream, compress, is_worthwhile
from cas.reapi.blobs import kept, opened
from cas.store.coming import Coming
from cas.store.interface import Found, Held

COMPRESSED_FROM = 1024
"""Smaller blobs are not worth compressing, bytes."""


async def read(context: Context, request: BaseRequest, target: Target) -> Reply:
    """GET and HEAD."""
    found = context.store.look_up(target.prefix)
    if found is None:
        found = await _beyond(context, target)
    digest, data, held = found
    return await content(context, request, digest, data, held, compressible=True)


async def _beyond(context: Context, target: Target) -> Found:
    """What lies behind the store."""
    beyond = context.store.beyond
    digest = None
    if beyond is not None:
        digest = await context.runtime.wait(beyond.find(target.prefix))
    if digest is None:
        raise NotFound(f"no blob has the hash {target.key}")
    return Found(digest, None)


async def write(context: Context, request: BaseRequest, target: Target) -> Reply:
    """PUT: the hash is the path's, the size what came."""
    store, runtime = context.store, context.runtime
    body = context.body(request)
    size = body.length
    if size is None or size > WHOLE or body.encoded:
        known = store.find(target.prefix)
        if known is not None and store.contains(known):
            await body.discard()
            await kept(store, runtime, known)
            return Answer(200)
        _, pending = await body.spooled(store, runtime, target.function, expected=target.prefix)
        await runtime.wait(pending)
        return Answer(200)
    data, _ = await body.whole(runtime, size)
    digest = digests.make(target.function, target.prefix[1:], size)
    if store.contains(digest):
        digests.verify(digest, data)
        await kept(store, runtime, digest)
        return Answer(200)
    await context.writer.put(digest, data)
    return Answer(200)


async def content(
    context: Context,
    request: BaseRequest,
    digest: Digest,
    data: bytes | memoryview | None,
    held: Held | None = None,
    *,
    fields: bytes = OCTETS,
    compressible: bool = False,
) -> Reply:
    """Answers with content that is `data`, which may be a view of `held`, or else the blob
    `digest`."""
    asked = request.headers
    tag = digest.hex
    fields += b'ETag: "%b"\r\n' % tag.encode()
    if "If-None-Match" in asked and headers.matches(asked["If-None-Match"], tag):
        return Answer(304, fields)
    span = None
    if "Range" in asked and request.method == "GET" and _applies(asked.get("If-Range"), tag):
        try:
            span = headers.byte_range(asked["Range"], digest.size)
        except OutOfRange as error:
            return refusal(416, str(error), {"Content-Range": f"bytes */{digest.size}"})
    if compressible:
        fields += b"Vary: Accept-Encoding\r\n"
        if request.method == "HEAD":
            # RFC 7694: what bodies may come as.
            fields += b"Accept-Encoding: zstd\r\n"
    if span is not None:
        fields += b"Content-Range: bytes %d-%d/%d\r\n" % (span.start, span.end - 1, digest.size)
        if data is not None:
            return Answer(206, fields, bytes(data[span.start : span.end]))
        return Stream(
            context.runtime, await opened(context.store, context.runtime, digest), 206, fields, span
        )
    fields += b"Accept-Ranges: bytes\r\n"
    as_zstd = (
        compressible
        and digest.size >= COMPRESSED_FROM
        and "Accept-Encoding" in asked
        and headers.accepts_zstd(asked["Accept-Encoding"])
    )
    if data is not None:
        if as_zstd and len(packed := compress(data)) < WORTHWHILE * len(data):
            return Answer(200, _encoded(fields), packed)
        return Answer(200, fields, data, held=held)
    if request.method == "HEAD":
        return Answer(200, fields, length=digest.size)
    blob = await opened(context.store, context.runtime, digest)
    try:
        stored = blob.packed() if as_zstd else None
        if stored is not None:
            # As it is.
            whole = Span(0, stored.size)
            return Stream(context.runtime, stored, 200, _encoded(fields), whole)
        # Whether a blob shrinks that is on its way here would be known too late.
        as_zstd = as_zstd and request.version >= (1, 1) and not isinstance(blob, Coming)
        if as_zstd and await is_worthwhile(context.runtime, blob):
            fields, packs = _encoded(fields), True
        else:
            packs = False
    except BaseException:
        blob.close()
        raise
    whole = Span(0, digest.size)
    return Stream(context.runtime, blob, 200, fields, whole, compressed=packs)


def _encoded(fields: bytes) -> bytes:
    # Another representation: only the weak comparison finds them equal (RFC 9110, 8.8.3.3).
    return b"Content-Encoding: zstd\r\n" + fields.replace(b'ETag: "', b'ETag: W/"')


def _applies(if_range: str | None, tag: str) -> bool:
    """Whether a Range is to be looked at (RFC 9110, 13.1.5): dates are not kept."""
    return if_range is None or if_range.strip() == f'"{tag}"'
