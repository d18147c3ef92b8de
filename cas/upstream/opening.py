"""A store in front of an object store, put together.

Rule: composition; imported only where `upstream` names an object store.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cas.metrics.instruments import Metrics
from cas.store.local import LocalStore
from cas.upstream.asking import Asking, Patience
from cas.upstream.counts import Counts
from cas.upstream.loop import Loop
from cas.upstream.memory import Memory, MemoryOptions, SharedOptions
from cas.upstream.objects import Objects
from cas.upstream.store import TieredStore
from cas.upstream.tier import Tier


@dataclass(frozen=True, slots=True)
class TierOptions:
    """What an operator chooses."""

    patience: Patience = field(default_factory=Patience)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    shared: SharedOptions | None = None


def open_tier(
    local: LocalStore, objects: Objects, options: TierOptions, metrics: Metrics
) -> TieredStore:
    """The store for services; to be closed before `local`."""
    counts = Counts(metrics)
    asking = Asking(objects, options.patience, counts)
    shared = None
    if options.shared is not None:
        from cas.upstream.shared import Shared

        shared = Shared(options.shared, counts)
    tier = Tier(local, Loop(), asking, Memory(options.memory), counts, shared)
    return TieredStore(local, tier)
