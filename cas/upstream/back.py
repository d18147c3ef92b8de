"""Writes that are acknowledged once they are durable here, and sent upstream later.

Rule: nothing is asked of upstream, and nothing sent: what is to be is queued in the index, in the
transaction of what is acknowledged (`StoreOptions.queue`), and `draining` does the rest.  Here is
what a write alone does not queue: blobs that were here before, where somebody relies on them now.
A key that was queued a short while ago is not queued again, as one is not asked for again that was
found upstream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

from cas.digest import Digest
from cas.errors import NotFound
from cas.index.records import action_key
from cas.store.interface import NewAction
from cas.store.local import LocalStore
from cas.store.pending import Pending, resolved, then
from cas.upstream.memory import Memory, MemoryOptions


class Back:
    """Any thread may call any method."""

    def __init__(
        self, local: LocalStore, options: MemoryOptions, is_there: Callable[[bytes], bool]
    ) -> None:
        """`is_there` tells whether upstream is known to have a blob."""
        self._local = local
        self._is_there = is_there
        self._queued = Memory(options)
        self._lock = threading.Lock()

    def keep(self, keys: Sequence[bytes]) -> Pending[None]:
        """See `interface.Beyond.keep`: resolved once it is durable that they are to be sent.  Fails
        with NotFound where one is not here any more."""
        wanted = self._unknown(keys)
        if not wanted:
            return resolved(None)

        def look() -> None:
            # What waits is not evicted: what is here now stays until it was sent.
            if len(self._local.present(wanted)) < len(wanted):
                raise NotFound("a blob was removed while it was written again")

        return self._noted(self._local.send_later(wanted), wanted, look)

    def after(self, committed: Pending[None], digest: Digest) -> Pending[None]:
        """`committed`, of a blob, noted once it has come about."""
        return self._noted(committed, [digest.key])

    def put_action(self, instance: str, digest: Digest, action: NewAction) -> Pending[None]:
        """Keeps an action result, and has it wait to be sent with all that it names."""
        key = action_key(instance, digest.prefix)
        unsent = self._unknown(action.references)
        # Machines that run one action at the same time all send its result.
        known = key + sha256(action.result).digest()
        if not self._queued.has(known):
            unsent.append(key)
        committed = self._local.put_action(instance, digest, action, unsent=unsent)
        return self._noted(committed, [*unsent, known])

    def _unknown(self, keys: Iterable[bytes]) -> list[bytes]:
        return [
            key
            for key in dict.fromkeys(keys)
            if not self._queued.has(key) and not self._is_there(key)
        ]

    def _noted(
        self,
        committed: Pending[None],
        keys: Sequence[bytes],
        look: Callable[[], None] = lambda: None,
    ) -> Pending[None]:
        def note(_: None) -> Pending[None]:
            look()
            with self._lock:
                for key in keys:
                    self._queued.add(key)
            return resolved(None)

        return then(committed, note)
