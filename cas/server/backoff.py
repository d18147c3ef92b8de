"""How long to wait before a worker that died is started again.

Rule: pure arithmetic; the clock and the dice are the caller's.
"""

from __future__ import annotations

FIRST = 0.2
"""Seconds before the first restart: a single crash costs next to nothing."""

LONGEST = 30.0
"""Seconds that no restart waits beyond: a cause that an operator removes is soon noticed."""

HEALTHY_AFTER = 60.0
"""Seconds of service after which earlier failures no longer count."""


def delay(failures: int, dice: float) -> float:
    """Seconds to wait after `failures` (at least 1) failures in a row.

    Doubles from `FIRST` to `LONGEST`; `dice`, from 0 to 1, takes away up to half, so that
    workers which died together do not return together.
    """
    # Bounded exponent: 2.0**1100 would overflow.
    whole = min(LONGEST, FIRST * 2.0 ** min(failures - 1, 30))
    return whole * (1 - dice / 2)
