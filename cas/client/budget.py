"""A budget of bytes that many transfers share.

Rule: first come, first served, so that a large transfer is not starved by small ones.
Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """`total` bytes; whoever wants more than all of them gets all of them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.left = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Holds `size` bytes of the budget within the block."""
        size = min(size, self.total)
        await self._acquire(size)
        try:
            yield
        finally:
            self.left += size
            self._grant()

    async def _acquire(self, size: int) -> None:
        if not self._waiting and size <= self.left:
            self.left -= size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.left += size
            self._grant()
            raise

    def _grant(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if size > self.left:
                    return
                self.left -= size
                turn.set_result(None)
            self._waiting.popleft()
