"""What goes into the index in one transaction, and what it counts.

Rule: values only; no transaction begins here, and nothing of LMDB is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cas.index.records import ACTION


class NewBlob(NamedTuple):
    """A blob to enter."""

    key: bytes
    data: bytes | None
    """Its bytes when they go inline."""
    generation: int = 0
    """Its file's, when they do not."""
    stored: int = 0
    """Bytes of that file."""
    packed: bool = False
    """Whether the bytes are zstd, here or in the file."""


class NewAction(NamedTuple):
    """An action result, or a value, to enter, replacing what is there."""

    key: bytes
    """As `records.action_key` or `value_key` gives it."""
    packed: bytes
    """As `records.pack_action` or `pack_value` gives it."""
    where: int = ACTION
    """ACTION or VALUE."""


@dataclass(slots=True)
class Changes:
    """What one write transaction is to do; all of it or nothing."""

    minute: int
    """The time of this transaction, as records hold it."""
    blobs: list[NewBlob] = field(default_factory=list)
    actions: list[NewAction] = field(default_factory=list)
    dropped_actions: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(key, packed) of action results and values found dead: dropped if still the same."""
    dropped: list[bytes] = field(default_factory=list)
    """Keys of action results and values to drop, whatever they are, before the rest."""
    unsent: list[bytes] = field(default_factory=list)
    """Keys of entries, those of this transaction included, that are to be sent upstream; absent
    ones are passed over.  Only where the index has a queue."""
    second: int = 0
    """The time of this transaction, seconds since the epoch; for `unsent`."""

    def put(self, entry: NewAction) -> None:
        """Adds an action result or a value."""
        self.actions.append(entry)

    def drop(self, key: bytes) -> None:
        """Adds a key to drop, whatever was put under it before."""
        self.actions = [entry for entry in self.actions if entry.key != key]
        self.dropped.append(key)


class Totals(NamedTuple):
    """How much the index knows of."""

    entries: int
    """Blobs and action results."""
    used_bytes: int
    """The part of the index's file that was ever used."""
    live_bytes: int
    """The pages of that which hold something."""
    disk_bytes: int
    """What the file takes on disk now."""
    beside_bytes: int
    """What the last-use times and the hints take on disk."""
    file_bytes: int
    """What the blobs' files take on disk."""


def on_disk(size: int) -> int:
    """What a file of `size` bytes takes on disk: blocks of 4 KiB."""
    return (size + 4095) & -4096
