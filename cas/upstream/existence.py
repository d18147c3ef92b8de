"""Which blobs upstream has, as far as anybody here can tell.

Rule: what is remembered (`memory`) comes first, what nodes know together (`shared`) next, and who
holds the blobs is asked last; whoever finds out what is there, or is not, says so here.  Runs on
the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from cas import digest as digests
from cas.digest import Digest
from cas.upstream.counts import Counts
from cas.upstream.holder import Holder
from cas.upstream.memory import Memory

if TYPE_CHECKING:
    from cas.upstream.shared import Shared


class Existence:
    """One process's view."""

    def __init__(
        self, holder: Holder, memory: Memory, shared: Shared | None, counts: Counts
    ) -> None:
        self.memory = memory
        self._holder = holder
        self._shared = shared
        self._counts = counts

    async def present(
        self,
        asked: Iterable[bytes],
        tell: Callable[[bytes], Awaitable[bool]],
        *,
        sure: bool,
    ) -> set[bytes]:
        """See `interface.Beyond.present`.  `tell` fetches a blob, where that is no dearer than to
        look for it, and says whether that told if it is there."""
        asked = list(dict.fromkeys(asked))
        if sure:
            unknown = [key for key in asked if not self.memory.has(key)]
        else:
            unknown = self.memory.unknown(asked)
        self._counts.remembered.add(len(asked) - len(unknown))
        if unknown and self._shared is not None:
            known = await self._shared.present(unknown)
            for key in known or ():
                self.memory.add(key)
            if known is not None:
                # What nobody has told of is sent once more at worst, but makes no action result a
                # miss.
                unknown = [key for key in unknown if key not in known] if sure else []
        if unknown and sure and self._holder.one_by_one:
            told_of = await asyncio.gather(*map(tell, unknown))
            unknown = [key for key, told in zip(unknown, told_of, strict=True) if not told]
        if unknown:
            looked_for = await self._holder.present([digests.from_key(key) for key in unknown])
            for key, there in looked_for.items():
                self._note(key, there)
        return {key for key in asked if self.memory.has(key)}

    async def has(self, digest: Digest) -> bool:
        """Raises Unavailable."""
        there = await self._holder.has(digest)
        self._note(digest.key, there)
        return there

    async def find(self, prefix: bytes) -> Digest | None:
        digest = await self._holder.find(prefix)
        if digest is not None:
            self.learn(digest.key)
        return digest

    def learn(self, key: bytes) -> None:
        """Upstream has it."""
        self.memory.add(key)
        if self._shared is not None:
            self._shared.add(key)

    async def unlearn(self, key: bytes) -> None:
        """Upstream has it no more."""
        self.memory.add_absent(key)
        if self._shared is not None:
            await self._shared.forget(key)

    def _note(self, key: bytes, there: bool) -> None:
        self.learn(key) if there else self.memory.add_absent(key)

    async def close(self) -> None:
        if self._shared is not None:
            await self._shared.close()
