"""What was acknowledged, on the client's side.

Rule: an entry is made after the server's answer arrived, never before; nothing is ever taken
back.  Content follows from a number, so that a journal of millions holds no bytes.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cas.pb import remote_execution_pb2 as pb


class Blob(NamedTuple):
    """A blob by its number."""

    number: int
    size: int
    hash: str

    @property
    def digest(self) -> pb.Digest:
        return pb.Digest(hash=self.hash, size_bytes=self.size)

    @property
    def name(self) -> str:
        return f"blobs/{self.hash}/{self.size}"


SMALL = 1024
"""Bytes up to which a blob is small."""
_OVERHEAD = 1024
"""Bytes of a blob's records, and of what pages and blocks leave free."""


@dataclass(slots=True)
class Journal:
    """Any thread may call any method."""

    seed: int
    path: Path
    blobs: list[Blob] = field(default_factory=list)
    """Acknowledged; only grows."""
    actions: dict[str, tuple[pb.Digest, pb.ActionResult]] = field(default_factory=dict)
    """By hash: the last result acknowledged."""
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Errors that no kill explains."""
    operations: dict[str, int] = field(default_factory=dict)
    total: int = 0
    """Bytes of `blobs`."""
    large_room: int = 0
    """Bytes that those beyond `SMALL` take on disk, more or less, …"""
    small_room: int = 0
    """… and the others."""
    _next: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def data(self, number: int, size: int) -> bytes:
        """The bytes of that number."""
        return random.Random(f"{self.seed}/{number}").randbytes(size)

    def make(self, size: int) -> tuple[Blob, bytes]:
        """A blob that no server has seen."""
        with self._lock:
            number = self._next
            self._next += 1
        data = self.data(number, size)
        return Blob(number, size, hashlib.sha256(data).hexdigest()), data

    def acknowledged(self, *blobs: Blob) -> None:
        with self._lock:
            self.blobs += blobs
            self.total += sum(blob.size for blob in blobs)
            for blob in blobs:
                if blob.size > SMALL:
                    self.large_room += blob.size + _OVERHEAD
                else:
                    self.small_room += blob.size + _OVERHEAD
            self._write("blob", *(f"{blob.hash}/{blob.size}" for blob in blobs))

    def action(self, digest: pb.Digest, result: pb.ActionResult) -> None:
        with self._lock:
            self.actions[digest.hash] = (digest, result)
            self._write("action", digest.hash)

    def did(self, operation: str) -> None:
        with self._lock:
            self.operations[operation] = self.operations.get(operation, 0) + 1

    def fault(self, where: list[str], text: str) -> None:
        with self._lock:
            where.append(text)
            self._write("fault", text)

    def _write(self, *words: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{time.time():.3f} {' '.join(words)}\n")
