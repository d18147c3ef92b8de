"""What the kernel says about a server's processes: CPU time and memory from /proc.

Rule: the only reader of /proc.  Parsers are pure and take text; a process that
ends while it is being read counts as absent.  A server is its first process, all
descendants, and whatever else runs in the session that it was started in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat in use (proc_pid_stat(5)); `ticks` of CPU include those
    of children that it has waited for, so that a restart inside a server loses nothing."""

    pid: int
    name: str
    state: str
    parent: int
    session: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process: resident now, at its peak, and the part that no file backs."""

    resident: int
    peak: int
    anonymous: int


def parse_stat(text: str) -> Stat:
    """The name may itself hold blanks and brackets: it ends at the last closing bracket."""
    opening, closing = text.index("("), text.rindex(")")
    fields = text[closing + 1 :].split()
    return Stat(
        pid=int(text[:opening]),
        name=text[opening + 1 : closing],
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        ticks=sum(int(field) for field in fields[11:15]),
    )


def parse_memory(text: str) -> Memory:
    """From /proc/PID/status; a field that is absent (a kernel thread, a zombie) is 0."""
    found = {"VmRSS": 0, "VmHWM": 0, "RssAnon": 0}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key in found:
            found[key] = int(value.split()[0]) * 1024
    return Memory(found["VmRSS"], found["VmHWM"], found["RssAnon"])


def members(stats: Mapping[int, Stat], root: int) -> set[int]:
    """The pids of the server whose first process is `root`."""
    inside = {pid for pid, stat in stats.items() if pid == root or stat.session == root}
    while True:
        more = {pid for pid, stat in stats.items() if stat.parent in inside} - inside
        if not more:
            return inside
        inside |= more


def snapshot() -> dict[int, Stat]:
    """Every process that there is."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = parse_stat((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def cpu_seconds(root: int) -> float:
    """CPU time, user and system, that the server has used since it started.

    The kernel counts in ticks of 10 ms: too coarse for a run that uses less than a second.
    """
    stats = snapshot()
    return sum(stats[pid].ticks for pid in members(stats, root)) / os.sysconf("SC_CLK_TCK")


def memory(root: int) -> dict[int, Memory]:
    """The memory of each of the server's processes, by pid, the first process first."""
    found = {}
    stats = snapshot()
    for pid in sorted(members(stats, root), key=lambda pid: (pid != root, pid)):
        try:
            found[pid] = parse_memory((PROC / str(pid) / "status").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def total(parts: Iterable[Memory]) -> Memory:
    """The sum; pages that two processes share are counted in both."""
    parts = list(parts)
    return Memory(
        sum(part.resident for part in parts),
        sum(part.peak for part in parts),
        sum(part.anonymous for part in parts),
    )


def reset_peaks(root: int) -> None:
    """Makes each process's peak start anew from what is resident now (proc_pid_clear_refs(5))."""
    for pid in members(snapshot(), root):
        try:
            (PROC / str(pid) / "clear_refs").write_text("5")
        except (FileNotFoundError, ProcessLookupError):
            continue
