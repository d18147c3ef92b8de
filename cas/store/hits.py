"""How often what clients asked for was there, kept across restarts for `cas stat`.

Rule: one file, DIR/hits, written by the janitor once in a while; what the last moments before a
kill brought may be missing from it.  Whatever is wrong with the file, counting begins anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from cas.metrics import families
from cas.metrics.readiness import Totals
from cas.store.files import Files
from cas.store.layout import Layout

SAVE_SECONDS: Final = 60.0

Counts = dict[str, int]
"""By `NAMES`, how many lookups."""

_SERIES: Final = {
    "action_hits": (families.ACTION_LOOKUPS, "hit"),
    "action_misses": (families.ACTION_LOOKUPS, "miss"),
    "value_hits": (families.VALUE_LOOKUPS, "hit"),
    "value_misses": (families.VALUE_LOOKUPS, "miss"),
}
NAMES: Final = tuple(_SERIES)


def counted(totals: Totals) -> Counts:
    """What a server has counted since its start."""
    return {name: int(totals.value(*series)) for name, series in _SERIES.items()}


@dataclass(slots=True)
class Kept:
    """What the file says."""

    since: float
    """When counting began: seconds since the epoch."""
    run: float
    """When the server started that wrote it."""
    before: Counts
    """Of the servers before that one, …"""
    during: Counts
    """… and of that one."""

    def all(self) -> Counts:
        return {name: self.before[name] + self.during[name] for name in NAMES}


def load(layout: Layout) -> Kept | None:
    """None where there is no file, or none that can be read."""
    try:
        found: Any = json.loads(layout.hits.read_bytes())
        before, during = (_checked(found[part]) for part in ("before", "during"))
        return Kept(float(found["since"]), float(found["run"]), before, during)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _checked(counts: Any) -> Counts:
    return {name: int(counts[name]) for name in NAMES}


def _none() -> Counts:
    return dict.fromkeys(NAMES, 0)


class Keeper:
    """Keeps the file, for a server that started at `run`; several of one server, one after
    the other, may."""

    def __init__(
        self,
        layout: Layout,
        files: Files,
        run: float,
        count: Callable[[], Counts],
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count` tells what that server has counted by now."""
        self._layout = layout
        self._files = files
        self._count = count
        self._timer = timer
        self._due = timer() + SAVE_SECONDS
        kept = load(layout)
        if kept is None:
            kept = Kept(clock(), run, _none(), _none())
        elif kept.run != run:
            kept = Kept(kept.since, run, kept.all(), _none())
        self._kept = kept

    def step(self) -> None:
        """Saves when that is due."""
        if self._timer() >= self._due:
            self.save()

    def save(self) -> None:
        """Writes down what has changed, if anything."""
        self._due = self._timer() + SAVE_SECONDS
        during = self._count()
        if during == self._kept.during:
            return
        self._kept.during = during
        self._files.write_file(self._layout.hits, json.dumps(asdict(self._kept)).encode())
