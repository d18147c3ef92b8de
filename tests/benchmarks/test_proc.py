"""What is read from /proc: the parsers, and whose processes belong to a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

import pytest

from benchmarks import proc
from benchmarks.proc import Memory, Stat


def stat_line(pid: int, name: str, parent: int, session: int, times: tuple[int, ...]) -> str:
    return (
        f"{pid} ({name}) S {parent} {pid} {session} 0 -1 4194560 1 2 3 4 "
        f"{' '.join(map(str, times))} 20 0 1 0 5 6 7 8\n"
    )


@pytest.mark.parametrize("name", ["cas", "a b", "a) b", "(x)) S 9 9", ""])
def test_a_name_cannot_shift_the_fields(name: str) -> None:
    line = stat_line(12, name, 3, 4, (100, 20, 3, 1))
    assert proc.parse_stat(line) == Stat(12, name, "S", 3, 4, ticks=124)


def test_the_kernels_own_line_parses() -> None:
    with open("/proc/self/stat") as file:
        found = proc.parse_stat(file.read())
    assert (found.pid, found.parent) == (os.getpid(), os.getppid())
    assert found.session == os.getsid(0)


def test_memory_is_in_bytes_and_absent_fields_are_nothing() -> None:
    text = "Name:\tcas\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon:\t     512 kB\n"
    assert proc.parse_memory(text) == Memory(1 << 20, 2 << 20, 512 << 10)
    assert proc.parse_memory("Name:\tkthreadd\n") == Memory(0, 0, 0)


def test_members_are_descendants_and_the_session() -> None:
    parents = {1: (0, 1), 10: (1, 10), 11: (10, 10), 12: (11, 99), 13: (1, 10), 20: (1, 20)}
    stats = {pid: Stat(pid, "", "S", parent, sid, 0) for pid, (parent, sid) in parents.items()}
    # 12 left the session, 13 lost its parent; both are still the server's.
    assert proc.members(stats, 10) == {10, 11, 12, 13}
    assert proc.members(stats, 77) == set()


def test_totals() -> None:
    assert proc.total([Memory(1, 2, 3), Memory(10, 20, 30)]) == Memory(11, 22, 33)
    assert proc.total([]) == Memory(0, 0, 0)


def wait_until_gone(pids: Iterable[int]) -> None:
    """Killed processes end a moment later; one whose parent went first may stay a zombie."""
    until = time.monotonic() + 20
    for pid in pids:
        while (found := proc.snapshot().get(pid)) is not None and found.state != "Z":
            assert time.monotonic() < until, f"{found} is still there"
            time.sleep(0.02)


_TREE = """
import subprocess, sys
leaf = "import time; print('up', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", leaf]).wait()
"""


def test_a_real_tree_is_found_whole_and_has_memory() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _TREE], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        found = proc.memory(process.pid)
        assert len(found) == 2
        assert next(iter(found)) == process.pid
        assert all(0 < part.anonymous < part.resident <= part.peak for part in found.values())
        assert proc.cpu_seconds(process.pid) >= 0
        proc.reset_peaks(process.pid)
        assert proc.memory(process.pid).keys() == found.keys()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    wait_until_gone(found)
