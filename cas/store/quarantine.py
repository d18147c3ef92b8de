"""What failed verification after it was stored.

Rule: the record goes first, then the file moves: a crash between the two leaves an orphan, and
at no time is a bad blob served under a record.  Nothing here deletes bytes: an operator may want
to look at them.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

from cas import digest as digests
from cas.errors import DataLoss
from cas.index.lmdb import Index
from cas.index.records import ACTION_PREFIX, IN_FILES, INLINE, PACKED_INLINE, VALUE_PREFIX, Record
from cas.store.files import Files
from cas.store.layout import Layout

log = logging.getLogger("cas.store")


@dataclass(frozen=True, slots=True)
class Quarantine:
    """DIR/quarantine."""

    layout: Layout
    files: Files

    def condemn(self, index: Index, key: bytes, record: Record, reason: str) -> bool:
        """Drops a bad entry and keeps its bytes aside; it reads as NOT_FOUND from now on.

        False when it was gone, or another, before.
        """
        inline = index.stored(record) if record.where in (INLINE, PACKED_INLINE) else None
        if not index.remove([(key, record)]):
            return False
        shown = describe(key)
        if record.where in IN_FILES:
            digest = digests.from_key(key)
            kept = self.take_file(Path(self.layout.copy(digest, record)))
        else:
            kept = self._keep(key, inline)
        log.error(
            "a stored entry is bad and was dropped",
            extra={"entry": shown, "reason": reason, "kept": str(kept) if kept else "nothing"},
        )
        return True

    def take_file(self, path: Path) -> Path | None:
        """Moves a file here; where it is now, None if it was gone."""
        target = self.layout.quarantine / f"{path.name}.{secrets.token_hex(4)}"
        try:
            self.files.move(path, target)
        except FileNotFoundError:
            return None
        return target

    def _keep(self, key: bytes, data: bytes | None) -> Path | None:
        if data is None:
            return None
        digest = digests.from_key(key)
        target = self.layout.quarantine / f"{digest.hex}.inline.{secrets.token_hex(4)}"
        self.files.write_file(target, data)
        return target


def describe(key: bytes) -> str:
    """An entry as messages and reports name it."""
    if key[:1] in (ACTION_PREFIX, VALUE_PREFIX):
        kind = "action" if key[:1] == ACTION_PREFIX else "value"
        owner, _, name = key[1:].partition(b"\0")
        shown = name[1:].hex() if kind == "action" else repr(name.decode("utf-8", "replace"))
        return f"{kind} {shown} of {owner.decode('utf-8', 'replace')!r}"
    try:
        return f"blob {digests.from_key(key)}"
    except DataLoss:
        return f"the entry under key {key.hex()}"
