"""How far a piece of work is, for whoever wants to show it.

Rule: plain numbers that the work raises and a display reads whenever it likes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """`done` of `total` bytes, and files likewise; totals grow while they are found."""

    what: str = ""
    total: int = 0
    done: int = 0
    files: int = 0
    files_done: int = 0

    def move(self, size: int) -> None:
        self.done += size
