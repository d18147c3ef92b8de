"""A build cache's day, made up: the same one each time.

Rule: deterministic; no trace of a real cache is public that names sizes and times of single blobs,
so this one is put together of what such caches see, each with a seed's dice:

* builds: a project's working set in one burst of a minute or two, most of it as in its last build,
  some of it new, because its sources changed;
* tools: compilers and base images that every build may fetch, some far more often than others
  (Zipf, exponent 0.9);
* scans: now and then somebody walks through much of what there is once, oldest first, as a
  backup or a crawler does, and spoils the order.

Sizes are log-normal, a median of 8 KiB with a tail of some MiB, as REAPI caches report them.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple


class Request(NamedTuple):
    """Somebody asks for a blob, and brings it if it is missing."""

    minute: int
    key: int
    size: int


def day(
    seed: int = 1, *, builds: int = 900, projects: int = 25, working_set: int = 250
) -> Iterator[Request]:
    """About 230 requests for each build."""
    dice = random.Random(seed)
    sizes: dict[int, int] = {}
    keys = itertools.count(10_000)

    def ask(minute: int, key: int) -> Request:
        if key not in sizes:
            sizes[key] = min(8 << 20, int(dice.lognormvariate(9.0, 1.6)) + 1)
        return Request(minute, key, sizes[key])

    tools = list(itertools.accumulate(1 / rank**0.9 for rank in range(1, 2_000)))
    sets = [[next(keys) for _ in range(working_set)] for _ in range(projects)]
    popular = list(itertools.accumulate(1 / rank for rank in range(1, projects + 1)))
    minute = 1_000
    for build in range(builds):
        minute += int(dice.expovariate(0.6))
        project = sets[bisect.bisect(popular, dice.random() * popular[-1])]
        for place in range(working_set):
            if dice.random() < 0.08:
                project[place] = next(keys)
            if dice.random() < 0.8:
                yield ask(minute + place * 2 // working_set, project[place])
        for _ in range(30):
            yield ask(minute + 1, bisect.bisect(tools, dice.random() * tools[-1]))
        if build % 300 == 299:
            known = sorted(sizes)
            for key in known[: len(known) // 2 : 3]:
                yield ask(minute + 2, key)
