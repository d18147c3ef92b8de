"""As much of WebDAV (RFC 4918) as sccache's client needs to keep values by it.

Rule: collections are not kept: a path with a slash last is one, and always there, so that
MKCOL has nothing to do.  Request bodies are not read as XML: nothing in them can matter.
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import quote
from xml.sax.saxutils import escape

from aiohttp.web import BaseRequest

from cas.errors import NotFound
from cas.http import values
from cas.http.answers import Answer
from cas.http.context import Context, Reply
from cas.http.paths import Target
from cas.http.status import Refused
from cas.store.interface import Value

XML = b"Content-Type: application/xml; charset=utf-8\r\n"

MAX_QUERY_BODY = 64 << 10
"""Of PROPFIND and MKCOL, bytes."""


async def read(context: Context, request: BaseRequest, target: Target) -> Reply:
    """GET and HEAD."""
    if _is_collection(target):
        raise NotFound(f"collection {target.key!r} has no content")
    return await values.read(context, request, target)


async def write(context: Context, request: BaseRequest, target: Target) -> Reply:
    """PUT."""
    await values.put(context, request, values.place_of(target), target)
    return Answer(201)


async def find(context: Context, request: BaseRequest, target: Target) -> Reply:
    """PROPFIND of depth 0."""
    if request.headers.get("Depth", "infinity") != "0":
        raise Refused(HTTPStatus.FORBIDDEN, "PROPFIND is served with Depth: 0 only")
    await _skip_body(context, request)
    value = None
    if not _is_collection(target):
        value = values.find(context, target, values.place_of(target))
    return Answer(207, XML, _described(request.path, value))


async def make_collection(context: Context, request: BaseRequest, target: Target) -> Reply:
    """MKCOL."""
    await _skip_body(context, request)
    return Answer(201)


def _is_collection(target: Target) -> bool:
    return not target.key or target.key.endswith("/")


async def _skip_body(context: Context, request: BaseRequest) -> None:
    body = context.body(request)
    if body.length is not None and body.length > MAX_QUERY_BODY:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"{body.length} bytes of a query, expected at most {MAX_QUERY_BODY}",
        )
    body.limit = MAX_QUERY_BODY
    await body.discard()


def _described(path: str, value: Value | None) -> bytes:
    if value is None:
        properties = "<D:resourcetype><D:collection/></D:resourcetype>"
    else:
        properties = (
            "<D:resourcetype/>"
            f"<D:getcontentlength>{value.digest.size}</D:getcontentlength>"
            f'<D:getetag>"{value.digest.hex}"</D:getetag>'
        )
    # Every client reads a time; none is kept that could matter.
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<D:multistatus xmlns:D="DAV:"><D:response>'
        f"<D:href>{escape(quote(path))}</D:href>"
        f"<D:propstat><D:prop>{properties}"
        "<D:getlastmodified>Thu, 01 Jan 1970 00:00:00 GMT</D:getlastmodified>"
        "</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>"
        "</D:response></D:multistatus>\n"
    ).encode()
