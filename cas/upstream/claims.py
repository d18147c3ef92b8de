"""Which process of this node fetches a blob: one of them.

Rule: a claim is a lock on one byte of a file, at a place that the blob's hash gives, so that it
ends with its process; two blobs that share a place merely wait for each other.
"""

from __future__ import annotations

from pathlib import Path

from cas.digest import Digest
from cas.store.files import Files


class Claims:
    """One process's.  Used by one thread."""

    def __init__(self, path: Path, files: Files) -> None:
        self._files = files
        self._fd = files.open_lock(path)
        self._mine: set[int] = set()

    def take(self, digest: Digest) -> bool:
        """Whether the blob is this caller's to fetch, until `release`."""
        at = _place(digest)
        # A lock that this process has already would be given to it again.
        if at in self._mine or not self._files.lock_byte(self._fd, at):
            return False
        self._mine.add(at)
        return True

    def release(self, digest: Digest) -> None:
        at = _place(digest)
        self._mine.discard(at)
        self._files.unlock_byte(self._fd, at)

    def close(self) -> None:
        self._files.close(self._fd)


def _place(digest: Digest) -> int:
    # 56 bits: what a file's offset holds, and none too few.
    return int.from_bytes(digest.hash[:7], "big")
