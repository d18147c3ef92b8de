"""Requests as bytes, made once and cheaply varied, so that the client costs little.

Rule: pure; messages to bytes and back, no sockets.  Whole messages come from the
generated classes.  What changes with each operation is spliced in as bytes: two
serialised pieces of one protobuf message, one after the other, are that message
with the fields of both (protobuf encoding guide, "Last One Wins").
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property

from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as re

HEAD = 16
"""Bytes at the start of a blob that tell it from its siblings; the rest they share."""

_READ_DATA_TAG = (10 << 3) | 2
_WRITE_DATA_TAG = (10 << 3) | 2


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


@dataclass(frozen=True, slots=True)
class Name:
    """A blob's digest as clients write it: lower-case hex of SHA-256, and a size in bytes."""

    hash: str
    size: int

    def message(self) -> re.Digest:
        return re.Digest(hash=self.hash, size_bytes=self.size)


def name_of(data: bytes) -> Name:
    return Name(hashlib.sha256(data, usedforsecurity=False).hexdigest(), len(data))


@dataclass(frozen=True)
class Family:
    """Blobs of one size that share all bytes but the first `HEAD` (or fewer, of small ones)."""

    size: int
    body: bytes

    @classmethod
    def random(cls, size: int) -> Family:
        return cls(size, os.urandom(size))

    @property
    def head_length(self) -> int:
        return min(HEAD, self.size)

    @cached_property
    def tail(self) -> bytes:
        return self.body[self.head_length :]

    def head(self) -> bytes:
        return os.urandom(self.head_length)

    def name(self, head: bytes) -> Name:
        hasher = hashlib.sha256(head, usedforsecurity=False)
        hasher.update(self.tail)
        return Name(hasher.hexdigest(), self.size)

    def blob(self, head: bytes) -> bytes:
        return head + self.tail


def prefix(instance: str) -> str:
    return f"{instance}/" if instance else ""


def read_request(instance: str, name: Name) -> bytes:
    return bs.ReadRequest(
        resource_name=f"{prefix(instance)}blobs/{name.hash}/{name.size}"
    ).SerializeToString()


def data_length(message: bytes) -> int:
    """Bytes of data in a serialised ReadResponse, without copying them where it holds nothing
    else, as any server's does."""
    if not message:
        return 0
    if message[0] == _READ_DATA_TAG:
        length = shift = 0
        place = 1
        while True:
            byte = message[place]
            place += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if place + length == len(message):
            return length
    return len(bs.ReadResponse.FromString(message).data)


class Writes:
    """The messages of Writes of one family's blobs, `message_bytes` of data in each.

    All but the first message are the same for every blob: they are made once.
    """

    def __init__(self, family: Family, message_bytes: int, instance: str) -> None:
        self._prefix = f"{prefix(instance)}uploads/"
        first_length = min(message_bytes, family.size)
        self._first_tail = family.body[family.head_length : first_length]
        self._data_opening = bytes((_WRITE_DATA_TAG,)) + varint(first_length)
        self._flags = bs.WriteRequest(finish_write=first_length == family.size).SerializeToString()
        self.rest = [
            bs.WriteRequest(
                write_offset=offset,
                data=family.body[offset : offset + message_bytes],
                finish_write=offset + message_bytes >= family.size,
            ).SerializeToString()
            for offset in range(first_length, family.size, message_bytes)
        ]
        self.response = bs.WriteResponse(committed_size=family.size).SerializeToString()
        """What a server answers once the blob is stored."""

    def first(self, upload: str, name: Name, head: bytes) -> bytes:
        """The first message of the upload called `upload` (unique to it: a UUID's text)."""
        resource = f"{self._prefix}{upload}/blobs/{name.hash}/{name.size}".encode()
        return b"".join(
            (field(1, resource), self._flags, self._data_opening, head, self._first_tail)
        )


class BatchUpdates:
    """Serialised BatchUpdateBlobsRequests of one family's blobs."""

    def __init__(self, family: Family, instance: str) -> None:
        self._opening = re.BatchUpdateBlobsRequest(instance_name=instance).SerializeToString()
        mark = "0" * 64
        digest = re.Digest(hash=mark, size_bytes=family.size)
        entry = re.BatchUpdateBlobsRequest.Request(digest=digest, data=family.body)
        whole = field(2, entry.SerializeToString())
        cut = whole.index(mark.encode())
        data_at = len(whole) - family.size
        self._before_hash = whole[:cut]
        self._before_data = whole[cut + len(mark) : data_at]
        self._tail = family.tail

    def request(self, blobs: list[tuple[bytes, bytes]]) -> bytes:
        """Of (head, hex hash) pairs."""
        parts = [self._opening]
        for head, hex_hash in blobs:
            parts += (self._before_hash, hex_hash, self._before_data, head, self._tail)
        return b"".join(parts)


def find_request(instance: str, names: list[Name]) -> bytes:
    return re.FindMissingBlobsRequest(
        instance_name=instance, blob_digests=[name.message() for name in names]
    ).SerializeToString()


def batch_read_request(instance: str, names: list[Name]) -> bytes:
    return re.BatchReadBlobsRequest(
        instance_name=instance, digests=[name.message() for name in names]
    ).SerializeToString()


def action_result(outputs: list[Name], salt: int) -> re.ActionResult:
    """A result the size of a compile action's: one path for each output."""
    return re.ActionResult(
        output_files=[
            re.OutputFile(
                path=f"bazel-out/k8-opt/bin/library/objects/part_{salt:08d}_{number}.pic.o",
                digest=name.message(),
            )
            for number, name in enumerate(outputs)
        ]
    )


def get_action_request(instance: str, action: Name) -> bytes:
    return re.GetActionResultRequest(
        instance_name=instance, action_digest=action.message()
    ).SerializeToString()


def update_action_request(instance: str, action: Name, result: re.ActionResult) -> bytes:
    return re.UpdateActionResultRequest(
        instance_name=instance, action_digest=action.message(), action_result=result
    ).SerializeToString()
