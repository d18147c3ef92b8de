"""Progress on stderr: a bar with rate and time left on a terminal, now and then a line elsewhere.

Rule: reads a `cas.client.progress.Progress` that someone else raises; decides nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cas.client.progress import Progress

BAR_SECONDS = 0.15
LINE_SECONDS = 10.0
"""A log keeps every line: few of them, and none for what is over soon."""


@asynccontextmanager
async def shown(options: argparse.Namespace, what: str) -> AsyncIterator[Progress]:
    """Shows how far the work in the block is."""
    import asyncio

    from cas.client.progress import Progress

    progress = Progress(what)
    show = None
    if not options.quiet:
        show = asyncio.ensure_future((_bar if sys.stderr.isatty() else _lines)(progress))
    try:
        yield progress
    finally:
        if show is not None:
            show.cancel()
            with suppress(asyncio.CancelledError):
                await show


async def _bar(progress: Progress) -> None:
    import asyncio

    from tqdm import tqdm

    tqdm.monitor_interval = 0
    with tqdm(
        desc=progress.what,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=False,
        dynamic_ncols=True,
        file=sys.stderr,
    ) as bar:
        while True:
            bar.total = progress.total or None
            bar.n = progress.done
            bar.set_postfix_str(f"{progress.files_done}/{progress.files} files", refresh=True)
            await asyncio.sleep(BAR_SECONDS)


async def _lines(progress: Progress) -> None:
    import asyncio

    began = time.monotonic()
    while True:
        await asyncio.sleep(LINE_SECONDS)
        print(line(progress, time.monotonic() - began), file=sys.stderr, flush=True)


def line(progress: Progress, seconds: float) -> str:
    """``pushing: 12 of 40 MiB, 3 of 9 files, 6.0 MiB/s, 5 s left``"""
    rate = progress.done / seconds if seconds > 0 else 0.0
    parts = [
        f"{progress.what}: {progress.done / 2**20:.0f} of {progress.total / 2**20:.0f} MiB",
        f"{progress.files_done} of {progress.files} files",
        f"{rate / 2**20:.1f} MiB/s",
    ]
    if rate and progress.total > progress.done:
        parts.append(f"{(progress.total - progress.done) / rate:.0f} s left")
    return ", ".join(parts)


def size(count: int) -> str:
    """Bytes as people read them."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"
