"""From SIGKILL to ready, on a store of many entries: ``python -m tests.torture.ready``.

Rule: all processes are killed at once while they serve; the clock runs from there to the ready
line of the next start.  An empty store is measured beside it, alternately, so that what the size
costs can be told from what the machine is busy with.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.torture.server import ROOT, Server, free_port

ROUNDS = 7


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.ready")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--directory", help="where to work (default: the system's for such)")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="cas-ready-", dir=options.directory))
    try:
        seconds: dict[int, list[float]] = {}
        servers = {count: _server(directory / str(count), count) for count in (0, options.entries)}
        for _ in range(ROUNDS):
            for count, server in servers.items():
                seconds.setdefault(count, []).append(_once(server))
    finally:
        shutil.rmtree(directory)
    for count, taken in seconds.items():
        print(
            f"{count:>9,} entries: from SIGKILL to ready {statistics.median(taken):.2f} s "
            f"(best {min(taken):.2f}, worst {max(taken):.2f}, of {len(taken)})"
        )
    return 0


def _server(directory: Path, count: int) -> Server:
    directory.mkdir()
    if count:
        filler = [sys.executable, "-m", "benchmarks.filler", str(directory / "store"), str(count)]
        subprocess.run(filler, cwd=ROOT, check=True)
    port = free_port(random.Random())
    return Server(directory / "store", directory / "log", port, "--http", "none", "--workers", "2")


def _once(server: Server) -> float:
    server.start()
    time.sleep(1.0)
    began = time.monotonic()
    server.kill_all()
    server.start()
    taken = time.monotonic() - began
    server.kill_all()
    return taken


if __name__ == "__main__":
    sys.exit(main())
