"""Index records: to bytes and back, and what is not one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import digest as digests
from cas.errors import DataLoss
from cas.index import records
from cas.index.records import ActionRecord, Record, ValueRecord

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
blob_records = st.builds(Record, st.sampled_from((0, 1, 2, 3)), u32, u64, u32, u64)
keys = st.binary(min_size=1, max_size=74)
action_records = st.builds(
    ActionRecord,
    u64,
    st.text(max_size=60),
    st.lists(keys, max_size=20),
    st.booleans(),
    st.binary(max_size=300),
)


@given(blob_records)
def test_a_blob_record_comes_back(record: Any) -> None:
    packed = records.pack_record(record)
    assert records.unpack_record(packed) == record
    assert len(packed) == 26


@given(st.lists(blob_records, max_size=20))
def test_serials_are_those_of_the_records(found: list[Any]) -> None:
    packed = [records.pack_record(record) for record in found]
    assert records.serials(packed) == [record.serial for record in found]


def test_serials_of_a_record_cut_short_are_data_loss() -> None:
    packed = records.pack_record(Record(records.FILE, 1, 2, 3, 4))
    with pytest.raises(DataLoss, match="51 bytes, expected a multiple of 26"):
        records.serials([packed, packed[:-1]])


@given(action_records)
def test_an_action_record_comes_back(record: Any) -> None:
    packed = records.pack_action(record)
    assert records.unpack_action(packed) == record._replace(author=record.author)
    cut = records.cut_action(packed)
    assert (cut.references, cut.expanded, cut.result) == (
        record.references,
        record.expanded,
        record.result,
    )


@given(st.binary(max_size=80))
def test_other_bytes_are_data_loss_or_a_record(raw: bytes) -> None:
    for unpack in (records.unpack_record, records.unpack_action):
        try:
            unpack(raw)
        except DataLoss:
            continue
        assert raw[0] == records.VERSION


@given(action_records, st.integers(0, 40))
def test_a_record_cut_short_before_its_result_is_data_loss(record: Any, cut: int) -> None:
    packed = records.pack_action(record)
    head = len(packed) - len(record.result)
    if cut < head:
        with pytest.raises(DataLoss):
            records.cut_action(packed[:cut])


def test_actions_and_blobs_never_share_a_key() -> None:
    assert records.action_key("a/b", digests.of(b"x").key[:33])[0] == 0
    for instance in ("", "a/b", "ä"):
        made = records.action_key(instance, digests.of(b"x").key[:33])
        assert records.split_action_key(made) == (instance, digests.of(b"x").key[:33])
    assert all(function.code > 0 for function in digests.FUNCTIONS)


@given(st.integers(0, digests.MAX_SIZE))
def test_a_key_holds_the_whole_digest(size: int) -> None:
    digest = digests.make(digests.SHA256, bytes(32), size)
    assert digests.from_key(digest.key) == digest


@given(st.binary(max_size=50))
def test_other_bytes_are_no_digest_key(raw: bytes) -> None:
    try:
        digest = digests.from_key(raw)
    except DataLoss:
        return
    assert digest.key == raw
    assert digests.make(digest.function, digest.hash, digest.size) == digest


value_records = st.builds(
    ValueRecord,
    u64,
    st.text(max_size=60),
    keys,
    st.binary(max_size=100),
    st.none() | st.binary(max_size=300),
)


@given(value_records)
def test_a_value_record_comes_back(record: Any) -> None:
    cut = records.cut_action(records.pack_value(record))
    assert records.cut_value(cut) == (record.digest, record.meta, record.content)
    needed = [record.digest, *record.references]
    assert cut.references == (needed if record.content is None else [])


@given(value_records, st.integers(0, 120))
def test_a_value_cut_short_before_its_content_is_data_loss(record: Any, cut: int) -> None:
    packed = records.cut_action(records.pack_value(record._replace(content=b"")))
    if cut < len(packed.result):
        with pytest.raises(DataLoss):
            records.cut_value(packed._replace(result=packed.result[:cut]))


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=600)


@given(st.tuples(names.filter(lambda n: len(n.encode()) < 400), names), st.data())
def test_a_value_key_fits_and_tells_values_apart(place: tuple[str, str], data: Any) -> None:
    key = records.value_key(*place)
    assert len(key) <= records.MAX_KEY_BYTES
    assert key[0] == 255
    other = data.draw(st.sampled_from([(place[0], place[1] + "x"), (place[0] + "x", place[1])]))
    assert records.value_key(*other) != key
