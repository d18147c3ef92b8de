"""Which tools ask, from a sample.

Rule: next to nothing for a request: a subtraction and a comparison (0.06 µs), and for one in
`EVERY`, at random, so that no rhythm of clients can fool it, a look at what its client calls
itself (3 µs).  The first `EXACT` of a process are all looked at, so that few requests are
counted exactly.  What clients say is not believed, only shown; the number of names is bounded.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Any

from cas.metrics import families
from cas.metrics.instruments import OTHER, Counter, Metrics
from cas.metrics.recent import plain

EVERY = 16
EXACT = 1000
MAX_TOOLS = 32
"""Tools that a process counts apart; the rest are `OTHER`."""
MAX_NAME = 48
"""Characters."""

UNKNOWN = "unknown"
"""Who does not say what it is."""


class Tools:
    """One for each process, used by one thread.  Whoever has served a request takes one from
    `left`, and calls `count` where nothing is left."""

    __slots__ = ("_counters", "_metrics", "_name_of", "_random", "_seen", "left")

    def __init__(
        self, metrics: Metrics | None = None, name_of: Callable[[Any], str] | None = None
    ) -> None:
        """`name_of` tells a request's tool; without it nothing is ever due."""
        self._metrics = metrics
        self._name_of = name_of
        self._random = random.Random()
        self._seen = 0
        self._counters: dict[str, Counter] = {}
        self.left: float = 1 if name_of is not None else math.inf

    def count(self, request: Any, *, enter: bool) -> None:
        """Counts the request's tool; a new one apart only if `enter`: guesses do not."""
        assert self._name_of is not None
        exact = self._seen < EXACT
        self._seen += 1
        # On average `EVERY`.
        self.left = 1 if self._seen < EXACT else self._random.randrange(1, 2 * EVERY)
        said = self._name_of(request)
        counter = self._counters.get(said)
        if counter is None:
            counter = self._counter(plain(said, MAX_NAME) or UNKNOWN, enter=enter)
        counter.add(1 if exact else EVERY)

    def _counter(self, name: str, *, enter: bool) -> Counter:
        assert self._metrics is not None
        if (known := self._counters.get(name)) is not None:
            return known
        apart = enter and len(self._counters) < MAX_TOOLS
        counter = self._metrics.counter(families.TOOL_REQUESTS, name if apart else OTHER)
        if apart:
            self._counters[name] = counter
        return counter


def product(user_agent: str) -> str:
    """The first product of a User-Agent (RFC 9110, 10.1.5): ``ccache 4.9``."""
    found = _PRODUCT.match(user_agent)
    return "" if found is None else " ".join(part for part in found.groups() if part)


_PRODUCT = re.compile(r"\s*([!#$%&'*+.^_`|~\w-]{1,64})(?:/([!#$%&'*+.^_`|~\w-]{1,64}))?")
