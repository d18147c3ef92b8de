"""Requests made of spliced bytes are the messages that the generated classes would send."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import messages, population
from benchmarks.messages import BatchUpdates, Family, Name, Writes
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as re

bounded = settings(derandomize=True, max_examples=100, deadline=None)


@given(st.integers(100, 2**29 - 1), st.binary(max_size=300))
@bounded
def test_fields_are_protobufs(number: int, payload: bytes) -> None:
    field = messages.field(number, payload)
    # Fields that a message does not know are kept, and serialised as they came.
    assert bs.ReadRequest.FromString(field).SerializeToString() == field


@given(st.binary(max_size=70_000))
@bounded
def test_the_length_of_a_responses_data(data: bytes) -> None:
    serialised = bs.ReadResponse(data=data).SerializeToString()
    assert messages.data_length(serialised) == len(data)


def test_a_response_with_other_fields_is_read_too() -> None:
    unknown = messages.field(15, b"something else")
    for message in (
        bs.ReadResponse(data=b"abc").SerializeToString() + unknown,
        unknown + bs.ReadResponse(data=b"abc").SerializeToString(),
    ):
        assert messages.data_length(message) == 3


@given(
    st.integers(1, 5000),
    st.integers(messages.HEAD, 2000),
    st.sampled_from(["", "main", "a/b"]),
)
@bounded
def test_the_messages_of_a_write(size: int, message_bytes: int, instance: str) -> None:
    family = Family.random(size)
    writes = Writes(family, message_bytes, instance)
    head = family.head()
    name = family.name(head)
    sent = [
        bs.WriteRequest.FromString(message)
        for message in (writes.first("u-1", name, head), *writes.rest)
    ]
    prefix = f"{instance}/" if instance else ""
    assert sent[0].resource_name == f"{prefix}uploads/u-1/blobs/{name.hash}/{size}"
    assert not any(message.resource_name for message in sent[1:])
    assert [message.finish_write for message in sent] == [False] * (len(sent) - 1) + [True]
    offset = 0
    content = b""
    for message in sent:
        assert message.write_offset == offset
        assert 0 < len(message.data) <= message_bytes
        offset += len(message.data)
        content += message.data
    assert content == family.blob(head)
    assert hashlib.sha256(content).hexdigest() == name.hash
    assert bs.WriteResponse.FromString(writes.response).committed_size == size


@given(st.integers(1, 3000), st.integers(1, 5), st.sampled_from(["", "main"]))
@bounded
def test_a_batch_update_is_the_generated_message(size: int, count: int, instance: str) -> None:
    family = Family.random(size)
    heads = [family.head() for _ in range(count)]
    names = [family.name(head) for head in heads]
    pairs = [(head, name.hash.encode()) for head, name in zip(heads, names, strict=True)]
    expected = re.BatchUpdateBlobsRequest(
        instance_name=instance,
        requests=[
            re.BatchUpdateBlobsRequest.Request(digest=name.message(), data=family.blob(head))
            for head, name in zip(heads, names, strict=True)
        ],
    )
    assert BatchUpdates(family, instance).request(pairs) == expected.SerializeToString()


def test_a_body_that_holds_the_placeholder_is_not_cut_there() -> None:
    family = Family(200, b"0" * 200)
    head = b"x" * family.head_length
    request = BatchUpdates(family, "").request([(head, family.name(head).hash.encode())])
    (entry,) = re.BatchUpdateBlobsRequest.FromString(request).requests
    assert entry.data == family.blob(head)
    assert entry.digest.hash == family.name(head).hash


@pytest.mark.parametrize("instance", ["", "main"])
def test_the_other_requests(instance: str) -> None:
    name = messages.name_of(b"abc")
    assert name == Name(hashlib.sha256(b"abc").hexdigest(), 3)
    prefix = f"{instance}/" if instance else ""
    read = bs.ReadRequest.FromString(messages.read_request(instance, name))
    assert read.resource_name == f"{prefix}blobs/{name.hash}/3"
    find = re.FindMissingBlobsRequest.FromString(messages.find_request(instance, [name, name]))
    assert (find.instance_name, len(find.blob_digests)) == (instance, 2)
    batch = re.BatchReadBlobsRequest.FromString(messages.batch_read_request(instance, [name]))
    assert batch.digests[0].hash == name.hash
    result = messages.action_result([name], 7)
    update = re.UpdateActionResultRequest.FromString(
        messages.update_action_request(instance, name, result)
    )
    assert (update.action_digest.size_bytes, update.action_result) == (3, result)
    get = re.GetActionResultRequest.FromString(messages.get_action_request(instance, name))
    assert get.action_digest == name.message()


def test_families_differ_in_their_heads_only() -> None:
    family = Family.random(100)
    one, two = family.blob(family.head()), family.blob(family.head())
    assert one != two
    assert one[messages.HEAD :] == two[messages.HEAD :]
    assert len(Family.random(3).head()) == 3


def test_a_population_has_no_twins() -> None:
    blobs = [population.blob(number) for number in range(1000)]
    assert len(set(blobs)) == 1000
    assert {len(blob) for blob in blobs} == {population.SIZE}
