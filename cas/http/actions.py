"""Action results: ``/ac/hash``; and what other tools keep under such paths.

Rule: what is an ActionResult is one for gRPC too, complete or not served.  What is none is a
value of its own namespace: ccache (layout=bazel) keeps entries of its own form here.  They
share the path and nothing else: no value is ever served as an action result.  Bazel never
means anything but an ActionResult, so to Bazel, and in JSON, anything else is an error.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from aiohttp.web import BaseRequest
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from cas import digest as digests
from cas.digest import Digest, Function
from cas.errors import BlobTooLarge, InvalidArgument, NotFound
from cas.http import values
from cas.http.answers import JSON, OCTETS, Answer
from cas.http.context import Context, Reply, author
from cas.http.paths import Target
from cas.http.status import Refused
from cas.pb import remote_execution_pb2 as pb
from cas.reapi.actions import keep, settled
from cas.reapi.references import named_by

NAMESPACE = "ac"
"""Of the values kept beside action results."""

MAX_DEPTH = 100
"""Levels of nesting in JSON."""


async def read(context: Context, request: BaseRequest, target: Target) -> Reply:
    """GET and HEAD: as proto-JSON where the client wants it so."""
    store, runtime = context.store, context.runtime
    digest = _digest(target)
    action = store.action(target.instance, digest)
    try:
        if action is None or not action.complete or not action.expanded:
            action = await settled(store, runtime, target.instance, digest, action)
    except NotFound:
        if not _is_strict(request):
            value = store.value(*_place(target))
            if value is not None:
                return await values.answer(context, request, value)
        raise NotFound(
            f"no action result of {target.key} in instance {target.instance!r}"
        ) from None
    if _wants_json(request.headers.get("Accept", "")):
        # Bytes that parsed when they were taken.
        text = json_format.MessageToJson(pb.ActionResult.FromString(action.result))
        return Answer(200, JSON, text.encode())
    return Answer(200, OCTETS, action.result)


async def write(context: Context, request: BaseRequest, target: Target) -> Reply:
    """PUT."""
    body = context.body(request)
    is_json = _is_json(request.headers.get("Content-Type", ""))
    strict = is_json or _is_strict(request)
    most = context.limits.max_message_size
    data, complete = await body.whole(context.runtime, most)
    if complete:
        parsed = await _parsed(context, data, target.function, is_json=is_json)
        if isinstance(parsed, pb.ActionResult):
            await keep(
                context.store,
                context.runtime,
                target.instance,
                _digest(target),
                raw=parsed.SerializeToString() if is_json else data,
                result=parsed,
                author=author(request),
                require_references=context.limits.require_references,
            )
            return Answer(200)
        if strict:
            raise InvalidArgument(f"the body is no ActionResult: {parsed}")
    elif strict:
        raise BlobTooLarge(f"the body has more than {most} bytes, the most for an ActionResult")
    if context.store.action(target.instance, _digest(target)) is not None:
        raise Refused(
            HTTPStatus.CONFLICT,
            f"an ActionResult is kept under {target.key}, and what was sent is none: {parsed}"
            if complete
            else f"an ActionResult is kept under {target.key}, and what was sent is too large",
        )
    place = _place(target)
    if complete:
        await values.put_bytes(context, request, place, data)
    else:
        await values.put_spooled(context, request, place, body, begun=data)
    return Answer(200)


async def _parsed(
    context: Context, data: bytes, function: Function, *, is_json: bool
) -> pb.ActionResult | str:
    """The message, or why it is none."""

    def parse() -> pb.ActionResult | str:
        try:
            if is_json:
                # An empty list would pass for a message without fields.
                if not data.lstrip().startswith(b"{"):
                    return "it is no JSON object"
                if _is_deep(data):
                    return f"it is nested deeper than {MAX_DEPTH} levels"
                message = json_format.Parse(
                    data,
                    pb.ActionResult(),
                    ignore_unknown_fields=True,
                )
            else:
                message = pb.ActionResult.FromString(data)
                if len(UnknownFieldSet(message)):
                    return "it has fields that an ActionResult has not"
            named_by(message, function)
        except (DecodeError, json_format.ParseError, UnicodeDecodeError, InvalidArgument) as error:
            return " ".join(str(error).split())[:500]
        return message

    if len(data) <= _PARSED_AT_ONCE:
        return parse()
    return await context.runtime.offload(parse)


_PARSED_AT_ONCE = 16 << 10

# The first is a string to its end, or to the text's: brackets in it nest nothing.
_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*+"?+|[\[{]|[\]}]', re.DOTALL)


def _is_deep(text: bytes) -> bool:
    """Whether JSON nests deeper than `MAX_DEPTH`.  The parser's own limit depends on the
    version of Python, and it passes over what is unknown however deep that is."""
    depth = 0
    for token in _NESTING.finditer(text):
        kind = token[0]
        if kind in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif kind in b"]}":
            depth -= 1
    return False


def _is_strict(request: BaseRequest) -> bool:
    return request.headers.get("User-Agent", "").lower().startswith("bazel/")


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _wants_json(accept: str) -> bool:
    return any(_is_json(item) for item in accept.split(","))


def _place(target: Target) -> values.Place:
    """Where what is no action result is kept."""
    function = target.function
    kind = f"{NAMESPACE}-{function.name}" if function.in_names else NAMESPACE
    return values.namespace(kind, target.instance), target.key


def _digest(target: Target) -> Digest:
    """Its size is not known, and does not count (`BlobStore.action`)."""
    return digests.make(target.function, target.prefix[1:], 0)
