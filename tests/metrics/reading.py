"""What a process has counted, for tests: helpers only."""

from __future__ import annotations

from cas.metrics.families import Family
from cas.metrics.instruments import Metrics


def numbers(metrics: Metrics, family: Family, *labels: str) -> list[float]:
    """The numbers of one series: one, or a histogram's buckets and sum."""
    slot = metrics.sheet.slot(family, labels)
    return list(metrics.sheet.numbers[slot : slot + family.width])


def value(metrics: Metrics, family: Family, *labels: str) -> float:
    """Of a histogram: how many values it has seen."""
    found = numbers(metrics, family, *labels)
    return sum(found[:-1]) if family.kind == "histogram" else found[0]
