"""Things that are asked for one by one, by many, and asked for together.

Rule: knows nothing of what is asked.  Nobody waits for company: what is asked for at one moment
goes at once, and what comes while `AT_ONCE` requests are under way goes with the next.  Used on
one loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741 - an item
A = TypeVar("A")

AT_ONCE = 4


class Gathered(Generic[I, A]):
    """Items and their answers."""

    def __init__(
        self,
        ask: Callable[[list[I]], Awaitable[Sequence[A | Exception]]],
        *,
        kind: Callable[[I], Hashable],
        cost: Callable[[I], int],
        most: int,
    ) -> None:
        """`ask` answers each item, in order, and is given those of one `kind` only; several only
        if together they `cost` no more than `most`."""
        self._ask = ask
        self._kind = kind
        self._cost = cost
        self._most = most
        self._waiting: dict[Hashable, deque[tuple[I, asyncio.Future[A]]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._due = False

    async def __call__(self, item: I) -> A:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.setdefault(self._kind(item), deque()).append((item, answer))
        if not self._due:
            # Once all that runs now has asked.
            self._due = True
            loop.call_soon(self._turn)
        return await answer

    def _turn(self) -> None:
        self._due = False
        while self._waiting and len(self._under_way) < AT_ONCE:
            batch = self._batch()
            if batch:
                task = asyncio.get_running_loop().create_task(self._asked(batch))
                self._under_way.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            self._turn()

    def _batch(self) -> list[tuple[I, asyncio.Future[A]]]:
        kind, waiting = next(iter(self._waiting.items()))
        batch: list[tuple[I, asyncio.Future[A]]] = []
        cost = 0
        while waiting:
            item, answer = waiting[0]
            # Whoever was to have it may have gone.
            if not answer.done():
                cost += self._cost(item)
                if batch and cost > self._most:
                    return batch
                batch.append((item, answer))
            waiting.popleft()
        del self._waiting[kind]
        return batch

    async def _asked(self, batch: list[tuple[I, asyncio.Future[A]]]) -> None:
        answers: Sequence[A | Exception]
        try:
            answers = await self._ask([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - each who waits gets it, whatever it is
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
