"""Hostile calls, made up from a number: the same seed and number give the same call, always.

Rule: pure.  A call begins as a right one more often than not, because noise alone dies at the
first check: messages are random but well formed, names mostly of the right shape, digests
mostly of blobs that are there.  Then some of it is damaged, at the level of fields, names or
bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from blake3 import blake3
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from cas.pb import asset_pb2 as ra
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as re

REQUEST_METADATA = "build.bazel.remote.execution.v2.requestmetadata-bin"

Kind = Literal["unary", "responses", "requests"]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC method as a client sees it."""

    path: str
    """As on the wire: ``/package.Service/Method``."""
    request: type[Message]
    kind: Kind = "unary"


_CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage"
_ASSET = "/build.bazel.remote.asset.v1"
_AC = "/build.bazel.remote.execution.v2.ActionCache"

METHODS = (
    Method("/google.bytestream.ByteStream/Read", bs.ReadRequest, "responses"),
    Method("/google.bytestream.ByteStream/Write", bs.WriteRequest, "requests"),
    Method("/google.bytestream.ByteStream/QueryWriteStatus", bs.QueryWriteStatusRequest),
    Method(f"{_CAS}/FindMissingBlobs", re.FindMissingBlobsRequest),
    Method(f"{_CAS}/BatchUpdateBlobs", re.BatchUpdateBlobsRequest),
    Method(f"{_CAS}/BatchReadBlobs", re.BatchReadBlobsRequest),
    Method(f"{_CAS}/GetTree", re.GetTreeRequest, "responses"),
    Method(f"{_CAS}/SplitBlob", re.SplitBlobRequest),
    Method(f"{_CAS}/SpliceBlob", re.SpliceBlobRequest),
    Method(f"{_AC}/GetActionResult", re.GetActionResultRequest),
    Method(f"{_AC}/UpdateActionResult", re.UpdateActionResultRequest),
    Method(
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
        re.GetCapabilitiesRequest,
    ),
    Method(f"{_ASSET}.Fetch/FetchBlob", ra.FetchBlobRequest),
    Method(f"{_ASSET}.Fetch/FetchDirectory", ra.FetchDirectoryRequest),
    Method(f"{_ASSET}.Push/PushBlob", ra.PushBlobRequest),
    Method(f"{_ASSET}.Push/PushDirectory", ra.PushDirectoryRequest),
    Method("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest),
)
_WRITE = METHODS[1]
_SPLICE = next(method for method in METHODS if method.request is re.SpliceBlobRequest)


@dataclass(frozen=True, slots=True)
class Case:
    """One call."""

    method: Method
    messages: Sequence[bytes]
    """One, but for a stream of requests."""
    metadata: Sequence[tuple[str, str | bytes]] = ()
    cancel: float | None = None
    """Seconds after which the client gives the call up; None: it waits for the answer."""


def case(seed: int, number: int) -> Case:
    """The call with this number."""
    rng = random.Random(f"{seed}/{number}")
    # Streams of requests keep the most state, and so have the most to get wrong.
    method = _WRITE if rng.random() < 0.25 else rng.choice(METHODS)
    if method is _WRITE:
        messages = _write(rng)
    elif method is _SPLICE and rng.random() < 0.8:
        messages = [_splice(rng)]
    else:
        messages = [_message(rng, method.request)]
    if rng.random() < 0.4:
        messages = [_mutated(rng, raw) if rng.random() < 0.6 else raw for raw in messages]
    cancel = rng.choice((0.0, 0.001, 0.01)) if rng.random() < 0.05 else None
    return Case(method, messages, _metadata(rng), cancel)


def blob(number: int) -> bytes:
    """A blob that calls may name; those of `COMMON` numbers are there from the beginning."""
    size = (0, 1, 40, 1000, 20_000, 300_000)[number % 6]
    return random.Random(f"blob {number}").randbytes(size) if size else b""


COMMON = range(24)


def write_requests(name: str, data: bytes, step: int) -> list[bs.WriteRequest]:
    """The messages of a right Write, of `step` bytes each."""
    starts = range(0, max(1, len(data)), step)
    out = [bs.WriteRequest(write_offset=at, data=data[at : at + step]) for at in starts]
    out[0].resource_name = name
    out[-1].finish_write = True
    return out


# --- messages ----------------------------------------------------------------------------


def _write(rng: random.Random) -> list[bytes]:
    data = blob(rng.randrange(200))
    name = _upload_name(rng, data) if rng.random() < 0.8 else _name(rng)
    requests = write_requests(name, data, rng.choice((1 + len(data), 700, 16_384, 65_536)))[:64]
    change = rng.random()
    if change < 0.5:
        return [request.SerializeToString() for request in requests]
    at = rng.randrange(len(requests))
    if change < 0.6:
        del requests[at:]
    elif change < 0.7:
        requests.insert(at, requests[rng.randrange(len(requests))])
    elif change < 0.8:
        rng.shuffle(requests)
    elif change < 0.9:
        requests[at].write_offset += rng.choice((-1, 1, 1 << 40, -(1 << 62)))
    else:
        requests[at].resource_name = _name(rng)
    return [request.SerializeToString() for request in requests]


def _splice(rng: random.Random) -> bytes:
    """Chunks that are there, mostly, and make up the blob, mostly."""
    chunks = [blob(rng.choice(COMMON)) for _ in range(rng.randrange(6))]
    chunks = [data for data in chunks if len(data) < 100_000]
    whole = b"".join(chunks)
    match rng.randrange(8):
        case 0:
            rng.shuffle(chunks)
        case 1:
            chunks.append(blob(rng.randrange(200)))
        case 2:
            chunks = chunks[1:]
        case 3:
            # Not there, and of the right size.
            chunks = [data[::-1] for data in chunks]
        case _:
            pass
    request = re.SpliceBlobRequest(
        blob_digest=_digest(whole),
        chunk_digests=[_digest(data) for data in chunks],
        chunking_function=rng.choice((0, 1, 2, 9)),  # type: ignore[arg-type]
    )
    if rng.random() < 0.1 and chunks:
        _fill_digest(rng, rng.choice(request.chunk_digests))
    return request.SerializeToString()


def _digest(data: bytes) -> re.Digest:
    return re.Digest(hash=sha256(data).hexdigest(), size_bytes=len(data))


def _message(rng: random.Random, kind: type[Message]) -> bytes:
    message = kind()
    _fill(rng, message, depth=0)
    return message.SerializeToString()


def _fill(rng: random.Random, message: Message, depth: int) -> None:
    descriptor = message.DESCRIPTOR
    if descriptor.name == "Digest":
        _fill_digest(rng, message)
        return
    for field in descriptor.fields:
        if rng.random() < 0.3:
            continue
        if field.is_repeated:
            many = 300 if rng.random() < 0.01 else rng.randrange(4)
            repeated = getattr(message, field.name)
            for _ in range(many if depth < 4 else 0):
                if field.message_type:
                    _fill(rng, repeated.add(), depth + 1)
                else:
                    repeated.append(_value(rng, field))
        elif field.message_type:
            if depth < 4:
                getattr(message, field.name).SetInParent()
                _fill(rng, getattr(message, field.name), depth + 1)
        else:
            setattr(message, field.name, _value(rng, field))


def _fill_digest(rng: random.Random, message: Any) -> None:
    if rng.random() < 0.85:
        data = blob(rng.randrange(200))
        message.hash, message.size_bytes = sha256(data).hexdigest(), len(data)
    if rng.random() < 0.15:
        message.hash = _hash_text(rng, message.hash)
    if rng.random() < 0.15:
        message.size_bytes = _number(rng, 64)


def _value(rng: random.Random, field: Any) -> Any:
    # What is wrong with these ends a call before anything else of it is looked at.
    if field.name == "resource_name":
        return _name(rng)
    if field.name == "instance_name" and rng.random() < 0.8:
        return rng.choice(("", "main", "a/b"))
    if field.name == "digest_function" and rng.random() < 0.8:
        return rng.choice(
            (re.DigestFunction.UNKNOWN, re.DigestFunction.SHA256, re.DigestFunction.BLAKE3)
        )
    if field.name == "compressor" and rng.random() < 0.8:
        return re.Compressor.IDENTITY
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return _text(rng)
        case FieldDescriptor.TYPE_BYTES:
            return blob(rng.randrange(200)) if rng.random() < 0.7 else rng.randbytes(50)
        case FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            return rng.choice((0.0, -1.5, 1e300, float("nan"), float("inf")))
        case FieldDescriptor.TYPE_INT64 | FieldDescriptor.TYPE_SINT64:
            return _number(rng, 64)
        case FieldDescriptor.TYPE_UINT64:
            return abs(_number(rng, 64))
        case FieldDescriptor.TYPE_UINT32:
            return abs(_number(rng, 32))
        case _:
            # int32 and enums, which are open in proto3.
            return _number(rng, 32) if rng.random() < 0.3 else rng.randrange(10)


def _number(rng: random.Random, bits: int) -> int:
    top = 1 << (bits - 1)
    return rng.choice((0, 1, -1, rng.randrange(70_000), top - 1, -top, rng.randrange(-top, top)))


def _text(rng: random.Random) -> str:
    return rng.choice(_TEXTS)(rng)


_TEXTS: Sequence[Callable[[random.Random], str]] = (
    lambda rng: "",
    lambda rng: "main",
    lambda rng: "a/b/c",
    lambda rng: "..",
    lambda rng: "blobs",
    lambda rng: "\0",
    lambda rng: "é\u202e𝔘\ufffe",
    lambda rng: "x" * 10_000,
    lambda rng: str(_number(rng, 64)),
    lambda rng: sha256(blob(rng.randrange(200))).hexdigest(),
)


# --- names -------------------------------------------------------------------------------


def _upload_name(rng: random.Random, data: bytes) -> str:
    uuid = rng.choice(("u1", "u2", "00000000-0000-4000-8000-000000000000"))
    instance = rng.choice(("", "", "main/", "a/b/"))
    return f"{instance}uploads/{uuid}/blobs/{sha256(data).hexdigest()}/{len(data)}"


def _name(rng: random.Random) -> str:
    data = blob(rng.randrange(200))
    parts = rng.choice(
        (
            ["blobs", sha256(data).hexdigest(), str(len(data))],
            ["main", "blobs", sha256(data).hexdigest(), str(len(data))],
            ["blobs", "blake3", sha256(data).hexdigest(), str(len(data))],
            ["blobs", "blake3", blake3(data).hexdigest(), str(len(data))],
            ["compressed-blobs", "zstd", sha256(data).hexdigest(), str(len(data))],
            ["uploads", "u1", "compressed-blobs", "zstd", sha256(data).hexdigest(), "9"],
            _upload_name(rng, data).split("/"),
        )
    )
    for _ in range(rng.choice((0, 0, 0, 1, 1, 3))):
        at = rng.randrange(len(parts))
        match rng.randrange(5):
            case 0:
                parts[at] = _text(rng)
            case 1:
                parts.insert(at, _text(rng))
            case 2 if len(parts) > 1:
                del parts[at]
            case 3:
                parts[at] = _hash_text(rng, parts[at])
            case _:
                parts[at] = str(_number(rng, 64))
    return "/".join(parts)


def _hash_text(rng: random.Random, text: str) -> str:
    return rng.choice(
        (text.upper(), text[:-1], text + "0", "g" * 64, "0" * 64, "0" * 40, "0" * 128, "", "../..")
    )


# --- damage ------------------------------------------------------------------------------


def _mutated(rng: random.Random, raw: bytes) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(200))
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at - 1] ^= 1 << rng.randrange(8)
            case 1:
                out[at:at] = rng.randbytes(rng.randrange(1, 5))
            case 2:
                del out[at : at + rng.randrange(1, 20)]
            case 3:
                del out[at:]
            case 4:
                # Numbers and lengths that no message has.
                out[at:at] = b"\xff" * rng.randrange(1, 12) + b"\x01"
            case _:
                piece = out[at : at + rng.randrange(1, 200)]
                out[at:at] = piece
    return bytes(out)


def _metadata(rng: random.Random) -> list[tuple[str, str | bytes]]:
    if rng.random() < 0.7:
        return []
    said = re.RequestMetadata()
    _fill(rng, said, depth=0)
    raw = said.SerializeToString()
    out: list[tuple[str, str | bytes]] = []
    if rng.random() < 0.7:
        out.append(
            (REQUEST_METADATA, _mutated(rng, raw)[:4000] if rng.random() < 0.4 else raw[:4000])
        )
    if rng.random() < 0.3:
        out.append(("authorization", rng.choice(("Basic", "Basic !!", "Bearer " + "x" * 2000))))
    if rng.random() < 0.3:
        out.append((f"x-{rng.randrange(99)}-bin", rng.randbytes(rng.randrange(300))))
    if rng.random() < 0.02:
        out.append(("x-large", "x" * 60_000))
    return out
