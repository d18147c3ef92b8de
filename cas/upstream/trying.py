"""One request after another, with patience: time-outs, retries, the breaker, at most so many.

Rule: knows nothing of what is asked; whoever asks says how by a coroutine that raises
`objects.UpstreamError`.  Runs on one loop.  What comes out is an answer, or Absent, or
`Unavailable`, which the protocols tell as such.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cas.errors import Unavailable
from cas.metrics.instruments import Metrics
from cas.upstream.counts import Counts
from cas.upstream.objects import Absent, Broken, Denied, Refused, UpstreamError
from cas.upstream.patience import Breaker, Budget, backoff

T = TypeVar("T")

ATTEMPTS = 4
"""Of one request, retries included."""

log = logging.getLogger("cas.upstream")


@dataclass(frozen=True, slots=True)
class Patience:
    """What an operator chooses."""

    timeout: float = 10.0
    """Seconds for an answer's head, and in which something must come or go."""
    concurrency: int = 64
    """Requests under way at once, in one process."""


class Trying:
    """One process's requests upstream."""

    def __init__(self, patience: Patience, counts: Counts | None = None) -> None:
        self.timeout = patience.timeout
        self.counts = counts or Counts(Metrics())
        self._slots = asyncio.Semaphore(patience.concurrency)
        self._budget = Budget()
        self.breaker = Breaker()
        self._told = ""
        """Why upstream is left alone, as the log has it."""
        self.returned: Callable[[], object] = lambda: None
        """Called when upstream answers again."""

    async def ask(
        self, operation: str, make: Callable[[], Awaitable[T]], seconds: float | None = None
    ) -> T:
        """What `make` makes comes to; it is made anew for each attempt.  It has `seconds`, by
        default those of the operator's; 0 where it looks to its time itself."""
        self._budget.asked()
        attempt = 0
        while True:
            try:
                return await self.once(operation, make, seconds)
            except (Broken, Refused) as error:
                await self.retry(attempt, error)
                attempt += 1

    async def retry(self, attempt: int, error: UpstreamError) -> None:
        """Waits before retry number `attempt` of what broke with `error`; raises Unavailable
        where there is to be none."""
        if attempt + 1 >= ATTEMPTS or isinstance(error, Refused) or not self._budget.take():
            raise Unavailable(f"upstream fails: {error}") from error
        self.counts.retries.add()
        await asyncio.sleep(backoff(attempt, random.random()))

    async def pieces(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces, none of which takes too long.  They may end in Broken: whoever took some
        goes on from there."""
        while True:
            try:
                async with asyncio.timeout(self.timeout):
                    piece = await anext(pieces, b"")
            except TimeoutError:
                error = Broken(f"nothing came for {self.timeout:g} s")
                self._failed(error)
                raise error from None
            except Broken as error:
                self._failed(error)
                raise
            if not piece:
                return
            yield piece

    async def once(
        self, operation: str, make: Callable[[], Awaitable[T]], seconds: float | None = None
    ) -> T:
        """As `ask`, and raises Broken and Refused: who asks retries."""
        if seconds is None:
            seconds = self.timeout
        async with self._slots:
            if not self.breaker.admits():
                raise Unavailable("upstream failed lately, and is not asked for a moment")
            outcome = "failed"
            began = time.monotonic()
            try:
                async with asyncio.timeout(seconds or None):
                    answer = await make()
            except Absent:
                outcome = "absent"
                self._succeeded()
                raise
            except TimeoutError:
                outcome = "late"
                error = Broken(f"no answer within {seconds or self.timeout:g} s")
                self._failed(error)
                raise error from None
            except Denied:
                outcome = "refused"
                self._succeeded()
                raise
            except UpstreamError as error:
                outcome = "refused" if isinstance(error, Refused) else "failed"
                self._failed(error)
                raise
            except BaseException:
                # Given up by who asked.
                self.breaker.dropped()
                raise
            else:
                outcome = "ok"
                self._succeeded()
                return answer
            finally:
                self.counts.asked(operation, outcome, time.monotonic() - began)

    def _succeeded(self) -> None:
        if self.breaker.succeeded():
            self.counts.down.set(0.0)
            log.warning("upstream answers again")
            self.returned()

    def _failed(self, error: UpstreamError) -> None:
        tried = self.breaker.state == "trial"
        opened = self.breaker.failed()
        if opened:
            self.counts.down.set(1.0)
        # A server that was not there yet, and is there, but refuses: the log says what is true now.
        if opened or (tried and str(error) != self._told):
            self._told = str(error)
            log.error("upstream fails; what is here is served", extra={"error": self._told})
