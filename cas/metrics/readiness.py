"""Sums over all processes, and what follows from them: can the server write?

Rule: pure arithmetic on what was read of the board; light enough for every process.
"""

from __future__ import annotations

from collections.abc import Sequence

from cas.metrics import families
from cas.metrics.board import Page
from cas.metrics.families import Family

FAILURE_COUNTS = 30.0
"""Seconds for which a failed commit tells clients to go elsewhere, unless one succeeds: then it
is tried again, since without writes nothing would ever succeed."""

_COUNTED = {family.name: family for family in families.COUNTED}


class Totals(dict[str, dict[tuple[str, ...], list[float]]]):
    """Family name → label values → numbers, of all processes together."""

    def value(self, family: Family, *labels: str) -> float:
        """A counter's or a gauge's value, 0 where nobody has entered one."""
        return self[family.name].get(labels, [0.0])[0]

    def sum(self, family: Family) -> float:
        """Over all label values."""
        return sum([numbers[0] for numbers in self[family.name].values()])


def total(pages: Sequence[Page]) -> Totals:
    totals = Totals({family.name: {} for family in families.COUNTED})
    for page in pages:
        for series, numbers in page.numbers.items():
            family = _COUNTED.get(series.family)
            if family is None or len(numbers) != family.width:
                continue  # a process of another release, started after an upgrade in place
            known = totals[family.name]
            before = known.get(series.labels)
            if before is None:
                known[series.labels] = numbers
            elif family.latest:
                known[series.labels] = [max(before[0], numbers[0])]
            else:
                known[series.labels] = [a + b for a, b in zip(before, numbers, strict=True)]
    return totals


def of(totals: Totals, now: float) -> tuple[bool, str | None]:
    """Whether the server serves and can write; if not, why."""
    if not totals.value(families.WORKERS, "grpc"):
        return False, "no worker serves"
    return writable(totals, now)


def writable(totals: Totals, now: float) -> tuple[bool, str | None]:
    """Whether the store takes writes; if not, why.  `now` in seconds since the epoch."""
    if totals.value(families.STORE_FULL):
        return False, "the store has no room"
    failed = totals.value(families.COMMIT_FAILED_AT)
    if failed > totals.value(families.COMMIT_DONE_AT) and now - failed < FAILURE_COUNTS:
        return False, "the last write could not be committed"
    return True, None
