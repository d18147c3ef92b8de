"""What every torture does around its kills: a seed, a directory, clients that work meanwhile.

Rule: knows neither what is killed nor what is judged.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.torture.load import TIMEOUT, Pace, Worker


def seed_of(asked: int | None) -> int:
    """That which was asked for, or any."""
    return asked if asked is not None else random.SystemRandom().randrange(2**32)


def passes(
    name: str,
    run: Callable[[Path], bool],
    *,
    keep: bool,
    holds: str,
    parent: Path | str | None = None,
) -> bool:
    """Whether it does, in a directory of its own, which goes unless it failed and is to be kept."""
    directory = Path(tempfile.mkdtemp(prefix="cas-torture-", dir=parent))
    good = False
    try:
        good = run(directory)
    finally:
        if good or not keep:
            shutil.rmtree(directory)
        else:
            print(f"{holds} are in {directory}")
    print(f"{name}: passed" if good else f"{name}: FAILED", flush=True)
    return good


def busy(
    clients: Sequence[Worker], pace: Pace, kill: Callable[[], Counter[str]]
) -> tuple[Counter[str], int]:
    """What was killed while the clients worked, and how many of them hang."""
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        kills = kill()
    finally:
        pace.stop.set()
        for thread in threads:
            thread.join(2 * TIMEOUT)
    return kills, sum(thread.is_alive() for thread in threads)
