"""Hand-read messages agree with protobuf on every input: valid, unusual, cut and hostile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import digest as digests
from cas.api import columns, wire
from cas.api.wire import FindMissing
from cas.digest import FUNCTIONS, KNOWN, MAX_SIZE
from cas.errors import InvalidArgument
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb

bounded = settings(derandomize=True, max_examples=200, deadline=None)

HASH = digests.of(b"hello").hex
LARGE = bytes(range(256)) * 64
"""More than what is read by protobuf."""

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
int64s = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300)
sizes = st.sampled_from([0, 1, 5, 127, 128, 255, 16_383, 16_384, 2**21, 2**35, MAX_SIZE]) | (
    st.integers(0, MAX_SIZE)
)
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
bad_hashes = st.sampled_from(["", "abc", HASH.upper(), HASH[:-1], HASH[:-1] + " ", "é" * 32])
enums = st.integers(0, 12) | st.sampled_from([-1, 127, 128, 2**31 - 1, -(2**31)])
datas = st.binary(max_size=100) | st.just(LARGE) | st.just(LARGE[: 8 * 1024])


@st.composite
def mutants(draw: st.DrawFn, messages: st.SearchStrategy[Message]) -> bytes:
    """Messages as they are written, then cut, spliced and overwritten a few times."""
    data = bytearray(draw(messages).SerializeToString())
    for _ in range(draw(st.integers(0, 3))):
        # Near the ends is where the fields' heads are.
        size = len(data)
        at = draw(st.integers(0, size) | st.integers(0, min(size, 160)))
        to = draw(st.integers(at, min(size, at + 80)))
        match draw(st.integers(0, 4)):
            case 0:
                del data[at:]
            case 1:
                del data[at:to]
            case 2:
                data[at:at] = data[at:to]
            case 3:
                data[at:at] = draw(st.binary(max_size=12))
            case 4 if at < size:
                data[at] = draw(st.integers(0, 255))
    return bytes(data)


def agree(ours: Callable[[bytes], Any], theirs: Callable[[bytes], Any], data: bytes) -> None:
    """Both give the same, or both refuse."""
    try:
        expected = theirs(data)
    except (DecodeError, InvalidArgument):
        with pytest.raises(InvalidArgument):
            ours(data)
    else:
        assert ours(data) == expected


# ---- ByteStream


def read_requests() -> st.SearchStrategy[Message]:
    return st.builds(
        bs.ReadRequest,
        resource_name=names,
        read_offset=st.just(0) | int64s,
        read_limit=st.just(0) | int64s,
    )


@bounded
@given(mutants(read_requests()) | st.binary(max_size=40))
def test_read_request(data: bytes) -> None:
    def theirs(data: bytes) -> tuple[str, int, int]:
        request = bs.ReadRequest.FromString(data)
        return request.resource_name, request.read_offset, request.read_limit

    agree(wire.read_request, theirs, data)


def write_requests() -> st.SearchStrategy[Message]:
    return st.builds(
        bs.WriteRequest,
        resource_name=st.just("") | names,
        write_offset=st.just(0) | int64s,
        finish_write=st.booleans(),
        data=datas,
    )


def their_write_request(data: bytes) -> tuple[str, int, bool, bytes]:
    request = bs.WriteRequest.FromString(data)
    return request.resource_name, request.write_offset, request.finish_write, request.data


@bounded
@given(mutants(write_requests()) | st.binary(max_size=40))
def test_write_request(data: bytes) -> None:
    agree(wire.write_request, their_write_request, data)


@pytest.mark.parametrize("cut", [*range(60), -2, -1])
def test_a_write_request_cut_anywhere_in_its_head(cut: int) -> None:
    whole = bs.WriteRequest(
        resource_name="blobs/é", write_offset=2**40, finish_write=True, data=LARGE
    ).SerializeToString()
    agree(wire.write_request, their_write_request, whole[:cut])
    # As long as before, so that it is read by hand.
    agree(wire.write_request, their_write_request, whole[:cut] + whole[-len(LARGE) :])


def test_a_large_write_request_is_not_copied() -> None:
    whole = bs.WriteRequest(write_offset=7, data=LARGE).SerializeToString()
    data = wire.write_request(whole)[3]
    assert data.obj is whole


@bounded
@given(st.binary(max_size=300) | st.just(LARGE))
def test_read_response(data: bytes) -> None:
    expected = bs.ReadResponse(data=data).SerializeToString()
    assert wire.read_response(data) == expected
    assert wire.read_response(memoryview(data)) == expected


@bounded
@given(st.binary(min_size=1, max_size=40_000), st.integers(0, 40_000))
def test_a_read_response_that_was_read_into(data: bytes, count: int) -> None:
    count = min(count, len(data))
    for filled in (count, len(data)):
        response = wire.ReadResponseBuffer(len(data))
        response.data[:] = data
        expected = bs.ReadResponse(data=data[:filled]).SerializeToString()
        assert response.message(filled) == expected


@bounded
@given(int64s, st.booleans())
def test_committed_sizes(size: int, complete: bool) -> None:
    assert wire.write_response(size) == bs.WriteResponse(committed_size=size).SerializeToString()
    status = bs.QueryWriteStatusResponse(committed_size=size, complete=complete)
    assert wire.query_write_status_response(size, complete) == status.SerializeToString()


@bounded
@given(mutants(st.builds(bs.QueryWriteStatusRequest, resource_name=names)) | st.binary(max_size=40))
def test_query_write_status_request(data: bytes) -> None:
    agree(
        wire.query_write_status_request,
        lambda data: bs.QueryWriteStatusRequest.FromString(data).resource_name,
        data,
    )


# ---- FindMissingBlobs


def find_missing_requests(
    *, most: int = 60, hash_hex: st.SearchStrategy[str] = hashes
) -> st.SearchStrategy[Message]:
    def requests(size: st.SearchStrategy[int]) -> st.SearchStrategy[Message]:
        return st.builds(
            pb.FindMissingBlobsRequest,
            instance_name=st.sampled_from(["", "main"]) | names,
            blob_digests=st.lists(
                st.builds(pb.Digest, hash=hash_hex, size_bytes=size), max_size=most
            ),
            digest_function=st.sampled_from([0, 0, 1, 1]) | enums,
        )

    # Of one size, of the same length, of all lengths.
    return sizes.flatmap(lambda size: requests(st.just(size))) | (
        requests(st.integers(128, 16_383)) | requests(sizes)
    )


def their_find_missing(data: bytes) -> tuple[str, int, list[bytes]]:
    request = pb.FindMissingBlobsRequest.FromString(data)
    function = KNOWN.of_number(request.digest_function)
    keys = [digests.parse(d.hash, d.size_bytes, function).key for d in request.blob_digests]
    return request.instance_name, request.digest_function, keys


def check_find_missing(data: bytes) -> FindMissing | None:
    found: list[FindMissing] = []

    def ours(data: bytes) -> tuple[str, int, list[bytes]]:
        found.append(wire.find_missing_request(data))
        return found[0][:3]

    agree(ours, their_find_missing, data)
    return found[0] if found else None


def check_find_missing_response(data: bytes, request: FindMissing, present: set[bytes]) -> None:
    asked = pb.FindMissingBlobsRequest.FromString(data).blob_digests
    missing = [at for at, key in enumerate(request.keys) if key not in present]
    answer = wire.find_missing_response(request, missing)
    assert list(pb.FindMissingBlobsResponse.FromString(answer).missing_blob_digests) == [
        digest for digest, key in zip(asked, request.keys, strict=True) if key not in present
    ]


@bounded
@given(find_missing_requests(), st.data())
def test_find_missing(message: Message, data: st.DataObject) -> None:
    raw = message.SerializeToString()
    request = check_find_missing(raw)
    if request is not None:
        if request.keys:
            present = data.draw(st.sets(st.sampled_from(request.keys)))
            check_find_missing_response(raw, request, present)
        check_find_missing_response(raw, request, set())
        check_find_missing_response(raw, request, set(request.keys))


@bounded
@given(mutants(find_missing_requests()) | st.binary(max_size=40))
def test_mutated_find_missing(data: bytes) -> None:
    check_find_missing(data)


@bounded
@given(find_missing_requests(hash_hex=hashes | bad_hashes, most=20))
def test_find_missing_with_malformed_hashes(message: Message) -> None:
    check_find_missing(message.SerializeToString())


def plain(sizes: list[int]) -> pb.FindMissingBlobsRequest:
    return pb.FindMissingBlobsRequest(
        instance_name="a",
        blob_digests=[
            pb.Digest(hash=digests.of(b"%d" % i).hex, size_bytes=size)
            for i, size in enumerate(sizes)
        ],
        digest_function=pb.DigestFunction.SHA256,
    )


LISTS = {
    "all of one length": [300] * 17,
    "of one byte": [7] * 17,
    "of four bytes": [2**22] * 17,
    "of nine bytes": [MAX_SIZE] * 17,
    "of all lengths": [2 ** (7 * (i % 9)) for i in range(17)],
    "empty ones too": [0, 1, 0, 300] * 5,
    "only empty ones": [0] * 17,
}


@pytest.mark.parametrize("sizes", LISTS.values(), ids=LISTS.keys())
def test_every_byte_of_a_find_missing_request_counts(sizes: list[int]) -> None:
    whole = plain(sizes).SerializeToString()
    assert check_find_missing(whole) is not None
    values = (0x00, 0x01, 0x0A, 0x10, 0x12, 0x20, 0x41, 0x61, 0x7F, 0x80, 0xFF)
    for at in range(len(whole)):
        changed = bytearray(whole)
        for value in {*values, whole[at] - 1 & 0xFF, whole[at] + 1 & 0xFF}:
            changed[at] = value
            check_find_missing(bytes(changed))
        check_find_missing(whole[:at])
        check_find_missing(whole[:at] + whole[at + 1 :])
        check_find_missing(whole[:at] + b"\0" + whole[at:])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Each pair has the length of two plain digests, but not their parts.
        (b"\x0a\x40%b\x10\x85" % HASH.encode(), b"\x0a\x40%b\x10\x05\x00" % HASH.encode()),
        (b"\x0a\x40%b" % HASH.encode(), b"\x0a\x40%b\x10\x05\x10\x06" % HASH.encode()),
        (b"\x0a\x40%b" % HASH.encode(), b"\x0a\x40%b\x12\x02\x05\x06" % HASH.encode()),
        (b"\x10\x05\x0a\x40%b" % HASH.encode(), b"\x0a\x40%b\x10\x05" % HASH.encode()),
        (b"\x0a\x40%b\x10\x00" % HASH.encode(), b"\x0a\x40%b\x10\x05" % HASH.encode()),
        (b"\x0a\x40%b\x10\x80\x00" % HASH.encode(), b"\x0a\x40%b\x10\x80\x01" % HASH.encode()),
        (b"\x0a\x40%b\x18\x05" % HASH.encode(), b"\x0a\x40%b\x10\x05" % HASH.encode()),
    ],
)
@pytest.mark.parametrize("run", [False, True])
def test_digests_that_look_plain(one: bytes, other: bytes, run: bool) -> None:
    tail = b"" if run else b"\x12\x45\x0a\x40%b\x10\x80\x01" % HASH.encode()
    for pair in ((one, other), (other, one), (one, one), (other, other)):
        fields = b"".join(b"\x12%c%b" % (len(digest), digest) for digest in pair)
        check_find_missing(fields * 10 + tail)


def test_a_repeated_instance_name() -> None:
    whole = plain([5] * 20).SerializeToString()
    check_find_missing(whole + b"\x0a\x01b")
    check_find_missing(b"\x0a\x01b" + whole)
    check_find_missing(whole + whole)


@pytest.mark.parametrize("sizes", LISTS.values(), ids=LISTS.keys())
@pytest.mark.parametrize(
    "bad",
    [HASH.upper(), HASH[:-1] + "g", HASH[:-1] + " ", " " + HASH[1:], HASH[:-1], "", "é" * 32],
)
def test_a_malformed_hash_is_named(sizes: list[int], bad: str) -> None:
    message = plain(sizes)
    message.blob_digests[9].hash = bad
    with pytest.raises(InvalidArgument) as caught:
        wire.find_missing_request(message.SerializeToString())
    assert repr(bad)[:-1] in str(caught.value)


def test_a_negative_size_is_named() -> None:
    message = plain([5] * 20)
    message.blob_digests[9].size_bytes = -77
    with pytest.raises(InvalidArgument, match="-77"):
        wire.find_missing_request(message.SerializeToString())


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize(
    ("number", "named"), [(4, r"4 \(vso\)"), (99, "99"), (-1, "-1"), (2**31 - 1, "2147483647")]
)
def test_a_function_that_is_not_served_is_named(count: int, number: int, named: str) -> None:
    message = plain([5] * count)
    message.digest_function = number  # type: ignore[assignment]
    with pytest.raises(InvalidArgument, match=f"digest function {named} is not served.*1 .sha256"):
        wire.find_missing_request(message.SerializeToString())


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.name)
def test_functions_that_are_served(function: digests.Function) -> None:
    expected = [digests.of(b"%d" % i, function) for i in range(30)]
    message = pb.FindMissingBlobsRequest(
        blob_digests=[pb.Digest(hash=d.hex, size_bytes=d.size) for d in expected],
        digest_function=function.number,  # type: ignore[arg-type]
    )
    request = wire.find_missing_request(message.SerializeToString())
    assert request.keys == [digest.key for digest in expected]
    assert KNOWN.of_number(function.number) is function
    assert KNOWN.of_number(0) is None


@pytest.mark.parametrize("sizes", [LISTS["all of one length"], LISTS["of all lengths"]])
def test_plain_digests_are_read_by_column(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests above would show protobuf's agreement with itself."""

    def refuse(*_: object) -> list[bytes]:
        raise AssertionError("read one by one")

    monkeypatch.setattr(wire, "_keys_singly", refuse)
    assert len(sizes) >= columns.AT_ONCE
    assert len(wire.find_missing_request(plain(sizes).SerializeToString()).keys) == len(sizes)


# ---- Batches


def messages_of_digest(hash_hex: st.SearchStrategy[str]) -> st.SearchStrategy[pb.Digest]:
    return st.builds(pb.Digest, hash=hash_hex, size_bytes=sizes | int64s)


any_digest = messages_of_digest(hashes | bad_hashes | st.text(max_size=5).map(ascii))


def batch_updates() -> st.SearchStrategy[Message]:
    return st.builds(
        pb.BatchUpdateBlobsRequest,
        instance_name=st.sampled_from(["", "main"]) | names,
        requests=st.lists(
            st.builds(
                pb.BatchUpdateBlobsRequest.Request,
                digest=any_digest,
                data=datas,
                compressor=st.just(0) | enums,
            ),
            max_size=6,
        ),
        digest_function=st.sampled_from([0, 1]) | enums,
    )


def their_keys(messages: Iterable[pb.Digest], number: int) -> list[bytes | str]:
    """Each digest's key, or the text of its error."""
    function = KNOWN.of_number(number)
    keys: list[bytes | str] = []
    for message in messages:
        try:
            keys.append(digests.parse(message.hash, message.size_bytes, function).key)
        except InvalidArgument as error:
            keys.append(str(error))
    return keys


def spelled(keys: Iterable[bytes | InvalidArgument]) -> list[bytes | str]:
    return [key if isinstance(key, bytes) else str(key) for key in keys]


def our_batch_update(data: bytes) -> Any:
    request = wire.batch_update_request(data)
    return *request[:2], list(request.blobs), spelled(request.keys)


def their_batch_update(data: bytes) -> Any:
    request = pb.BatchUpdateBlobsRequest.FromString(data)
    blobs = [
        (blob.digest.SerializeToString(), blob.data, blob.compressor) for blob in request.requests
    ]
    keys = their_keys([blob.digest for blob in request.requests], request.digest_function)
    return request.instance_name, request.digest_function, blobs, keys


@bounded
@given(mutants(batch_updates()) | st.binary(max_size=40))
def test_batch_update_request(data: bytes) -> None:
    agree(our_batch_update, their_batch_update, data)


def test_every_byte_of_a_batch_update_counts() -> None:
    """In messages large enough to be read by hand."""
    message = pb.BatchUpdateBlobsRequest(
        instance_name="main", digest_function=pb.DigestFunction.SHA256
    )
    for data, compressor in ((b"abc", 1), (LARGE, 0), (b"d" * 200, 1)):
        digest = digests.of(data)
        message.requests.add(
            digest=pb.Digest(hash=digest.hex, size_bytes=digest.size),
            data=data,
            compressor=compressor,
        )
    whole = message.SerializeToString()
    views = [blob[1] for blob in wire.batch_update_request(whole).blobs]
    assert all(view.obj is whole for view in views)
    body = whole.index(LARGE)
    places = [*range(body), *range(body + len(LARGE), len(whole))]
    for at in places:
        changed = bytearray(whole)
        for value in (0x00, 0x0A, 0x10, 0x12, 0x18, 0x28, 0x7F, 0x80, 0xFF, whole[at] + 1 & 0xFF):
            changed[at] = value
            agree(our_batch_update, their_batch_update, bytes(changed))
        agree(our_batch_update, their_batch_update, whole[:at] + whole[at + 1 :])
        agree(our_batch_update, their_batch_update, whole[:at])


codes = st.integers(0, 16)
messages = st.just("") | st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@bounded
@given(st.lists(st.tuples(any_digest, codes, messages), max_size=20))
def test_batch_update_response(results: list[tuple[pb.Digest, int, str]]) -> None:
    expected = pb.BatchUpdateBlobsResponse(
        responses=[
            pb.BatchUpdateBlobsResponse.Response(
                digest=digest,
                status=Status(code=code, message=message),
            )
            for digest, code, message in results
        ]
    )
    encoded = [(digest.SerializeToString(), code, text) for digest, code, text in results]
    assert wire.batch_update_response(encoded) == expected.SerializeToString()


def batch_reads() -> st.SearchStrategy[Message]:
    return st.builds(
        pb.BatchReadBlobsRequest,
        instance_name=st.sampled_from(["", "main"]) | names,
        digests=st.lists(any_digest, max_size=30),
        acceptable_compressors=st.lists(enums, max_size=3),
        digest_function=st.sampled_from([0, 1]) | enums,
    )


@bounded
@given(mutants(batch_reads()) | st.binary(max_size=40))
def test_batch_read_request(data: bytes) -> None:
    def ours(data: bytes) -> Any:
        request = wire.batch_read_request(data)
        return *request[:3], spelled(request.keys), request.compressors

    def theirs(data: bytes) -> Any:
        request = pb.BatchReadBlobsRequest.FromString(data)
        return (
            request.instance_name,
            request.digest_function,
            [digest.SerializeToString() for digest in request.digests],
            their_keys(request.digests, request.digest_function),
            frozenset(request.acceptable_compressors),
        )

    agree(ours, theirs, data)


@bounded
@given(
    st.lists(
        st.tuples(
            any_digest,
            st.binary(max_size=200) | st.just(LARGE),
            codes,
            messages,
            st.integers(0, 3),
        ),
        max_size=9,
    ),
)
def test_batch_read_response(results: list[tuple[pb.Digest, bytes, int, str, int]]) -> None:
    expected = pb.BatchReadBlobsResponse(
        responses=[
            pb.BatchReadBlobsResponse.Response(
                digest=digest,
                data=data,
                status=Status(code=code, message=message),
                compressor=compressor,  # type: ignore[arg-type]
            )
            for digest, data, code, message, compressor in results
        ]
    )
    answer = wire.batch_read_response(
        (digest.SerializeToString(), memoryview(data), code, message, compressor)
        for digest, data, code, message, compressor in results
    )
    assert pb.BatchReadBlobsResponse.FromString(answer) == expected


def test_a_status_is_there_even_when_it_is_ok() -> None:
    """Some clients look for the field before they look at its code."""
    update = pb.BatchUpdateBlobsResponse.FromString(wire.batch_update_response([(b"", 0, "")]))
    assert update.responses[0].HasField("status")
    read = pb.BatchReadBlobsResponse.FromString(wire.batch_read_response([(b"", b"x", 0, "", 0)]))
    assert read.responses[0].HasField("status")


def test_a_message_that_is_no_unicode_is_still_sent() -> None:
    answer = wire.batch_update_response([(b"", 13, "name \udcff")])
    response = pb.BatchUpdateBlobsResponse.FromString(answer).responses[0]
    assert response.status.message == "name ?"


# ---- Action cache


def get_action_results() -> st.SearchStrategy[Message]:
    return st.builds(
        pb.GetActionResultRequest,
        instance_name=names,
        action_digest=st.none() | any_digest,
        inline_stdout=st.booleans(),
        inline_stderr=st.booleans(),
        inline_output_files=st.lists(names, max_size=2),
        digest_function=enums,
    )


@bounded
@given(mutants(get_action_results()) | st.binary(max_size=40))
def test_get_action_result_request(data: bytes) -> None:
    def theirs(data: bytes) -> Any:
        request = pb.GetActionResultRequest.FromString(data)
        hinted = request.inline_stdout or request.inline_stderr or request.inline_output_files
        return (
            request.instance_name,
            request.action_digest.hash,
            request.action_digest.size_bytes,
            request.digest_function,
            request if hinted else None,
        )

    agree(wire.get_action_result_request, theirs, data)


action_results = st.builds(
    pb.ActionResult,
    output_files=st.lists(
        st.builds(pb.OutputFile, path=names, digest=any_digest, is_executable=st.booleans()),
        max_size=3,
    ),
    exit_code=st.integers(-5, 5),
    stdout_raw=st.binary(max_size=40),
    stderr_digest=st.none() | any_digest,
)


def update_action_results() -> st.SearchStrategy[Message]:
    return st.builds(
        pb.UpdateActionResultRequest,
        instance_name=names,
        action_digest=any_digest,
        action_result=st.none() | action_results,
        results_cache_policy=st.none() | st.builds(pb.ResultsCachePolicy, priority=enums),
        digest_function=enums,
    )


@bounded
@given(mutants(update_action_results()) | st.binary(max_size=40))
def test_update_action_result_request(data: bytes) -> None:
    def ours(data: bytes) -> Any:
        request = wire.update_action_result_request(data)
        assert pb.ActionResult.FromString(request.action_result) == request.parsed
        return (*request[:4], request.parsed)

    def theirs(data: bytes) -> Any:
        request = pb.UpdateActionResultRequest.FromString(data)
        return (
            request.instance_name,
            request.action_digest.hash,
            request.action_digest.size_bytes,
            request.digest_function,
            request.action_result,
        )

    agree(ours, theirs, data)


@pytest.mark.parametrize("digest_first", [True, False])
def test_an_action_result_is_returned_as_it_was_sent(digest_first: bool) -> None:
    # exit_code before output_files, a varint longer than needed, fields nobody knows.
    sent = b"\x20\x83\x00" + b"\x12\x03\x0a\x01f" + b"\xfa\x3e\x02hi" + b"\xf8\x3f\x07"
    digest = pb.Digest(hash=HASH, size_bytes=5).SerializeToString()
    fields = [b"\x12%c%b" % (len(digest), digest), b"\x1a%c%b" % (len(sent), sent)]
    data = b"\x0a\x04main" + b"".join(fields if digest_first else fields[::-1]) + b"\x28\x01"
    request = wire.update_action_result_request(data)
    assert request[:5] == ("main", HASH, 5, 1, sent)
    assert request.parsed.exit_code == 3
    assert request.parsed.output_files[0].path == "f"


def test_action_results_sent_in_two_parts_are_merged() -> None:
    data = b"\x1a\x02\x20\x03" + b"\x1a\x05\x12\x03\x0a\x01f"
    request = wire.update_action_result_request(data)
    merged = pb.ActionResult.FromString(request.action_result)
    assert merged == pb.ActionResult(exit_code=3, output_files=[pb.OutputFile(path="f")])


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (wire.read_request, "google.bytestream.ReadRequest"),
        (wire.write_request, "google.bytestream.WriteRequest"),
        (wire.query_write_status_request, "google.bytestream.QueryWriteStatusRequest"),
        (wire.find_missing_request, "FindMissingBlobsRequest"),
        (wire.batch_update_request, "BatchUpdateBlobsRequest"),
        (wire.batch_read_request, "BatchReadBlobsRequest"),
        (wire.get_action_result_request, "GetActionResultRequest"),
        (wire.update_action_result_request, "UpdateActionResultRequest"),
    ],
)
def test_malformed_messages_are_named(read: Callable[[bytes], object], name: str) -> None:
    for data in (b"\x0a\x05x", b"\x0a\x02\xff\xfe", b"\x00", b"\x0a\x02\xff\xfe" + LARGE):
        with pytest.raises(InvalidArgument, match=f"{name}\\b"):
            read(data)
