"""Resource names: the strings by which ByteStream requests name blobs and uploads.

Rule: pure, text in and values out; nothing of gRPC, nothing of the store.  Every name that
a client sends is read here and nowhere else.

The forms (REAPI, comment of service ContentAddressableStorage)::

    [instance/]blobs/[function/]hash/size
    [instance/]compressed-blobs/compressor/[function/]hash/size
    [instance/]uploads/uuid/blobs/[function/]hash/size[/anything]
    [instance/]uploads/uuid/compressed-blobs/compressor/[function/]hash/size[/anything]

The instance is everything before the first keyword and may hold slashes.  Names are read
from the left, so what follows an upload's size is free to hold keywords too.
"""

from __future__ import annotations

from typing import Final, NamedTuple, NoReturn

from cas.digest import KNOWN, MAX_SIZE, Digest, Function, Functions, make, raw_hash, shorten
from cas.errors import InvalidArgument
from cas.reapi.instances import KEYWORDS, check_text
from cas.reapi.instances import check_instance as check_instance

COMPRESSORS: Final[frozenset[str]] = frozenset({"zstd"})
"""Compressors served under `compressed-blobs`, in lower case; identity is never one."""

MAX_UUID_BYTES: Final = 128

_MAX_SIZE_DIGITS: Final = len(str(MAX_SIZE))

_SHOWN: Final = 300
"""Characters of a name in messages: what most names have."""


class ResourceName(NamedTuple):
    """What a resource name says.

    `upload` is the uuid segment, None for a plain blob name; `compressor` is None for bytes
    as they are.  What a client appends after an upload's size is not kept: REAPI lets
    servers ignore it, and it must not make two uploads of one.
    """

    instance: str
    upload: str | None
    compressor: str | None
    digest: Digest


def parse(name: str, among: Functions = KNOWN) -> ResourceName:
    """Reads any of the forms, of a digest function `among` those.

    Raises InvalidArgument naming the value and what is wrong.
    """
    segments = name.split("/")
    at = 0
    for segment in segments:
        if segment in KEYWORDS:
            break
        at += 1
    else:
        _fail(name, "no segment 'blobs', 'compressed-blobs' or 'uploads'")
    instance = check_instance("/".join(segments[:at])) if at else ""
    if at and not instance:
        _fail(name, "it begins with a slash")
    end = len(segments)
    upload = None
    if segment == "uploads":
        if end < at + 3:
            _fail(name, "it ends before the blob's hash and size")
        upload = segments[at + 1]
        _check_uuid(name, upload)
        at += 2
        segment = segments[at]
    at += 1
    compressor = None
    if segment == "compressed-blobs":
        compressor = segments[at] if at < end else ""
        if compressor not in COMPRESSORS:
            _fail(name, _unknown_compressor(compressor))
        at += 1
    elif segment != "blobs":
        _fail(name, f"segment {shorten(segment)} stands where 'blobs' was expected")

    # The hash's own length tells the function, except where a segment names it.
    function = None
    if at < end:
        function = among.by_hex_length.get(len(segments[at]))
        if function is None:
            function = _named_function(name, segments[at], among)
            at += 1
    if function is None or end < at + 2:
        _fail(name, "it ends before the blob's hash and size")
    if upload is None and end != at + 2:
        _fail(name, "something follows the blob's size")
    try:
        raw = raw_hash(segments[at], function)
    except InvalidArgument as error:
        _fail(name, str(error))
    digits = segments[at + 1]
    # int() alone would take signs, spaces, underscores and other scripts' digits.
    if (
        not digits.isdigit()
        or not digits.isascii()
        or len(digits) > _MAX_SIZE_DIGITS
        or (digits[0] == "0" and len(digits) > 1)
    ):
        _fail(name, f"size {shorten(digits)} is not a decimal number from 0 to {MAX_SIZE}")
    size = int(digits)
    if size > MAX_SIZE:
        _fail(name, f"size {digits} is not a decimal number from 0 to {MAX_SIZE}")
    return ResourceName(instance, upload, compressor, make(function, raw, size))


def parse_read(name: str, among: Functions = KNOWN) -> ResourceName:
    """Reads a name that Read takes: a blob, not an upload."""
    resource = parse(name, among)
    if resource.upload is not None:
        _fail(name, "an upload cannot be read; expected [instance/]blobs/hash/size")
    return resource


def parse_write(name: str, among: Functions = KNOWN) -> ResourceName:
    """Reads a name that Write and QueryWriteStatus take: an upload, or a plain blob.

    A plain name is resumable by whoever has the bytes.  Compressed streams of different
    clients differ for the same blob, so those need an upload's name.
    """
    resource = parse(name, among)
    if resource.upload is None and resource.compressor is not None:
        _fail(name, "compressed data is written to [instance/]uploads/uuid/compressed-blobs/…")
    return resource


def format(resource: ResourceName) -> str:
    """The name that `parse` reads back as `resource`."""
    parts = [resource.instance] if resource.instance else []
    if resource.upload is not None:
        parts += ("uploads", resource.upload)
    parts += (
        ("blobs",) if resource.compressor is None else ("compressed-blobs", resource.compressor)
    )
    digest = resource.digest
    function = digest.function
    if function.in_names:
        parts.append(function.name)
    parts += (digest.hex, str(digest.size))
    return "/".join(parts)


def _check_uuid(name: str, uuid: str) -> None:
    """REAPI asks for a version 4 UUID, and only so that uploads do not collide.  Any other
    segment does that as well, and clients send such: without dashes, in upper case, with a
    host's name or a counter.  Refusing them would gain nothing."""
    if uuid in {"", ".", ".."}:
        _fail(name, f"{uuid!r} stands where the upload's uuid was expected")
    if len(uuid) > MAX_UUID_BYTES or not (uuid.isascii() and uuid.isprintable()):
        check_text(f"resource name {shorten(name)}: uuid {shorten(uuid)}", uuid, MAX_UUID_BYTES)


def _named_function(name: str, segment: str, among: Functions) -> Function:
    """The function whose name is `segment`, which is not a hash by its length."""
    try:
        function = among.of_name(segment)
    except InvalidArgument as error:
        _fail(name, str(error))
    if function is None:
        _fail(
            name,
            f"{shorten(segment)} is neither a hash of {among.lengths} lowercase hex digits nor "
            "the name of a function",
        )
    return function


def _unknown_compressor(compressor: str) -> str:
    served = ", ".join(sorted(COMPRESSORS)) or "none; read and write under 'blobs' instead"
    return f"compressor {shorten(compressor)} is not served; expected one of: {served}"


def _fail(name: str, why: str) -> NoReturn:
    raise InvalidArgument(f"resource name {shorten(name, _SHOWN)}: {why}")
