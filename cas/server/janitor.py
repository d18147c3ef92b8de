"""The janitor process: the composition root of what looks after the store.

Rule: as `cas.server.worker`, for `cas.store.janitor` and `cas.store.scrub`, and where writes go
upstream later, for `cas.upstream.draining`; serves nobody, and imports no RPC.  One runs for each
server.  Its loop gives its own signs of life: each of its steps is short.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable

from cas.config import Config
from cas.index.lmdb import Index
from cas.metrics import families
from cas.metrics.board import Board
from cas.metrics.instruments import Metrics
from cas.metrics.readiness import total
from cas.server import process, stores
from cas.server.link import Link
from cas.server.messages import BEAT, READY, Event, Task
from cas.server.process import BEAT_INTERVAL
from cas.store import hits
from cas.store.files import Files
from cas.store.janitor import Janitor
from cas.store.layout import Layout
from cas.store.opening import open_index
from cas.store.scrub import PacedScrub
from cas.store.space import Space
from cas.store.usage import Meter

log = logging.getLogger("cas.server")


def serve(task: Task, link: Link, metrics: Metrics) -> None:
    """Start, look after the store, drain."""
    config = task.config
    layout = Layout(config.dir)
    files = Files()
    with contextlib.ExitStack() as opened:
        queue = stores.queue_limits(config) is not None
        index = open_index(layout, files, strict=config.durability == "strict", queue=queue)
        opened.callback(index.close)
        space = Space(layout.space, files, takes=False)
        opened.callback(space.close)
        meter = Meter(layout, index, space, stores.size_limits(config))
        options = stores.janitor_options(config)
        janitor = Janitor(layout, index, files, space, meter, options, metrics=metrics)
        scrub = _scrub(config, layout, index, files, metrics)
        sweep = stores.open_sweep(config, index, files, metrics)
        if sweep is not None:
            opened.callback(sweep.close)
        keeper = _hits(task, layout, files)
        drain = None
        sends = stores.open_drain(
            layout, index, files, config, metrics, stores.nodes_of(config, task.node)
        )
        if sends is not None:
            drain, close = sends
            opened.callback(close)

        link.tell(Event(READY))
        beat_due = janitor_due = 0.0
        pause = 0.0
        while not link.stop_requested(pause):
            if time.monotonic() >= janitor_due:
                janitor_due = janitor.step() + time.monotonic()
            pause = max(0.0, janitor_due - time.monotonic())
            if drain is not None:
                pause = min(pause, drain.step())
            if time.monotonic() >= beat_due:
                index.check()
                link.tell(Event(BEAT))
                beat_due = time.monotonic() + BEAT_INTERVAL
                if scrub is not None:
                    scrub.step()
                if sweep is not None:
                    sweep.step()
                _note(keeper.step)
        _note(keeper.save)


def _hits(task: Task, layout: Layout, files: Files) -> hits.Keeper:
    board = Board(task.board)
    started = total(board.read()).value(families.STARTED_AT)
    return hits.Keeper(layout, files, started, lambda: hits.counted(total(board.read())))


def _note(save: Callable[[], None]) -> None:
    try:
        save()
    except OSError as error:
        log.error("hits cannot be written down", extra={"error": str(error)})


def _scrub(
    config: Config, layout: Layout, index: Index, files: Files, metrics: Metrics
) -> PacedScrub | None:
    if not config.scrub_period:
        return None
    return PacedScrub(layout, index, files, config.scrub_period, metrics=metrics)


if __name__ == "__main__":
    sys.exit(process.main(sys.argv[1:], serve))
