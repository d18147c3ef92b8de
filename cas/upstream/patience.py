"""How long to go on with an upstream that fails: backoff, a budget of retries, a breaker.

Rule: pure but for the clock and the random numbers that they are given.  Retries alone would
make an overload worse, so they may be a tenth of all requests (`Budget`, as gRPC and Finagle
have it); and an upstream that is down is asked once in a while only (`Breaker`), so that what is
here is served at the speed of what is here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Literal

BASE_SECONDS = 0.05
MAX_SECONDS = 2.0

FAILURES = 5
"""In a row, after which the breaker opens, …"""
COOL_SECONDS = 1.0
"""… for this long at first, twice as long after each trial that fails, …"""
MAX_COOL_SECONDS = 30.0
"""… and this long at most."""

RETRIES_PER_REQUEST = 0.1
SPARE_RETRIES = 20.0
"""Those that may be made at once, when there have been few requests."""

State = Literal["closed", "open", "trial"]


def backoff(attempt: int, drawn: float) -> float:
    """Seconds before retry number `attempt` (0 is the first); `drawn` is a random number from
    0 to 1.  All of it is random: clients that failed together do not come back together."""
    return drawn * min(MAX_SECONDS, BASE_SECONDS * 2.0 ** min(attempt, 32))


class Budget:
    """Retries that may be made yet.  Used by one thread."""

    def __init__(self) -> None:
        self._left = SPARE_RETRIES

    def asked(self) -> None:
        """A request, not a retry, was made."""
        self._left = min(SPARE_RETRIES, self._left + RETRIES_PER_REQUEST)

    def take(self) -> bool:
        """Whether one retry may be made now."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Breaker:
    """Whether upstream is worth asking.  Used by one thread.

    Every request that `admits` let through ends in one of `succeeded`, `failed` or `dropped`.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._failures = 0
        self._trials = 0
        self._until = 0.0
        self.state: State = "closed"

    def admits(self) -> bool:
        """Whether a request may be made: all while it is closed, one at a time after it cooled."""
        if self.state == "closed":
            return True
        if self.state == "open" and self._clock() >= self._until:
            self.state = "trial"
            return True
        return False

    def succeeded(self) -> bool:
        """Upstream answered; whether that closed the breaker."""
        reopened = self.state != "closed"
        self._failures = self._trials = 0
        self.state = "closed"
        return reopened

    def failed(self) -> bool:
        """It did not; whether that opened the breaker, which was closed."""
        if self.state == "closed":
            self._failures += 1
            if self._failures < FAILURES:
                return False
            self._open()
            return True
        if self.state == "trial":
            self._open()
        return False

    def dropped(self) -> None:
        """Nobody knows: the request was given up by who made it."""
        if self.state == "trial":
            self.state = "open"

    def _open(self) -> None:
        cool = min(MAX_COOL_SECONDS, COOL_SECONDS * 2.0 ** min(self._trials, 16))
        self._trials += 1
        self.state = "open"
        # Half of it random: nodes try again at different times.
        self._until = self._clock() + cool * (0.5 + self._draw() / 2)
