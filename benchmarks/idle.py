"""Idle: what a server costs while nobody asks it anything.

Rule: each server is started on an empty directory, given time to settle, and then
only watched.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks import proc
from benchmarks.compare import Drive, Report
from benchmarks.servers import DidNotStart, Kind, running, scratch

SETTLE_SECONDS = 3.0


def idle(kinds: Sequence[Kind], seconds: float, drive: Drive, report: Report) -> dict[str, Any]:
    """For each server: CPU seconds a minute, memory of all its processes, their number."""
    servers = {}
    for kind in kinds:
        try:
            servers[kind.name] = _watch(kind, seconds, drive)
        except DidNotStart as error:
            report(str(error))
            continue
        report(
            f"idle  {kind.name}  {servers[kind.name]['cpu_seconds_a_minute']:.3f} CPU s a minute"
        )
    return {"seconds": seconds, "servers": servers}


def _watch(kind: Kind, seconds: float, drive: Drive) -> dict[str, Any]:
    with scratch(drive.directory) as directory, running(kind, directory) as server:
        time.sleep(SETTLE_SECONDS)
        before, began = proc.cpu_seconds(server.pid), time.monotonic()
        time.sleep(seconds)
        used, passed = proc.cpu_seconds(server.pid) - before, time.monotonic() - began
        parts = proc.memory(server.pid)
        memory = proc.total(parts.values())
        return {
            "cpu_seconds_a_minute": used / passed * 60,
            "processes": len(parts),
            "resident": memory.resident,
            "anonymous": memory.anonymous,
        }
