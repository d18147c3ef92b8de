"""A store in front of what lies upstream, put together.

Rule: composition; imported only where `upstream` names something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cas.metrics.instruments import Metrics
from cas.store.local import LocalStore
from cas.upstream.asking import Asking
from cas.upstream.back import Back
from cas.upstream.counts import Counts
from cas.upstream.holder import Holder
from cas.upstream.loop import Loop
from cas.upstream.memory import Memory, MemoryOptions, SharedOptions
from cas.upstream.objectholder import ObjectHolder
from cas.upstream.objects import Objects
from cas.upstream.store import TieredStore
from cas.upstream.tier import Tier
from cas.upstream.trying import Patience, Trying


@dataclass(frozen=True, slots=True)
class TierOptions:
    """What an operator chooses."""

    patience: Patience = field(default_factory=Patience)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    shared: SharedOptions | None = None
    sends: bool = True
    """Whether what is written here goes upstream."""
    back: bool = False
    """Whether writes are acknowledged before they are sent; `local` has a queue then."""


def open_tier(
    local: LocalStore, objects: Objects, options: TierOptions, metrics: Metrics
) -> TieredStore:
    """The store for services, in front of an object store; to be closed before `local`."""
    counts = Counts(metrics)
    holder = ObjectHolder(Asking(objects, options.patience, counts))
    return _open(local, Loop(), holder, options, counts)


def open_before(
    local: LocalStore, make: Callable[[Trying], Holder], options: TierOptions, metrics: Metrics
) -> TieredStore:
    """As `open_tier`, in front of what `make` makes, on the loop that it is used on."""
    counts = Counts(metrics)
    loop = Loop()

    async def made() -> Holder:
        return make(Trying(options.patience, counts))

    try:
        holder = loop.run(made).wait()
    except BaseException:
        loop.close()
        raise
    return _open(local, loop, holder, options, counts)


def _open(
    local: LocalStore, loop: Loop, holder: Holder, options: TierOptions, counts: Counts
) -> TieredStore:
    shared = None
    if options.shared is not None:
        from cas.upstream.shared import Shared

        shared = Shared(options.shared, counts)
    memory = Memory(options.memory)
    back = Back(local, options.memory, memory.has) if options.back else None
    tier = Tier(local, loop, holder, memory, counts, shared, back, sends=options.sends)
    return TieredStore(local, tier)
