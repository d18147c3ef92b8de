"""How many cores there are to use.

Rule: reads what the kernel says, decides nothing.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""cgroup v2: ``quota period`` in microseconds, or ``max period``; a container sees its own."""


def available(quota: Path = QUOTA) -> int:
    """Cores that this process may run on, and has time for: a container limited to two of a
    64-core machine's cores gets 2.  At least 1."""
    runnable = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text("ascii").split()
        return max(1, min(runnable, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError):
        # No cgroup v2, or "max".
        return runnable
