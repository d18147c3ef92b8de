"""One request after another to a server upstream, and what its client says of them.

Rule: knows nothing of what is asked.  Patience is `trying`'s, which knows the errors of `objects`
alone.  That the server refuses what is written is logged once, until it takes something.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from cas.client.errors import PermissionDenied, Unauthenticated, Unavailable, Unsupported
from cas.errors import CasError, DataLoss, LimitExceeded, NotFound
from cas.errors import Unavailable as NotHeardOf
from cas.upstream.objects import Absent, Broken, Denied, Refused
from cas.upstream.trying import Trying

T = TypeVar("T")

SLOWEST = 128 << 10
"""A request is given this much more time for what goes or comes with it: bytes a second."""

log = logging.getLogger("cas.upstream")


class Unserved(Denied):
    """It has no such method."""


class NoWrites(Denied):
    """This node may not write there."""


class Calls:
    """One process's, on one loop."""

    def __init__(self, trying: Trying) -> None:
        self.trying = trying
        self._is_denied = False

    async def ask(
        self,
        operation: str,
        make: Callable[[], Awaitable[T]],
        *,
        size: int = 0,
        writes: bool = False,
    ) -> T:
        """An answer; `size` bytes go or come with it.  Raises Absent, Unavailable, DataLoss."""
        seconds = self.trying.timeout + size / SLOWEST
        work = partial(_answered, make, writes=writes)
        try:
            return await self.trying.ask(operation, work, seconds)
        except NotHeardOf as error:
            if isinstance(error.__cause__, Unserved):
                raise error.__cause__ from None
            self._tell_denied(error.__cause__)
            raise

    async def write(self, make: Callable[[], Awaitable[T]]) -> T:
        """What looks to its time itself, and is not tried again here: as `trying.once`."""
        work = partial(_answered, make, writes=True)
        return await self.trying.once("put", work, seconds=0)

    async def patient(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work`, of many together, again where it failed for this one alone."""
        attempt = 0
        while True:
            try:
                return await work()
            except Unserved:
                raise
            except (Broken, Refused) as error:
                await self.retry(attempt, error)
                attempt += 1

    async def retry(self, attempt: int, error: Broken | Refused) -> None:
        self._tell_denied(error)
        await self.trying.retry(attempt, error)

    def took(self) -> None:
        """It has taken what was written."""
        self._is_denied = False

    def _tell_denied(self, error: BaseException | None) -> None:
        if isinstance(error, NoWrites) and not self._is_denied:
            self._is_denied = True
            log.error(
                "upstream refuses what is written; upstream_writes = none keeps it here",
                extra={"error": str(error)},
            )


async def _answered(make: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
    """What `make` makes comes to; its errors translated."""
    try:
        return await make()
    except CasError as error:
        raise translated(error, writes=writes) from error


def translated(error: CasError, *, writes: bool = False) -> Exception:
    """What the client says as what `trying` knows."""
    said = str(error)
    if isinstance(error, DataLoss):
        return error
    if isinstance(error, Unavailable):
        return Broken(said)
    if isinstance(error, NotFound) and not writes:
        return Absent(said)
    if isinstance(error, Unauthenticated):
        return Refused(said)
    if isinstance(error, PermissionDenied):
        return NoWrites(said) if writes else Refused(said)
    if isinstance(error, LimitExceeded) and not writes:
        # A precondition of all that is asked: the node that asks is its own upstream.
        return Refused(said)
    if isinstance(error, Unsupported):
        return Unserved(said)
    return Denied(said)
