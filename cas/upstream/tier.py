"""What is done with upstream, for those who wait for it on other threads.

Rule: `interface.Beyond`, and what `store.TieredStore` needs.  Here is decided when a write is
acknowledged; how a blob is looked for, comes and goes is `existence`'s, `fetching`'s and
`sending`'s, and an action result's way `results`'.  Their coroutines all run on the one loop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cas.digest import Digest
from cas.errors import CasError, NotFound, StoreClosed
from cas.store.interface import Blob, NewAction
from cas.store.local import LocalStore
from cas.store.pending import Pending, resolved, then
from cas.upstream.back import Back
from cas.upstream.counts import Counts
from cas.upstream.existence import Existence
from cas.upstream.fetching import Fetching
from cas.upstream.holder import Holder
from cas.upstream.loop import Loop
from cas.upstream.memory import Memory
from cas.upstream.results import Results
from cas.upstream.sending import Sending

if TYPE_CHECKING:
    from cas.upstream.shared import Shared

log = logging.getLogger("cas.upstream")


class Tier:
    """See `interface.Beyond`."""

    def __init__(
        self,
        local: LocalStore,
        loop: Loop,
        holder: Holder,
        memory: Memory,
        counts: Counts,
        shared: Shared | None,
        back: Back | None,
        *,
        sends: bool,
    ) -> None:
        """`back` where writes are acknowledged before they are sent; `sends` False keeps what is
        written here, here."""
        self._local = local
        self._loop = loop
        self._holder = holder
        self._back = back
        self._sends = sends
        self._counts = counts
        self._existence = Existence(holder, memory, shared, counts)
        self._fetching = Fetching(local, loop, holder, self._existence, counts)
        self._sending = Sending(local, loop, holder, self._existence, counts)
        self._results = Results(local, holder, self._sending, memory, counts)
        self._kept: dict[tuple[str, bytes], bytes] = {}
        """Action results that came, until they are here."""

    def close(self) -> None:
        """*Blocking.*  Ends what is under way."""
        # Fails where all is closed already.
        with suppress(StoreClosed):
            self._loop.run(self._let_go).wait()
        if self._loop.close():
            self._fetching.close()

    async def _let_go(self) -> None:
        await self._existence.close()
        await self._holder.close()

    # --- reads ---------------------------------------------------------------------------

    def present(self, keys: Sequence[bytes], /, *, sure: bool = False) -> Pending[set[bytes]]:
        tell = self._fetching.tell
        return self._loop.run(lambda: self._existence.present(keys, tell, sure=sure))

    def find(self, prefix: bytes, /) -> Pending[Digest | None]:
        begun = self._fetching.named(prefix)
        if begun is not None:
            return resolved(begun)
        return self._loop.run(lambda: self._existence.find(prefix))

    def open(self, digest: Digest, /) -> Pending[Blob]:
        begun = self._fetching.begun(digest)
        if begun is not None:
            return resolved(begun)
        return self._loop.run(lambda: self._fetching.open(digest))

    def bring(self, digests: Sequence[Digest], /) -> None:
        self._loop.run(lambda: self._fetching.begin(digests))

    # --- writes --------------------------------------------------------------------------

    def keep(self, keys: Sequence[bytes], /) -> Pending[None]:
        if not self._sends:
            return resolved(None)
        return self.send(keys) if self._back is None else self._back.keep(keys)

    def send(
        self, keys: Sequence[bytes], /, *, sure: bool = False, new: bool = False
    ) -> Pending[None]:
        """Resolved once these blobs are upstream: see `Sending.send`."""
        return self._loop.run(lambda: self._sending.send(keys, sure=sure, new=new))

    def after(self, committed: Pending[None], digest: Digest) -> Pending[None]:
        """What a write comes to: its local commit, and then its object."""
        if not self._sends:
            return committed
        if self._back is not None:
            return self._back.after(committed, digest)
        return then(committed, lambda _: self.send([digest.key]))

    # --- action results ------------------------------------------------------------------

    def action(self, instance: str, digest: Digest, /) -> Pending[bytes | None]:
        kept = self._kept.get((instance, digest.key))
        if kept is not None:
            return resolved(kept)
        return self._loop.run(lambda: self._results.get(instance, digest))

    def keep_action(self, instance: str, digest: Digest, action: NewAction, /) -> Pending[None]:
        name = (instance, digest.key)
        self._kept[name] = action.result
        pending = self._local.put_action(instance, digest, action, fetched=True)

        def end() -> None:
            self._kept.pop(name, None)
            try:
                pending.result()
            except (CasError, OSError) as error:
                # Whoever asked has it; the next one fetches it again.
                log.warning(
                    "an action result from upstream could not be kept",
                    extra={"action": str(digest), "instance": instance, "error": str(error)},
                )

        pending.add_done_callback(end)
        return pending

    def served_action(self) -> None:
        self._counts.actions.add()

    def put_action(self, instance: str, digest: Digest, action: NewAction, /) -> Pending[None]:
        """A write's action result, acknowledged as `after` has it: all that it names goes first.
        One that lacks a blob, here and upstream, stays here."""
        if self._back is not None:
            return self._back.put_action(instance, digest, action)
        committed = self._local.put_action(instance, digest, action)
        if not self._sends:
            return committed

        async def send() -> None:
            # Of use to nobody yet; whoever completes it sends it again.
            with suppress(NotFound):
                await self._results.send(instance, digest, action.references, action.result)

        return then(committed, lambda _: self._loop.run(send))

    def send_action(
        self, instance: str, digest: Digest, references: Sequence[bytes], result: bytes, /
    ) -> Pending[None]:
        """Resolved once the action result is upstream, and all that it names was before.  Fails
        with NotFound where one of those is neither here nor there."""
        return self._loop.run(lambda: self._results.send(instance, digest, references, result))
