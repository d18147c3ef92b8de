"""Hot messages, to and from bytes.

Rule: pure; bytes in, plain values out, and back.  Every reader agrees with protobuf's parser
on every input: what it raises InvalidArgument for, protobuf refuses or a digest in it is
malformed.  By hand goes only what was measured to be faster so: where protobuf would copy
blobs (once into its arena, once into Python), or would make an object per digest.  Anything
out of the ordinary (unknown, repeated or reordered fields, varints longer than needed) is
left to protobuf.

A digest function is returned as the number that came, 0 where the client left it out;
`Functions.of_number` turns it into one that is enabled.  Where a request's digests are read here
already, they are of functions `among` those that are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from struct import Struct
from typing import Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from cas.api.columns import AT_ONCE, HEADER, UnusualError, keys_of_list, keys_of_run
from cas.digest import KNOWN, Functions
from cas.digest import parse as parse_digest
from cas.errors import InvalidArgument
from cas.pb import bytestream_pb2, remote_execution_pb2, views_pb2

M = TypeVar("M", bound=Message)

_BY_HAND: Final = 8 * 1024
"""Bytes of a message with data from which not copying it is worth reading it in Python."""


# ---- ByteStream


def read_request(data: bytes) -> tuple[str, int, int]:
    """A ReadRequest's (resource_name, read_offset, read_limit)."""
    # Most read a whole blob by a name of less than 128 bytes: one field.
    size = len(data) - 2
    if 0 < size < 0x80 and data[0] == 0x0A and data[1] == size:
        try:
            return data[2:].decode(), 0, 0
        except UnicodeDecodeError:
            pass
    request = _parse(bytestream_pb2.ReadRequest, data)
    return request.resource_name, request.read_offset, request.read_limit


def read_response(data: bytes | memoryview) -> bytes:
    """A ReadResponse that carries `data`."""
    return b"".join((b"\x52", _varint(len(data)), data)) if data else b""


class ReadResponseBuffer:
    """A ReadResponse whose bytes are read straight into their place: put them into `data`,
    then take the `message`, once."""

    __slots__ = ("_message", "data")

    def __init__(self, size: int) -> None:
        head = b"\x52" + _varint(size)
        self._message = BytesIO()
        # Room for all of it at once, to which `getvalue` later hands over without a copy.
        self._message.seek(len(head) + size - 1)
        self._message.write(b"\0")
        view = self._message.getbuffer()
        view[: len(head)] = head
        self.data = view[len(head) :]

    def message(self, count: int) -> bytes:
        """The message that carries the first `count` bytes of `data`."""
        if count < len(self.data):
            return read_response(self.data[:count])
        self.data.release()
        return self._message.getvalue()


def write_request(data: bytes) -> tuple[str, int, bool, memoryview]:
    """A WriteRequest's (resource_name, write_offset, finish_write, data).

    The data is a view of the message, not a copy, where the message is large.
    """
    if len(data) >= _BY_HAND:
        try:
            return _write_request(data)
        except (UnusualError, UnicodeDecodeError):
            pass
    request = _parse(bytestream_pb2.WriteRequest, data)
    return (
        request.resource_name,
        request.write_offset,
        request.finish_write,
        memoryview(request.data),
    )


def _write_request(data: bytes) -> tuple[str, int, bool, memoryview]:
    name, offset, finish, at = "", 0, False, 0
    try:
        if data[0] == 0x0A:
            size, start = _read_varint(data, 1)
            at = start + size
            # Bytes beyond the end would be cut off silently.
            if at > len(data):
                raise UnusualError
            name = data[start:at].decode()
        if data[at] == 0x10:
            offset, at = _read_varint(data, at + 1)
        if data[at] == 0x18 and data[at + 1] < 2:
            finish = data[at + 1] == 1
            at += 2
        if data[at] == 0x52:
            size, start = _read_varint(data, at + 1)
            if start + size == len(data):
                return name, offset, finish, memoryview(data)[start:]
    except IndexError:
        pass
    raise UnusualError


def write_response(committed_size: int) -> bytes:
    """A WriteResponse; REAPI uses -1 for a compressed upload that was not needed."""
    return b"\x08" + _varint(committed_size) if committed_size else b""


def query_write_status_request(data: bytes) -> str:
    """A QueryWriteStatusRequest's resource_name."""
    return _parse(bytestream_pb2.QueryWriteStatusRequest, data).resource_name


def query_write_status_response(committed_size: int, complete: bool) -> bytes:
    """A QueryWriteStatusResponse."""
    return write_response(committed_size) + (b"\x10\x01" if complete else b"")


# ---- Content addressable storage


class FindMissing(NamedTuple):
    """A FindMissingBlobsRequest whose digests are all well formed.

    `keys` (`Digest.key`) are in the order of the request, duplicates included.  `encoded` is
    for `find_missing_response`: the digests' messages as they came, or all of them as a run
    of fields of equal length.
    """

    instance_name: str
    digest_function: int
    keys: list[bytes]
    encoded: list[bytes] | bytes


def find_missing_request(data: bytes, among: Functions = KNOWN) -> FindMissing:
    """Reads a FindMissingBlobsRequest.

    Raises InvalidArgument naming the value where one digest is malformed, or where the
    digests are of different functions (REAPI: all of a request's must agree).
    """
    try:
        return _find_missing_run(data, among)
    except (UnusualError, UnicodeDecodeError):
        pass
    view = _parse(views_pb2.FindMissing, data, remote_execution_pb2.FindMissingBlobsRequest)
    encoded = list(view.blob_digests)
    keys = None
    if len(encoded) >= AT_ONCE:
        with suppress(UnusualError):
            keys = keys_of_list(encoded, view.digest_function, among)
    if keys is None:
        request = _parse(remote_execution_pb2.FindMissingBlobsRequest, data)
        keys = _keys_singly(request.blob_digests, request.digest_function, among)
    return FindMissing(view.instance_name, view.digest_function, keys, encoded)


def _find_missing_run(data: bytes, among: Functions) -> FindMissing:
    """Reads one whose digests are equally long, as they are where the sizes are alike."""
    end, start, number = len(data), 0, 0
    # Room for the fields that are looked at before their number is known.
    if end < 2 * AT_ONCE:
        raise UnusualError
    instance = ""
    if data[0] == 0x0A:
        start = HEADER + data[1]
        if data[1] > 0x7F or start + HEADER > end:
            raise UnusualError
        instance = data[HEADER:start].decode()
    count, rest = divmod(end - start, HEADER + data[start + 1])
    if rest:
        if rest != 2 or data[-2] != 0x18 or data[-1] > 0x7F:
            raise UnusualError
        number = data[-1]
    if count < AT_ONCE or data[start] != 0x12:
        raise UnusualError
    run = data[start : end - rest]
    return FindMissing(instance, number, keys_of_run(run, number, among), run)


def find_missing_response(request: FindMissing, missing: Sequence[int]) -> bytes:
    """A FindMissingBlobsResponse that names the request's digests at these positions, ascending.

    Both messages hold their digests in field 2, so they are copied.
    """
    encoded, count = request.encoded, len(request.keys)
    if isinstance(encoded, list):
        return b"".join([part for at in missing for part in _field(b"\x12", encoded[at])])
    if len(missing) == count:
        return encoded
    width = len(encoded) // count
    if len(missing) * 4 < count:
        return b"".join([encoded[at * width : (at + 1) * width] for at in missing])
    fields = Struct(f"{width}s" * count).unpack(encoded)
    return b"".join([fields[at] for at in missing])


class BatchUpdate(NamedTuple):
    """A BatchUpdateBlobsRequest: (encoded digest, data, compressor number) per blob, as they
    came, and what each digest is: its key (`Digest.key`), or the error that its blob gets.

    The data are views of the request where it is large, else of copies.
    """

    instance_name: str
    digest_function: int
    blobs: Sequence[tuple[bytes, memoryview, int]]
    keys: Sequence[bytes | InvalidArgument]


def batch_update_request(data: bytes, among: Functions = KNOWN) -> BatchUpdate:
    """Reads a BatchUpdateBlobsRequest; raises InvalidArgument where the whole is malformed."""
    if len(data) >= _BY_HAND:
        try:
            return _batch_update(data, among)
        except (UnusualError, UnicodeDecodeError):
            pass
    request = _parse(remote_execution_pb2.BatchUpdateBlobsRequest, data)
    blobs = [
        (blob.digest.SerializeToString(), memoryview(blob.data), blob.compressor)
        for blob in request.requests
    ]
    keys = _keys_or_errors([blob[0] for blob in blobs], request.digest_function, among)
    return BatchUpdate(request.instance_name, request.digest_function, blobs, keys)


def _batch_update(data: bytes, among: Functions) -> BatchUpdate:
    instance, number, at, end = "", 0, 0, len(data)
    view = memoryview(data)
    blobs = []
    try:
        if data[0] == 0x0A:
            size, start = _read_varint(data, 1)
            at = start + size
            if at > end:
                raise UnusualError
            instance = data[start:at].decode()
        while at < end and data[at] == 0x12:
            size, at = _read_varint(data, at + 1)
            stop = at + size
            # The digest: in less than 128 bytes.
            digest_at = at + 2
            data_at = digest_at + data[at + 1]
            if data[at] != 0x0A or data_at - at > 0x7F or data_at > stop:
                raise UnusualError
            digest = data[digest_at:data_at]
            data_end = data_at
            if data_at < stop and data[data_at] == 0x12:
                size, data_at = _read_varint(data, data_at + 1)
                data_end = data_at + size
            compressor = 0
            if data_end != stop:
                compressor = data[stop - 1]
                if data_end + 2 != stop or data[data_end] != 0x18 or compressor > 0x7F:
                    raise UnusualError
            blobs.append((digest, view[data_at:data_end], compressor))
            at = stop
        if at + 2 == end and data[at] == 0x28 and data[at + 1] < 0x80:
            number = data[at + 1]
            at = end
    except IndexError:
        raise UnusualError from None
    if at != end:
        raise UnusualError
    keys = _canonical_keys([blob[0] for blob in blobs], number, among)
    return BatchUpdate(instance, number, blobs, keys)


def batch_update_response(results: Iterable[tuple[bytes, int, str]]) -> bytes:
    """A BatchUpdateBlobsResponse from (encoded digest, status code number, message) per blob."""
    parts: list[bytes] = []
    for encoded, code, message in results:
        digest = _field(b"\x0a", encoded)
        parts += _field(b"\x0a", b"".join((*digest, *_field(b"\x12", _status(code, message)))))
    return b"".join(parts)


class BatchRead(NamedTuple):
    """A BatchReadBlobsRequest.

    `encoded` are its Digest messages as they came, `keys` what each is: its key
    (`Digest.key`), or the error that its blob gets.  `compressors` are the numbers that the
    client takes besides identity (0).
    """

    instance_name: str
    digest_function: int
    encoded: list[bytes]
    keys: Sequence[bytes | InvalidArgument]
    compressors: frozenset[int]


def batch_read_request(data: bytes, among: Functions = KNOWN) -> BatchRead:
    """Reads a BatchReadBlobsRequest; raises InvalidArgument where the whole is malformed."""
    view = _parse(views_pb2.BatchRead, data, remote_execution_pb2.BatchReadBlobsRequest)
    encoded = list(view.digests)
    try:
        keys = _canonical_keys(encoded, view.digest_function, among)
    except UnusualError:
        request = _parse(remote_execution_pb2.BatchReadBlobsRequest, data)
        encoded = [digest.SerializeToString() for digest in request.digests]
        keys = _keys_or_errors(encoded, request.digest_function, among)
    return BatchRead(
        view.instance_name,
        view.digest_function,
        encoded,
        keys,
        frozenset(view.acceptable_compressors),
    )


def batch_read_response(
    results: Iterable[tuple[bytes, bytes | memoryview, int, str, int]],
) -> bytes:
    """A BatchReadBlobsResponse from (encoded digest, data, status code number, message,
    number of the data's compressor) per blob."""
    parts: list[bytes | memoryview] = []
    for digest, data, code, message, compressor in results:
        head = b"".join((b"\x0a", _varint(len(digest)), digest, b"\x12", _varint(len(data))))
        # The status of a blob that is there: all defaults.
        rest = b"\x1a\x00"
        if code or message:
            rest = b"".join(_field(b"\x1a", _status(code, message)))
        if compressor:
            rest += b"\x20" + _varint(compressor)
        parts += (b"\x0a", _varint(len(head) + len(data) + len(rest)), head, data, rest)
    return b"".join(parts)


# ---- Action cache


class GetActionResult(NamedTuple):
    """A GetActionResultRequest.

    `hash` and `size` are the action digest's, as they came.  `hints` is the whole message
    where it asks for anything inline, else None.
    """

    instance_name: str
    hash: str
    size: int
    digest_function: int
    hints: remote_execution_pb2.GetActionResultRequest | None


def get_action_result_request(data: bytes) -> GetActionResult:
    """Reads a GetActionResultRequest."""
    request = _parse(remote_execution_pb2.GetActionResultRequest, data)
    digest = request.action_digest
    hinted = request.inline_stdout or request.inline_stderr or request.inline_output_files
    return GetActionResult(
        request.instance_name,
        digest.hash,
        digest.size_bytes,
        request.digest_function,
        request if hinted else None,
    )


class UpdateActionResult(NamedTuple):
    """An UpdateActionResultRequest.

    `hash` and `size` are the action digest's, as they came.  `action_result` is the result's
    bytes exactly as they were sent, unknown fields and field order included; `parsed` is what
    they say.
    """

    instance_name: str
    hash: str
    size: int
    digest_function: int
    action_result: bytes
    parsed: remote_execution_pb2.ActionResult


def update_action_result_request(data: bytes) -> UpdateActionResult:
    """Reads an UpdateActionResultRequest.

    Where a client repeats the field action_result, protobuf merges the values; the result's
    bytes are then those of the merged message.
    """
    request = _parse(remote_execution_pb2.UpdateActionResultRequest, data)
    result = _only_field(data, 0x1A)
    if result is None:
        result = request.action_result.SerializeToString()
    digest = request.action_digest
    return UpdateActionResult(
        request.instance_name,
        digest.hash,
        digest.size_bytes,
        request.digest_function,
        result,
        request.action_result,
    )


# ---- Digests


def _keys_singly(
    digests: Iterable[remote_execution_pb2.Digest], number: int, among: Functions
) -> list[bytes]:
    function = among.of_number(number)
    keys = []
    for message in digests:
        digest = parse_digest(message.hash, message.size_bytes, function, among)
        function = function or digest.function
        keys.append(digest.key)
    return keys


def _canonical_keys(
    encoded: list[bytes], number: int, among: Functions
) -> Sequence[bytes | InvalidArgument]:
    """The keys of Digest messages; raises UnusualError where one is not plainly canonical."""
    among.of_number(number)
    if len(encoded) < AT_ONCE:
        return _keys_or_errors(encoded, number, among, canonical=True)
    return keys_of_list(encoded, number, among)


def _keys_or_errors(
    encoded: list[bytes], number: int, among: Functions, *, canonical: bool = False
) -> list[bytes | InvalidArgument]:
    """For each Digest message its key, or what is wrong with it.

    Raises UnusualError where one must be `canonical` and is not.
    """
    function = among.of_number(number)
    keys: list[bytes | InvalidArgument] = []
    for message in encoded:
        digest = _parse(remote_execution_pb2.Digest, message)
        if canonical and digest.SerializeToString() != message:
            raise UnusualError
        try:
            keys.append(parse_digest(digest.hash, digest.size_bytes, function, among).key)
        except InvalidArgument as error:
            keys.append(error)
    return keys


# ---- Fields


def _parse(form: type[M], data: bytes, message: type[Message] | None = None) -> M:
    """Parses what is a `message` as a `form` of it."""
    try:
        return form.FromString(data)
    except DecodeError as error:
        name = (message or form).DESCRIPTOR.full_name
        raise InvalidArgument(f"{len(data)} bytes are no well-formed {name}: {error}") from None


def _status(code: int, message: str) -> bytes:
    """A google.rpc.Status."""
    if not code and not message:
        return b""
    head = b"\x08" + _varint(code) if code else b""
    return b"".join(
        (head, *(_field(b"\x12", message.encode("utf-8", "replace")) if message else ()))
    )


def _field(tag: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    """A length-delimited field, in parts."""
    return tag, _varint(len(data)), data


def _varint(value: int) -> bytes:
    """`value`, 64 bits in two's complement, as protobuf writes it."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_ONE_BYTE: Final = tuple(bytes((value,)) for value in range(0x80))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at `at` and where it ends; of up to 9 bytes, so never negative.

    Raises IndexError where the data ends before it does.
    """
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while shift < 63:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    raise UnusualError


def _only_field(data: bytes, wanted: int) -> bytes | None:
    """The value of the only field with the one-byte tag `wanted` of a well-formed message;
    None where there is not exactly one, or some field is neither a varint nor delimited."""
    found, at, end = None, 0, len(data)
    try:
        while at < end:
            tag, at = _read_varint(data, at)
            if tag & 7 not in {0, 2}:
                return None
            size, at = _read_varint(data, at)
            if tag & 7 == 2:
                if tag == wanted:
                    if found is not None:
                        return None
                    found = data[at : at + size]
                at += size
    except (IndexError, UnusualError):
        return None
    return found
