"""What every process that the supervisor starts does alike, whatever its role.

Rule: the frame of a process, never what it serves.  A role's module is a
`serve(task, link, metrics)` that reads from start to drain, top to bottom, and hands it to
`main`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import resource
import signal
from collections.abc import Callable, Sequence

from cas import log
from cas.errors import CasError
from cas.metrics.board import Board
from cas.metrics.instruments import Metrics
from cas.server.link import Link
from cas.server.messages import FATAL, Event, Task
from cas.upstream.leaving import leave

logger = logging.getLogger(__name__)

BEAT_INTERVAL = 1.0
"""Seconds between two signs of life, and for a process's loop to give one."""


def main(arguments: Sequence[str], serve: Callable[[Task, Link, Metrics], None]) -> int:
    """Serves as the supervisor's task says until told to drain; the exit code.

    `arguments` is what follows the module on the command line: the descriptor for events.
    """
    link = Link(int(arguments[0]))
    task = link.task()
    fields = {"role": task.role, "worker": task.number}
    log.configure(task.config.log_format, task.config.log_level, fields=fields)
    metrics = _metrics(task)
    # What a crash in native code, or a hang (the supervisor sends SIGUSR1), was doing.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _allow_open_files()
    code = 1
    try:
        with link.signals():
            serve(task, link, metrics)
        code = 0
    except (CasError, OSError) as error:
        link.tell(Event(FATAL, str(error)))
    except Exception as error:
        logger.exception("worker failed")
        link.tell(Event(FATAL, f"{type(error).__name__}: {error}"))
    if task.config.upstream:
        leave(code)
    return code


def _metrics(task: Task) -> Metrics:
    """What this process counts with: once for each process, which alone writes its sheet."""
    sheet = Board(task.board).sheet(task.sheet)
    sheet.belongs_to(task.role, task.number)
    metrics = Metrics(sheet)
    metrics.count_log(logging.getLogger())
    return metrics


def _allow_open_files() -> None:
    """Raises the limit of open files as far as it may go: connections, uploads and reads
    each hold one, and the usual 1,024 are few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
