"""Hot messages of ByteStream and of batches, to and from bytes.

Rule: pure.  By hand goes what carries blobs: protobuf would copy every byte twice more.
"""

from __future__ import annotations

from collections.abc import Iterable

from cas.client.wire import Parcel
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb


def write_head(name: str) -> bytes:
    """The start of the first WriteRequest: its resource_name."""
    return bs.WriteRequest(resource_name=name).SerializeToString()


def write_request(head: bytes, offset: int, data: bytes, finish: bool) -> bytes:
    """A WriteRequest: fields 1 (in `head`), 2 write_offset, 3 finish_write, 10 data."""
    rest = bs.WriteRequest(write_offset=offset, finish_write=finish).SerializeToString()
    if not data:
        return head + rest
    return b"".join((head, rest, b"\x52", _varint(len(data)), data))


def read_data(raw: bytes) -> bytes | memoryview:
    """The data of a ReadResponse (field 10, mostly the only one)."""
    if raw[:1] == b"\x52":
        size = shift = 0
        at = 1
        while True:
            byte = raw[at]
            size |= (byte & 0x7F) << shift
            at += 1
            shift += 7
            if byte < 0x80 or shift > 63 or at >= len(raw):
                break
        if byte < 0x80 and at + size == len(raw):
            return memoryview(raw)[at:]
    return bs.ReadResponse.FromString(raw).data


def batch_update_request(instance: str, function: int, parcels: Iterable[Parcel]) -> bytes:
    """A BatchUpdateBlobsRequest: fields 1 instance_name, 2 requests (1 digest, 2 data,
    3 compressor), 5 digest_function, a number of REAPI's."""
    name = instance.encode()
    parts = [b"\x0a", _varint(len(name)), name] if name else []
    for digest, data, zstd in parcels:
        hashed = digest.hex.encode()
        named = b"\x0a%b%b\x10%b" % (_varint(len(hashed)), hashed, _varint(digest.size))
        start = b"\x0a%b%b\x12%b" % (_varint(len(named)), named, _varint(len(data)))
        end = _ZSTD if zstd else b""
        parts += (b"\x12", _varint(len(start) + len(data) + len(end)), start, data, end)
    if function:
        parts += (b"\x28", _varint(function))
    return b"".join(parts)


def update_action_request(head: pb.UpdateActionResultRequest, result: bytes) -> bytes:
    """An UpdateActionResultRequest: `head`, and field 3 action_result exactly as it is."""
    return b"".join((head.SerializeToString(), b"\x1a", _varint(len(result)), result))


_ZSTD = b"\x18" + bytes([pb.Compressor.ZSTD])


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
