"""The janitor process: the composition root of what looks after the store.

Rule: as `cas.server.worker`, for `cas.store.janitor`; serves nobody, and imports no RPC.
One runs for each server.  Its loop gives its own signs of life: each of its steps is short.
"""

from __future__ import annotations

import contextlib
import sys
import time

from cas.config import Config
from cas.index.lmdb import Index
from cas.metrics.instruments import Metrics
from cas.server import process
from cas.server.link import Link
from cas.server.messages import BEAT, READY, Event, Task
from cas.server.process import BEAT_INTERVAL
from cas.store.files import Files
from cas.store.janitor import Janitor
from cas.store.layout import Layout
from cas.store.opening import open_index
from cas.store.scrub import PacedScrub


def serve(task: Task, link: Link, metrics: Metrics) -> None:
    """Start, look after the store, drain."""
    with contextlib.ExitStack() as opened:
        index = _index(task.config)
        opened.callback(index.close)
        janitor = Janitor(index)
        scrub = _scrub(task.config, index)

        link.tell(Event(READY))
        while not link.stop_requested(BEAT_INTERVAL):
            janitor.step(time.monotonic())
            if scrub is not None:
                scrub.step()
            link.tell(Event(BEAT))


def _index(config: Config) -> Index:
    strict = config.durability == "strict"
    return open_index(Layout(config.dir), Files(), strict=strict)


def _scrub(config: Config, index: Index) -> PacedScrub | None:
    if not config.scrub_period:
        return None
    return PacedScrub(Layout(config.dir), index, Files(), config.scrub_period)


if __name__ == "__main__":
    sys.exit(process.main(sys.argv[1:], serve))
