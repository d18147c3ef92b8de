"""The machine that figures were taken on: what a reader needs to compare them with others.

Rule: facts about the hardware, the system and the libraries in use; nothing that
names the machine or whoever runs it.
"""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("grpcio", "protobuf", "lmdb", "uvloop")


def describe(directory: Path) -> dict[str, Any]:
    """`directory`: where the servers keep their blobs; its file system is one of the facts."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "file_system": file_system(Path("/proc/mounts").read_text(), directory.resolve()),
        "python": platform.python_version(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
        "load_before": round(os.getloadavg()[0], 2),
    }


def file_system(mounts: str, directory: Path) -> str:
    """The type of the file system that holds `directory`, from /proc/mounts's text."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        point, found = line.split()[1:3]
        # Blanks in mount points are written as octal escapes (proc_pid_mounts(5)).
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
        if directory.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, found
    return kind


def _processor() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
