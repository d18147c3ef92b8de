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
from cas.client.compress import Compressed, Decompressor
from cas.client.errors import RemoteError, Unavailable
from cas.client.overgrpc import read_data, write_head, write_request
from cas.client.retry import Retry, retried
from cas.client.transfer import Pieces, Tally, Told
from cas.digest import SHA256
from cas.pb import bytestream_pb2 as bs
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
    decompressor = Decompressor()
    # Two frames in a row are one stream as well.
    both = frames + frames
    out = b"".join(
        decompressor.feed(memoryview(both)[at : at + step]) for at in range(0, len(both), step)
    )
    assert out == data + data


def test_damaged_zstd_is_an_error_of_the_remote() -> None:
    with pytest.raises(RemoteError, match="damaged zstd"):
        Decompressor().feed(b"not zstd at all")


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
