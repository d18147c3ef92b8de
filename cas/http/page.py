"""The page at ``/``: what an operator sees of the server, and what is inside it.

Rule: static files and JSON, all of it read-only and behind the same gate as what it shows; paths
below ``/-/`` name no protocol, so that no instance can be meant by them (`cas.http.paths`).
Nothing is made up front: a server that nobody looks at does nothing for the page, and what many
look at is made once a second.

What is shown was named by clients, who may be hostile: the page has no other scripts, styles or
addresses than its own files (Content-Security-Policy with a nonce for each answer), and
its script cannot turn text into markup (Trusted Types).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp.web import BaseRequest

from cas.access.roles import Role
from cas.digest import shorten
from cas.errors import InvalidArgument
from cas.http import blobs, look
from cas.http.answers import JSON, OCTETS, Answer
from cas.http.context import CALLER, Context, Reply
from cas.http.gate import Gate
from cas.http.paths import MAX_FIELDS, Target
from cas.http.service import FOR_PEOPLE, Page
from cas.metrics import overview
from cas.metrics.board import Board
from cas.metrics.overview import Overview
from cas.reapi.instances import check_instance
from cas.store.administration import Administration

STATIC: Final = Path(__file__).parent / "static"

FRESH: Final = 1.0
"""Seconds for which all who look are told the same."""

_SAFE = (
    b"X-Content-Type-Options: nosniff\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"Cross-Origin-Opener-Policy: same-origin\r\n"
    b"Cross-Origin-Resource-Policy: same-origin\r\n"
)
_CLOSED = (
    b"Content-Security-Policy: default-src 'none'; frame-ancestors 'none'; sandbox\r\n"
    b"Cache-Control: no-store\r\n"
)
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_SCRIPT = b"text/javascript; charset=utf-8"
_FILES = {
    "icon.svg": b"image/svg+xml",
    "page.css": b"text/css; charset=utf-8",
    "dom.js": _SCRIPT,
    "charts.js": _SCRIPT,
    "inside.js": _SCRIPT,
    "page.js": _SCRIPT,
}
"""By name, each behind those that it names: ``{dom.js}`` in one stands for the other's address."""


def pages(
    board: Board, context: Context, records: Administration, gate: Gate | None
) -> dict[str, Page]:
    """By path."""
    runtime = context.runtime
    now = _Shared(lambda: runtime.offload(overview.now, board))
    past = _Shared(lambda: runtime.offload(_past, board))
    turn = asyncio.Lock()

    async def tell_now(request: BaseRequest) -> Answer:
        seen: Overview = await now()
        may = _reader(request)
        # What the server noticed itself is of the default instance.
        notes = [note for note in seen.notes if may(note.instance)]
        return _json({**seen.shown, "notes": notes})

    async def tell_past(request: BaseRequest) -> Answer:
        return Answer(HTTPStatus.OK, JSON + _SAFE + _CLOSED, await past())

    async def tell_inside(request: BaseRequest) -> Answer:
        asked = _query(request, "digest", "instance", "as", "path")
        if "instance" in asked:
            instances = [await _admitted(request, gate, asked["instance"])]
        else:
            may = _reader(request)
            known = (await now()).instances
            instances = [name for name in dict.fromkeys(["", *known]) if may(name)]
        found = look.Question(
            asked.get("digest", ""), tuple(instances), asked.get("as", ""), asked.get("path", "")
        )
        # One at a time: a large message takes a while, and others need the helper threads.
        async with turn:
            return _json(await look.inside(context, records, found))

    async def give(request: BaseRequest) -> Reply:
        asked = _query(request, "digest")
        digest = await look.blob(context, asked.get("digest", ""))
        fields = OCTETS + b"Content-Disposition: attachment\r\n" + _SAFE + _CLOSED
        data = context.store.read_small(digest)
        return await blobs.content(context, request, digest, data, fields=fields)

    made: dict[str, Page] = {
        FOR_PEOPLE + "now": tell_now,
        FOR_PEOPLE + "past": tell_past,
        FOR_PEOPLE + "look": tell_inside,
        FOR_PEOPLE + "raw": give,
    }
    addresses: dict[str, str] = {}
    for name, kind in _FILES.items():
        body = _read(name, addresses).encode()
        addresses[name] = f"{FOR_PEOPLE}{name}?{hashlib.sha256(body).hexdigest()[:12]}"
        made[FOR_PEOPLE + name] = _static(kind, body)
    made["/"] = _document(_read("page.html", addresses))
    return made


def _read(name: str, addresses: Mapping[str, str]) -> str:
    """A file, with the addresses of those that it names."""
    text = (STATIC / name).read_text("utf-8")
    for other, address in addresses.items():
        text = text.replace(f"{{{other}}}", address)
    return text


def _document(html: str) -> Page:
    async def answer(request: BaseRequest) -> Answer:
        nonce = secrets.token_urlsafe(18)
        policy = _POLICY.replace("{nonce}", nonce)
        fields = (
            b"Content-Type: text/html; charset=utf-8\r\n"
            + _SAFE
            + f"Content-Security-Policy: {policy}\r\n".encode()
            + b"Cache-Control: no-store\r\n"
        )
        return Answer(HTTPStatus.OK, fields, html.replace("{nonce}", nonce).encode())

    return answer


def _static(kind: bytes, body: bytes) -> Page:
    # Its address changes with its content.  Private: whoever may not read gets none of it.
    kept = b"Cache-Control: private, max-age=31536000, immutable\r\n"
    fields = b"Content-Type: " + kind + b"\r\n" + _SAFE + kept

    async def answer(request: BaseRequest) -> Answer:
        return Answer(HTTPStatus.OK, fields, body)

    return answer


class _Shared:
    """A value that is made when somebody asks, once for all who ask within `FRESH`."""

    def __init__(self, make: Callable[[], Awaitable[Any]]) -> None:
        self._make = make
        self._made: asyncio.Future[Any] | None = None
        self._at = float("-inf")

    async def __call__(self) -> Any:
        if self._made is None or (self._made.done() and time.monotonic() > self._at + FRESH):
            self._made = asyncio.ensure_future(self._make())
            self._at = time.monotonic()
        # Others may wait for the same: one that goes away must not end it.
        return await asyncio.shield(self._made)


def _past(board: Board) -> bytes:
    return json.dumps(overview.past(board), separators=(",", ":")).encode()


def _json(values: object) -> Answer:
    body = json.dumps(values, separators=(",", ":")).encode()
    return Answer(HTTPStatus.OK, JSON + _SAFE + _CLOSED, body)


def _query(request: BaseRequest, *names: str) -> dict[str, str]:
    """The request's fields.  Raises InvalidArgument for others, and for what is none."""
    query = request.raw_path.partition("?")[2]
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise InvalidArgument("the query cannot be read") from None
    asked = dict(pairs)
    for name in asked:
        if name not in names:
            raise InvalidArgument(f"field {shorten(name)} is not one of {', '.join(names)}")
    return asked


async def _admitted(request: BaseRequest, gate: Gate | None, instance: str) -> str:
    """Raises what the gate raises for whoever may not read in `instance`."""
    check_instance(instance)
    if gate is not None:
        await gate.admit(request, Target("ac", instance, ""))
    return instance


def _reader(request: BaseRequest) -> Callable[[str], bool]:
    """Whether the caller may read in an instance."""
    caller = request.get(CALLER)
    if caller is None:
        # Nobody asked who it is: everyone may do everything.
        return lambda instance: True
    rights = caller.rights
    return lambda instance: rights.role(instance) >= Role.READ
