"""Things asked for one by one, and together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from cas.upstream.gathering import AT_ONCE, Gathered


class Asked:
    """Answers each number with its double; a negative one with an error."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.under_way = 0
        self.most_under_way = 0

    async def __call__(self, batch: list[int]) -> list[int | Exception]:
        self.batches.append(batch)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        if 0 in batch:
            raise OSError("all of them")
        return [ValueError(f"{number}") if number < 0 else 2 * number for number in batch]


def run(work: Callable[[Gathered[int, int], Asked], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        asked = Asked()
        gathered: Gathered[int, int] = Gathered(
            asked, kind=lambda number: number % 2, cost=abs, most=100
        )
        await asyncio.wait_for(work(gathered, asked), 40)

    asyncio.run(main())


def test_what_is_asked_at_one_moment_goes_at_once_by_kind() -> None:
    async def work(gathered: Gathered[int, int], asked: Asked) -> None:
        asked.gate.set()
        assert await asyncio.gather(*map(gathered, range(1, 9))) == [2 * n for n in range(1, 9)]
        assert asked.batches == [[1, 3, 5, 7], [2, 4, 6, 8]]

    run(work)


def test_requests_and_batches_are_bounded() -> None:
    async def work(gathered: Gathered[int, int], asked: Asked) -> None:
        tasks = [asyncio.ensure_future(gathered(number)) for number in [60, 40, 2, 200, 30] * 20]
        await asyncio.sleep(0.01)
        assert len(asked.batches) == AT_ONCE
        asked.gate.set()
        assert len(await asyncio.gather(*tasks)) == 100
        assert asked.most_under_way == AT_ONCE
        # More than what is allowed goes alone.
        assert all(sum(batch) <= 100 or len(batch) == 1 for batch in asked.batches)
        assert [200] in asked.batches

    run(work)


def test_errors_of_one_and_of_all() -> None:
    async def work(gathered: Gathered[int, int], asked: Asked) -> None:
        asked.gate.set()
        told = await asyncio.gather(*map(gathered, [1, -3, 5]), return_exceptions=True)
        assert [str(one) for one in told] == ["2", "-3", "10"]
        told = await asyncio.gather(*map(gathered, [0, 2]), return_exceptions=True)
        assert [type(one) for one in told] == [OSError, OSError]
        assert await gathered(7) == 14

    run(work)


def test_who_gives_up_is_not_asked_for_and_spoils_nothing() -> None:
    async def work(gathered: Gathered[int, int], asked: Asked) -> None:
        first = [asyncio.ensure_future(gathered(100)) for _ in range(AT_ONCE)]
        await asyncio.sleep(0.01)
        gone, stays = asyncio.ensure_future(gathered(8)), asyncio.ensure_future(gathered(10))
        await asyncio.sleep(0.01)
        gone.cancel()
        first[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        asked.gate.set()
        assert await stays == 20
        assert [await one for one in first[1:]] == [200] * (AT_ONCE - 1)
        assert asked.batches[AT_ONCE:] == [[10]]

    run(work)
