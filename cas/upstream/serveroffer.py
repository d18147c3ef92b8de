"""What a server upstream can do, by its capabilities.

Rule: asked for again when it was out of reach, and when the answer is old; what it said last is
believed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging

from cas.client.overgrpc import GrpcWire
from cas.client.remote import Remote
from cas.client.wire import Offer
from cas.digest import BY_NAME, SHA256, Digest
from cas.pb import remote_execution_pb2 as pb
from cas.upstream.servercalls import Calls, Unserved

BATCH = 1 << 20
"""Bytes of one batch, if the server takes as many."""
BATCHED = 256 << 10
"""Blobs up to this size, bytes, go and come in batches."""
BLOB_COST = 160
"""Bytes of a message that a blob takes besides its own."""
OFFER_SECONDS = 600.0
"""For which its capabilities are believed while it answers."""

log = logging.getLogger("cas.upstream")


class Offered:
    """One process's, on one loop."""

    def __init__(self, wire: GrpcWire, calls: Calls, remote: Remote) -> None:
        self._wire = wire
        self._remote = remote
        self._calls = calls
        self._offer: Offer | None = None
        self._offer_until = 0.0
        self._offering: asyncio.Task[Offer] | None = None
        self._batches = True
        self.functions: frozenset[int] = frozenset()
        """Codes of the digest functions that it has; none before it answered."""
        calls.trying.returned = self._ask_again
        self._ask_again()

    async def offer(self) -> Offer:
        """Raises Unavailable."""
        offer = self._offer
        if offer is None or asyncio.get_running_loop().time() >= self._offer_until:
            self._ask_again()
        if offer is None:
            assert self._offering is not None
            offer = await asyncio.shield(self._offering)
        return offer

    async def takes(self, digest: Digest, /) -> bool:
        """See `holder.Holder.takes`."""
        offer = await self.offer()
        return digest.function.code in self.functions and (
            not offer.largest or digest.size <= offer.largest
        )

    async def batches(self, digest: Digest) -> bool:
        """Whether such a blob goes and comes in batches, with others."""
        most = min((await self.offer()).batch, BATCH)
        return self._batches and digest.size <= BATCHED and cost(digest) <= most

    def has_no_batches(self) -> None:
        """What it said when it was asked for one."""
        self._batches = False

    def close(self) -> None:
        if self._offering is not None:
            self._offering.cancel()

    def _ask_again(self) -> None:
        if self._offering is None or self._offering.done():
            self._offering = asyncio.get_running_loop().create_task(self._ask_offer())
            # Whoever needs it hears of its failure.
            self._offering.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _ask_offer(self) -> Offer:
        try:
            offer = await self._calls.ask("capabilities", self._wire.offer)
        except Unserved:
            # Nothing is known of it but that it answers.
            offer = Offer()
        functions = frozenset(
            function.code
            for number in offer.functions
            if number in pb.DigestFunction.Value.values()
            and (function := BY_NAME.get(pb.DigestFunction.Value.Name(number).lower()))
        )
        self.functions = functions or frozenset((SHA256.code,))
        if offer != self._offer:
            log.info(
                "upstream tells what it can do",
                extra={
                    "upstream": str(self._remote),
                    "api": offer.api,
                    "digest_functions": sorted(
                        name for name, one in BY_NAME.items() if one.code in self.functions
                    ),
                    "batch_bytes": offer.batch,
                    "zstd": offer.zstd,
                    "takes_action_results": offer.writes_actions,
                },
            )
        self._offer = offer
        self._offer_until = asyncio.get_running_loop().time() + OFFER_SECONDS
        return offer


def cost(digest: Digest) -> int:
    """Bytes of a batch that a blob takes."""
    return digest.size + BLOB_COST
