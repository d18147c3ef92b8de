"""An object store as what lies upstream.

Rule: from digests to keys (`keys`); requests are `asking`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from cas import digest as digests
from cas.digest import Digest
from cas.errors import Unavailable
from cas.upstream import checking, keys
from cas.upstream.asking import Asking
from cas.upstream.holder import Parts
from cas.upstream.objects import Absent
from cas.upstream.trying import Trying


class ObjectHolder:
    """See `holder.Holder`."""

    one_by_one = True

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    @property
    def trying(self) -> Trying:
        return self._asking.trying

    def name(self, digest: Digest, /) -> str:
        return f"object {_key(digest)}"

    async def takes(self, digest: Digest, /) -> bool:
        return True

    async def has(self, digest: Digest, /) -> bool:
        # An object of another size may be another digest's, or damaged: whoever reads it finds out.
        try:
            return await self._asking.head(_key(digest)) == digest.size
        except Absent:
            return False

    async def present(self, digests: Sequence[Digest], /) -> dict[bytes, bool]:
        told = await asyncio.gather(*map(self.has, digests), return_exceptions=True)
        found: dict[bytes, bool] = {}
        for digest, there in zip(digests, told, strict=True):
            if isinstance(there, bool):
                found[digest.key] = there
            elif not isinstance(there, Unavailable):
                raise there
        return found

    async def find(self, prefix: bytes, /) -> Digest | None:
        function = digests.BY_CODE[prefix[0]]
        try:
            size = await self._asking.head(keys.blob(prefix, function))
        except Absent:
            return None
        return digests.make(function, prefix[1:], size)

    async def coming(self, digest: Digest, start: int, /) -> tuple[int, AsyncIterator[bytes]]:
        return await self._asking.coming(_key(digest), start)

    async def part(self, digest: Digest, start: int, end: int, /) -> bytes:
        return await self._asking.part(_key(digest), start, end)

    async def put(self, digest: Digest, data: bytes, /) -> None:
        await self._asking.put(_key(digest), data)

    async def put_parts(self, digest: Digest, parts: Parts, /) -> None:
        await self._asking.put_parts(_key(digest), lambda: parts(0))

    async def action(self, instance: str, digest: Digest, most: int, /) -> bytes | None:
        return await self._asking.whole(_action_key(instance, digest), most)

    async def put_action(self, instance: str, digest: Digest, result: bytes, /) -> None:
        await self._asking.put(_action_key(instance, digest), result)

    async def condemn(self, digest: Digest, /) -> None:
        await checking.condemn(self._asking, _key(digest))

    async def close(self) -> None:
        """Nothing is held."""


def _key(digest: Digest) -> str:
    return keys.blob(digest.prefix, digest.function)


def _action_key(instance: str, digest: Digest) -> str:
    return keys.action(instance, digest.prefix, digest.function)
