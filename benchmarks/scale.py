"""Scale: what an index of many entries costs at start, in memory and for each lookup.

Rule: our server only; entries come from `benchmarks.filler` and are found again by
`benchmarks.population`.  Before each start the index's pages are dropped from the
page cache, so that the time to readiness is a cold one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import proc
from benchmarks.compare import Drive, Report
from benchmarks.generator import PythonLoad
from benchmarks.servers import Kind, running, scratch
from benchmarks.workloads import parse
from cas.index.hints import HINTS_FILE, LEAST_ENTRIES

_FIND = parse("fmb:1000")

WARMING = 2
"""Loads between the first and those that count, …"""
COUNTED = 5
"""… of which the median is told."""

HINTS_SECONDS = 900.0
REST_SECONDS = 300.0
"""Most that is waited for either."""


@dataclass(frozen=True, slots=True)
class Scale:
    """One index size.  Bytes, seconds, microseconds; memory is that of the process with
    the most (a worker), `anonymous` the part of it that is not the index mapped.  `first_find`
    is the same load just after the start: it has every page of the index read from disk."""

    entries: int
    fill_seconds: float
    index_bytes: int
    ready_seconds: float
    idle_resident: int
    idle_anonymous: int
    loaded_resident: int
    loaded_anonymous: int
    first_find_cpu_us: float
    find_cpu_us: float
    find_p99_ms: float
    problem: str


def scale(kind: Kind, entries: Sequence[int], drive: Drive, report: Report) -> dict[str, Any]:
    """One `Scale` for each size, ascending."""
    return {
        "server": kind.name,
        "sizes": [asdict(_one(kind, count, drive, report)) for count in sorted(entries)],
    }


def _one(kind: Kind, count: int, drive: Drive, report: Report) -> Scale:
    with scratch(drive.directory) as directory:
        store = directory / "store"
        report(f"scale  filling {count:,} entries")
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "benchmarks.filler", str(store), str(count)],
            cwd=Path(__file__).parent.parent,
            check=True,
        )
        filled = time.monotonic() - began
        index_bytes = _forget_pages(store)
        with running(kind, directory) as server:
            idle = _largest(server.pid)
            load = PythonLoad(server, drive.processes, population=count)
            try:
                first = load.run(_FIND, 16, drive.seconds)
                _await_hints(store, count)
                _await_rest(server.pid)
                for _ in range(WARMING):
                    load.run(_FIND, 16, drive.seconds)
                samples = [load.run(_FIND, 16, drive.seconds) for _ in range(COUNTED)]
            finally:
                load.close()
            loaded = _largest(server.pid)
            sample = sorted(samples, key=lambda sample: sample.cpu_us)[COUNTED // 2]
        result = Scale(
            entries=count,
            fill_seconds=filled,
            index_bytes=index_bytes,
            ready_seconds=server.ready_seconds,
            idle_resident=idle.resident,
            idle_anonymous=idle.anonymous,
            loaded_resident=loaded.resident,
            loaded_anonymous=loaded.anonymous,
            first_find_cpu_us=first.cpu_us,
            find_cpu_us=sample.cpu_us,
            find_p99_ms=sample.p99_ms,
            problem=sample.problem,
        )
        report(
            f"scale  {count:,} entries  ready in {result.ready_seconds:.2f} s"
            f"  FindMissing {result.find_cpu_us:,.0f} µs  {result.problem}"
        )
        return result


def _await_hints(store: Path, entries: int) -> None:
    """A server enters a large index in its hints with a tenth of a core."""
    until = time.monotonic() + HINTS_SECONDS
    while entries >= LEAST_ENTRIES and not (store / "index" / HINTS_FILE).exists():
        if time.monotonic() > until:
            raise TimeoutError(f"no hints within {HINTS_SECONDS:.0f} s")
        time.sleep(1)


def _await_rest(pid: int) -> None:
    """The janitor looks through a large index after each start, with a tenth of a core."""
    until = time.monotonic() + REST_SECONDS
    used = proc.cpu_seconds(pid)
    while time.monotonic() < until:
        time.sleep(2)
        before, used = used, proc.cpu_seconds(pid)
        if used - before < 0.05:
            return


def _largest(pid: int) -> proc.Memory:
    return max(proc.memory(pid).values(), key=lambda memory: memory.resident)


def _forget_pages(store: Path) -> int:
    """Drops the store's files from the page cache; the bytes that they take on disk."""
    taken = 0
    for path in store.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                taken += os.fstat(fd).st_blocks * 512
            finally:
                os.close(fd)
    return taken
