"""What the supervisor counts: processes, and how they ended.

Rule: holds the board (`cas.metrics.board`) and says which process has which of its sheets;
decides nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from cas.metrics import families
from cas.metrics.board import new_board
from cas.metrics.instruments import Metrics
from cas.server.messages import Role


class Tally:
    """One for each run of a server."""

    def __init__(self) -> None:
        self._board = new_board()
        sheet = self._board.sheet(0)
        sheet.belongs_to("supervisor", 0)
        self._metrics = Metrics(sheet)
        self._metrics.gauge(families.STARTED_AT).set(time.time())
        # Not the root's, whose handlers go when the log is configured.
        self._log = logging.getLogger("cas")
        self._log_counter = self._metrics.count_log(self._log)
        self._sheets: dict[tuple[Role, int], int] = {}

    @property
    def fd(self) -> int:
        """The board, for children."""
        return self._board.fd

    def sheet(self, role: Role, number: int) -> int:
        """The sheet of that process, and of those that take its place."""
        return self._sheets.setdefault((role, number), len(self._sheets) + 1)

    def processes(self, wanted: Mapping[Role, int], ready: Mapping[Role, int]) -> None:
        """By role, how many there should be and how many serve."""
        for role, count in wanted.items():
            self._metrics.gauge(families.WORKERS_WANTED, role).set(count)
            self._metrics.gauge(families.WORKERS, role).set(ready.get(role, 0))

    def ended(self, role: Role, number: int, how: str | None) -> None:
        """A process is gone: ``left`` when it was asked to, ``died``, ``hung``; None for one
        that the server's own end has ended."""
        self._board.sheet(self.sheet(role, number)).abandoned()
        if how is not None:
            self._metrics.counter(families.WORKER_ENDS, role, how).add()

    def close(self) -> None:
        self._log.removeHandler(self._log_counter)
        self._board.close()
