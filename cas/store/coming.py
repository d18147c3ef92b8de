"""A blob whose bytes are still on their way here.

Rule: whoever reads one asks `ready` for each offset first, and awaits what that gives; then
`read_into` does not wait for anything but the disk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from cas.store.files import Files
from cas.store.pending import Pending


class Coming(ABC):
    """See `interface.Blob`.  `read_into` may give fewer bytes than were asked for."""

    size: int

    @abstractmethod
    def ready(self, offset: int) -> Pending[None] | None:
        """Resolved once bytes at `offset` can be read; None where they can be now.  Fails with
        DataLoss or Unavailable where they do not come."""

    def piece(self, offset: int) -> memoryview | None:
        """Bytes at `offset` that are in memory, and never change; None where none are, or it would
        have to be waited for.  Saves those who send them a copy."""
        return None

    @abstractmethod
    def read_into(self, view: memoryview, offset: int, /, *, wait: bool = True) -> int: ...

    def fileno(self) -> int | None:
        return None

    def packed(self) -> None:
        return None

    @abstractmethod
    def close(self) -> None: ...


class Staging:
    """A staging file that somebody writes to."""

    def __init__(self, files: Files, fd: int) -> None:
        self._files = files
        self._fd = fd

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return self._files.size(self._fd)

    def read_into(self, view: memoryview, offset: int, /) -> int:
        """*Blocking.*  Up to len(view) of them."""
        return self._files.read_into(self._fd, view, offset)

    def close(self) -> None:
        self._files.close(self._fd)
