"""Action results that come from upstream, and go there.

Rule: one goes after all that it names is known to be there, and not again while it is the last that
went for its action; one that comes is taken as it is: whether it is of use is for who asked.  Runs
on the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256

from cas import digest as digests
from cas.digest import Digest
from cas.store.local import LocalStore
from cas.upstream.counts import Counts
from cas.upstream.holder import Holder
from cas.upstream.memory import Latest, Memory
from cas.upstream.objects import Absent
from cas.upstream.sending import Sending

MAX_ACTION = 16 << 20
"""Bytes of an action result that is taken."""
MAX_RESULTS = 10_000
"""Actions whose results are remembered."""

log = logging.getLogger("cas.upstream")


class Results:
    """One process's."""

    def __init__(
        self, local: LocalStore, holder: Holder, sending: Sending, memory: Memory, counts: Counts
    ) -> None:
        self._local = local
        self._holder = holder
        self._sending = sending
        self._memory = memory
        self._counts = counts
        self._sent: Latest[bytes] = Latest(MAX_RESULTS)
        """What was sent last for an action: it may be replaced, and replaced again by the first."""

    async def get(self, instance: str, digest: Digest) -> bytes | None:
        """See `interface.Beyond.action`."""
        digest = self._sized(digest)
        try:
            found = await self._holder.action(instance, digest, MAX_ACTION)
        except Absent:
            return None
        if found is None:
            log.warning(
                "an action result upstream is too large",
                extra={"action": str(digest), "instance": instance},
            )
        else:
            self._counts.received.add(len(found))
        return found

    async def send(
        self, instance: str, digest: Digest, references: Sequence[bytes], result: bytes
    ) -> None:
        """Returns once the action result is upstream, and all that it names was before; but what
        upstream cannot take stays here, and so does what names it.  Raises NotFound where a blob is
        neither here nor there."""
        digest = self._sized(digest)
        named = [digest, *map(digests.from_key, references)]
        if not all([await self._holder.takes(one) for one in named]):
            return
        await self._sending.send(references)
        # Machines that run one action at the same time all send its result.
        name = b"\0".join((instance.encode(), digest.key))
        known = b"\0".join((name, sha256(result).digest()))
        if self._sent.get(name) != known or not self._memory.has(known):
            await self._holder.put_action(instance, digest, result)
            self._counts.sent.add(len(result))
            self._memory.add(known)
            self._sent.add(name, known)

    def _sized(self, action: Digest) -> Digest:
        """Over HTTP an action has a hash alone; its blob, where that is here, has a size."""
        if action.size:
            return action
        return self._local.find(action.prefix) or action
