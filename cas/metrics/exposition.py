"""What was counted, as Prometheus reads it, as JSON, and as one answer: can the server write?

Rule: reads the board and the system, counts nothing.  For the HTTP front: it imports
prometheus-client, which writes the text format, and takes milliseconds.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cas.metrics import families, readiness
from cas.metrics.board import Board, Page
from cas.metrics.families import Family
from cas.metrics.readiness import total

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of what `render` returns."""

LATE_SECONDS = 60.0
"""For which writes may wait to be sent upstream before `/readyz` says so."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


def render(board: Board, *, clock: float | None = None) -> bytes:
    """Everything in Prometheus's text format, over all processes of the server."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(_everything(board.read(), _now(clock))))
    return generate_latest(registry)


def ready(board: Board) -> tuple[bool, str | None]:
    """Whether the server serves and can write; if not, why."""
    return readiness.of(total(board.read()), time.time())


def upstream_down(board: Board) -> str | None:
    """What to say where the object store behind the server cannot be had, or does not keep up."""
    totals = total(board.read())
    told = []
    if totals.value(families.UPSTREAM_DOWN):
        told.append("upstream fails: what is here is served")
    age = totals.value(families.UNSENT_AGE)
    if age >= LATE_SECONDS:
        waiting = int(totals.value(families.UNSENT))
        told.append(f"{waiting} writes wait to be sent upstream, the oldest for {age:.0f} s")
    return "; ".join(told) or None


def status(board: Board, *, upstream: str = "", clock: float | None = None) -> dict[str, Any]:
    """What an operator asks first, for JSON: sizes in bytes, times in seconds.  `upstream` is what
    lies behind the server, if anything."""
    now = _now(clock)
    pages = board.read()
    totals = total(pages)
    is_ready, why = readiness.of(totals, now)
    hits = totals.value(families.ACTION_LOOKUPS, "hit")
    lookups = hits + totals.value(families.ACTION_LOOKUPS, "miss")
    started = totals.value(families.STARTED_AT)
    requests: dict[str, dict[str, int]] = {}
    for (_, method, code, _), numbers in totals[families.REQUESTS.name].items():
        codes = requests.setdefault(method, {})
        codes[code] = codes.get(code, 0) + int(numbers[0])
    return {
        "version": version("cas-cache"),
        "ready": is_ready,
        "reason": why,
        "started_at": started or None,
        "uptime": round(now - started, 1) if started else None,
        "processes": [
            {"role": page.role, "worker": page.number, "pid": page.pid, **observed._asdict()}
            for page, observed in processes(pages)
        ],
        "requests": requests,
        "upstream": {
            "url": upstream or None,
            "down": bool(totals.value(families.UPSTREAM_DOWN)),
            "down_since": totals.value(families.UPSTREAM_DOWN_SINCE) or None,
            "circle_seen": totals.value(families.UPSTREAM_CIRCLE) or None,
            "requests": int(totals.sum(families.UPSTREAM_REQUESTS)),
            "received_bytes": int(totals.value(families.UPSTREAM_BYTES, "received")),
            "sent_bytes": int(totals.value(families.UPSTREAM_BYTES, "sent")),
            "fetched_blobs": int(totals.value(families.UPSTREAM_FETCHED)),
            "action_hits": int(totals.value(families.UPSTREAM_ACTIONS)),
            "remembered_blobs": int(totals.value(families.UPSTREAM_REMEMBERED)),
            "index_requests": int(totals.sum(families.UPSTREAM_INDEX)),
            "bad_objects": int(totals.value(families.UPSTREAM_BAD)),
            "unsent": {
                "entries": int(totals.value(families.UNSENT)),
                "bytes": int(totals.value(families.UNSENT_BYTES)),
                "oldest_seconds": round(totals.value(families.UNSENT_AGE), 1),
                "sent": int(totals.value(families.UNSENT_ENDED, "sent")),
                "lost": int(totals.value(families.UNSENT_ENDED, "lost")),
            },
        },
        "action_cache": {
            "hits": int(hits),
            "misses": int(lookups - hits),
            "hit_ratio": round(hits / lookups, 4) if lookups else None,
        },
        "uploads": {
            "open": int(totals.value(families.UPLOADS_OPEN)),
            "resumed": int(totals.value(families.UPLOADS, "resumed")),
            "expired": int(totals.value(families.UPLOADS_EXPIRED)),
        },
        "store": {
            "used_bytes": int(totals.value(families.STORE_USED_BYTES)),
            "limit_bytes": int(totals.value(families.STORE_LIMIT_BYTES)),
            "entries": int(totals.value(families.STORE_ENTRIES)),
            "disk_free_bytes": int(totals.value(families.DISK_FREE_BYTES)),
            "full": bool(totals.value(families.STORE_FULL)),
            "evicted_entries": int(totals.sum(families.EVICTED)),
            "evicted_bytes": int(totals.value(families.EVICTED_BYTES)),
        },
        "scrub": {
            "checked_entries": int(totals.value(families.SCRUBBED)),
            "bad_entries": int(totals.value(families.SCRUB_BAD)),
            "completed_at": totals.value(families.SCRUBBED_AT) or None,
        },
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Collector(Collector):
    metrics: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        return self.metrics


def _everything(pages: Sequence[Page], now: float) -> list[Metric]:
    totals = total(pages)
    metrics = [_metric(family, totals[family.name]) for family in families.COUNTED]
    observed = list(processes(pages))

    def of_each(place: int) -> dict[tuple[str, ...], list[float]]:
        return {(page.role, str(page.number)): [seen[place]] for page, seen in observed}

    build = (version("cas-cache"), platform.python_version(), version("grpcio"), version("lmdb"))
    is_ready, _ = readiness.of(totals, now)
    return [
        *metrics,
        _metric(families.CPU_SECONDS, of_each(0)),
        _metric(families.RESIDENT_BYTES, of_each(1)),
        _metric(families.OPEN_FDS, of_each(2)),
        _metric(families.READY, {(): [float(is_ready)]}),
        _metric(families.BUILD, {build: [1.0]}),
    ]


def _metric(family: Family, series: Mapping[tuple[str, ...], Sequence[float]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        bounds = [*map(floatToGoString, family.bounds), "+Inf"]
        for labels, numbers in sorted(series.items()):
            counts = accumulate(numbers[:-1])
            histogram.add_metric(labels, list(zip(bounds, counts, strict=True)), numbers[-1])
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, numbers in sorted(series.items()):
        metric.add_metric(labels, numbers[0])
    return metric


class Observed(NamedTuple):
    """What the system says of a process."""

    cpu_seconds: float
    resident_bytes: int
    open_fds: int


def processes(pages: Sequence[Page]) -> Iterator[tuple[Page, Observed]]:
    """The processes that live, each with what proc(5) says of it."""
    for page in pages:
        try:
            with open(f"/proc/{page.pid}/stat") as file:
                # The second field, the command, may hold anything.
                fields = file.read().rpartition(")")[2].split()
            fds = len(os.listdir(f"/proc/{page.pid}/fd"))
        except OSError:
            continue  # gone, or between two of them
        cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        yield page, Observed(cpu, int(fields[21]) * _PAGE_SIZE, fds)


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _now(clock: float | None) -> float:
    return time.time() if clock is None else clock
