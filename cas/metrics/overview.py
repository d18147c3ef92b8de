"""What the page at ``/`` shows, as JSON.

Rule: reads the board, counts nothing; everything is bounded, whatever clients have sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cas.metrics import families, readiness, recent
from cas.metrics.board import Board
from cas.metrics.exposition import processes, version
from cas.metrics.families import Family
from cas.metrics.history import HOUR, LEVELS, RINGS, SUMS, History, Ring, sample, since
from cas.metrics.readiness import Totals, total
from cas.metrics.recent import Note

SHOWN = 12
"""Tools, and instances."""
NOTES = 60


class Overview(NamedTuple):
    """The server at a moment."""

    shown: dict[str, Any]
    """For every reader: times in seconds since the epoch, sizes in bytes."""
    notes: list[Note]
    """What went wrong: for those only who may read in the instance that it is of."""
    instances: list[str]
    """Names that are known."""


def now(board: Board, clock: Callable[[], float] = time.time) -> Overview:
    """What there is now, and what each window's tools and instances did."""
    at = clock()
    pages = board.read()
    totals = total(pages)
    latest = sample(pages, at)
    history = History(board)
    minutes = history.read(HOUR, at)
    is_ready, reason = readiness.of(totals, at)
    started = totals.value(families.STARTED_AT)
    windows = {}
    for ring in RINGS:
        first = next(iter(minutes if ring is HOUR else history.read(ring, at)), latest)
        windows[ring.name] = {
            "since": first.at,
            "tools": list(since(first.tools, latest.tools))[:SHOWN],
            "instances": list(since(first.instances, latest.instances))[:SHOWN],
        }
    shown = {
        "at": at,
        "version": version("cas-cache"),
        "ready": is_ready,
        "reason": reason,
        "started_at": started or None,
        "totals": latest.numbers,
        "sampled_at": minutes[-1].at if minutes else None,
        "full": bool(totals.value(families.STORE_FULL)),
        "uploads_open": int(totals.value(families.UPLOADS_OPEN)),
        "scrub": {
            "bad": int(totals.value(families.SCRUB_BAD)),
            "completed_at": totals.value(families.SCRUBBED_AT) or None,
        },
        "windows": windows,
        "roles": {
            labels[0]: [int(totals.value(families.WORKERS, *labels)), int(wanted)]
            for labels, (wanted,) in sorted(totals[families.WORKERS_WANTED.name].items())
        },
        "processes": [
            [page.role, page.number, page.pid, *observed] for page, observed in processes(pages)
        ],
        "ended": int(totals.sum(families.WORKER_ENDS)),
        "sizes": {
            "bounds": families.WRITTEN_SIZES.bounds,
            "written": _buckets(totals, families.WRITTEN_SIZES),
            "read": _buckets(totals, families.READ_SIZES),
        },
        "evicted_ages": {
            "bounds": families.EVICTED_AGE.bounds,
            "entries": _buckets(totals, families.EVICTED_AGE),
        },
    }
    return Overview(shown, recent.read(board)[:NOTES], sorted(latest.instances))


def past(board: Board, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """The samples of the last hour and day, in columns: `at`, then the names of `SUMS` and
    `LEVELS`."""
    at = clock()
    history = History(board)
    return {ring.name: _columns(history, ring, at) for ring in RINGS}


def _columns(history: History, ring: Ring, at: float) -> dict[str, Any]:
    samples = history.read(ring, at)
    columns: dict[str, Any] = {"step": ring.step, "span": ring.span}
    columns["at"] = [round(one.at) for one in samples]
    for name in (*SUMS, *LEVELS):
        columns[name] = [one.numbers[name] for one in samples]
    return columns


def _buckets(totals: Totals, histogram: Family) -> Sequence[float]:
    """Values under each bound, and those above all."""
    found = totals[histogram.name].get((), [0.0] * histogram.width)
    return found[:-1]
