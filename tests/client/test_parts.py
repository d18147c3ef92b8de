"""The client's small parts: budget, retries, the messages made by hand, compression."""

from __future__ import annotations

import asyncio
import random
import threading
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import digest as digests
from cas.client.budget import Budget
from cas.client.compress import Compressed, Decompressor, content, parcels
from cas.client.errors import RemoteError, Unavailable
from cas.client.messages import batch_update_request, read_data, write_head, write_request
from cas.client.names import message_of
from cas.client.retry import Retry, retried
from cas.client.source import of_bytes
from cas.client.transfer import Pieces, Tally, Told
from cas.client.wire import Parcel
from cas.digest import SHA256
from cas.errors import DigestMismatch, InvalidArgument
from cas.pb import bytestream_pb2 as bs
from cas.pb import remote_execution_pb2 as pb
from cas.zstd import Packer
from tests.client.serving import PATIENCE

QUICK = Retry(attempts=3, first=0.001, longest=0.002)


@given(st.lists(st.integers(0, 150), min_size=1, max_size=30))
def test_a_budget_is_never_overdrawn_and_is_whole_at_the_end(sizes: list[int]) -> None:
    async def run() -> None:
        budget = Budget(100)
        order: list[int] = []

        async def work(number: int, size: int) -> None:
            async with budget.take(size):
                order.append(number)
                assert budget.left >= 0
                await asyncio.sleep(0)

        await asyncio.gather(*(work(*one) for one in enumerate(sizes)))
        assert budget.left == 100
        assert order == sorted(order), "first come, first served"

    asyncio.run(run())


def test_giving_up_the_wait_for_a_budget_lets_the_next_one_in() -> None:
    async def run() -> None:
        budget = Budget(10)
        async with budget.take(6):
            large = asyncio.ensure_future(budget.take(10).__aenter__())
            small = asyncio.ensure_future(budget.take(4).__aenter__())
            await asyncio.sleep(0)
            assert not small.done()
            large.cancel()
            await small
            assert budget.left == 0

    asyncio.run(run())


def test_only_what_may_pass_is_tried_again_and_not_for_ever() -> None:
    async def run(error: Exception, failures: int) -> int:
        tries = 0

        async def work() -> int:
            nonlocal tries
            tries += 1
            if tries <= failures:
                raise error
            return tries

        try:
            return await retried(QUICK, work)
        except RemoteError:
            return -tries

    assert asyncio.run(run(Unavailable("busy"), 2)) == 3
    assert asyncio.run(run(Unavailable("busy"), 3)) == -3
    assert asyncio.run(run(RemoteError("no"), 1)) == -1


@given(st.integers(1, 200))
def test_pauses_grow_to_their_limit(failures: int) -> None:
    retry = Retry(first=0.2, longest=8)
    assert 0.2 <= retry.longest_pause(failures) <= 8
    assert retry.longest_pause(failures) <= retry.longest_pause(failures + 1)


@given(st.text(max_size=20), st.integers(0, 2**62), st.binary(max_size=300), st.booleans())
def test_a_write_request_is_what_protobuf_would_write(
    name: str, offset: int, data: bytes, finish: bool
) -> None:
    raw = write_request(write_head(name), offset, data, finish)
    assert bs.WriteRequest.FromString(raw) == bs.WriteRequest(
        resource_name=name, write_offset=offset, finish_write=finish, data=data
    )


@given(
    st.text(max_size=20),
    st.integers(0, 9),
    st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=5),
)
def test_a_batch_is_what_protobuf_would_write(
    instance: str, function: int, blobs: list[tuple[bytes, bool]]
) -> None:
    parcels = [Parcel(digests.of(data), data, zstd) for data, zstd in blobs]
    raw = batch_update_request(instance, function, parcels)
    assert pb.BatchUpdateBlobsRequest.FromString(raw) == pb.BatchUpdateBlobsRequest(
        instance_name=instance,
        digest_function=pb.DigestFunction.Value.Name(pb.DigestFunction.Value.ValueType(function)),
        requests=[
            pb.BatchUpdateBlobsRequest.Request(
                digest=message_of(parcel.digest),
                data=parcel.data,
                compressor=pb.Compressor.ZSTD if parcel.zstd else pb.Compressor.IDENTITY,
            )
            for parcel in parcels
        ],
    )


@given(st.binary(max_size=300))
def test_a_read_response_is_what_protobuf_would_read(data: bytes) -> None:
    assert bytes(read_data(bs.ReadResponse(data=data).SerializeToString())) == data
    # Another implementation may add what we do not know.
    strange = b"\x08\x01" + bs.ReadResponse(data=data).SerializeToString() + b"\x10\x02"
    assert bytes(read_data(strange)) == data


@given(st.integers(0, 3 << 20), st.integers(1, 100_000), st.integers(0, 2**32))
def test_what_was_compressed_comes_back_whatever_the_pieces(
    size: int, step: int, seed: int
) -> None:
    half = random.Random(seed).randbytes(size // 2)
    data = half + bytes(size - len(half))
    compressed = Compressed(lambda at, most: data[at : at + most], size)
    frames = b"".join(iter(compressed.next, b""))
    decompressor = Decompressor(2 * size)
    # Two frames in a row are one stream as well.
    both = frames + frames
    out = [
        piece
        for at in range(0, len(both), step)
        for piece in decompressor.feed(memoryview(both)[at : at + step])
    ]
    assert b"".join(out) == data + data


@given(st.integers(1, 3 << 20), st.data())
def test_what_is_compressed_from_an_offset_is_the_rest(size: int, chosen: st.DataObject) -> None:
    data = random.Random(size).randbytes(1000) * (size // 1000 + 1)
    offset = chosen.draw(st.integers(0, size))
    reached = [offset]
    compressed = Compressed(lambda at, most: data[at : at + most], size, offset, reached.append)
    frame = b"".join(iter(compressed.next, b""))
    assert b"".join(Decompressor(size - offset).feed(frame)) == data[offset:size]
    assert reached == sorted(reached)
    assert reached[-1] == size


def test_a_file_that_became_shorter_is_told() -> None:
    compressed = Compressed(lambda at, most: b"x" * min(most, max(0, 10 - at)), 20)
    with pytest.raises(InvalidArgument, match="shorter"):
        list(iter(compressed.next, b""))


@given(st.binary(max_size=4000), st.integers(1, 40), st.booleans())
def test_a_blob_of_a_batch_comes_back_and_never_grows(
    data: bytes, times: int, compress: bool
) -> None:
    blob = of_bytes(data * times)
    (parcel,) = parcels([blob], Packer() if compress else None)
    assert content(parcel) == data * times
    assert len(parcel.data) <= blob.digest.size
    assert parcel.zstd <= compress


@pytest.mark.parametrize("zstd", [False, True])
def test_a_blob_of_a_batch_that_is_another_is_refused(zstd: bool) -> None:
    wrong = b"wrong" * 1000
    parcel = Parcel(digests.of(b"right" * 1000), Packer().pack(wrong) if zstd else wrong, zstd)
    with pytest.raises(DigestMismatch):
        content(parcel)


def test_a_frame_that_becomes_too_much_is_refused() -> None:
    with pytest.raises(RemoteError, match="more content than the 100 bytes"):
        content(Parcel(digests.of(bytes(100)), Packer().pack(bytes(1 << 20)), zstd=True))
    with pytest.raises(RemoteError, match="more content than the 100 bytes"):
        list(Decompressor(100).feed(Packer().pack(bytes(1 << 20))))


def test_damaged_zstd_is_an_error_of_the_remote() -> None:
    with pytest.raises(RemoteError, match="cannot be decompressed"):
        list(Decompressor(100).feed(b"not zstd at all"))


def test_who_pulls_may_be_cancelled_and_the_read_under_way_is_waited_for() -> None:
    async def run() -> None:
        release = threading.Event()
        closed = False

        def read(offset: int, size: int) -> bytes:
            release.wait(PATIENCE)
            assert not closed
            return b"x" * size

        loop = asyncio.get_running_loop()
        tally = Tally()
        digest = digests.make(SHA256, bytes(32), 10)
        pieces = Pieces(
            partial(loop.run_in_executor, None), tally, read, digest, False, 0, Told(bool)
        )
        pulling = asyncio.ensure_future(pieces.pull())
        await asyncio.sleep(0.01)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        loop.call_later(0.05, release.set)
        await pieces.close()
        assert release.is_set()
        closed = True

    asyncio.run(run())
