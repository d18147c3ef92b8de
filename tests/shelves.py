"""Directories of stores, used again by the next test.

Rule: a store's directory has hundreds of empty ones, and to make and remove them for each test
takes longer than most tests.  What is lent is as empty as new ones would be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cas.digest import ENABLED
from cas.store.layout import Layout

LENT = ("blobs", "staging")


class Shelves:
    """What is not lent just now."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._free: list[Path] = []
        self._made = 0

    @contextmanager
    def lent(self, store: Path) -> Iterator[None]:
        """`store`, which does not exist yet, gets its directories, and is without them behind.
        Those of a test that did something else to them are not used again."""
        if self._free:
            shelf = self._free.pop()
            store.mkdir(parents=True)
            for name in LENT:
                (shelf / name).rename(store / name)
        else:
            self._made += 1
            shelf = self._directory / str(self._made)
            shelf.mkdir()
        yield
        try:
            if _emptied(store) != _new(store):
                return
            for name in LENT:
                (store / name).rename(shelf / name)
        except OSError:
            return
        self._free.append(shelf)


def _emptied(store: Path) -> set[str]:
    """The directories that are there, whose files are removed."""
    found = set()
    for name in LENT:
        for top, _, names in os.walk(store / name):
            found.add(top)
            for file in names:
                os.unlink(os.path.join(top, file))
    return found


def _new(store: Path) -> set[str]:
    layout = Layout(store)
    parts = (layout.blobs, *layout.shards(ENABLED.all), layout.staging, *layout.staging_shards())
    return set(map(str, parts))
