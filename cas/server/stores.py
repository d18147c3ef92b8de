"""A configuration's store, as every process that opens one does it.

Rule: from options to the values that the store's layers are handed; imported by the modules of
roles only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from cas.config import Config, is_server
from cas.index import unsent
from cas.index.lmdb import Index
from cas.metrics.instruments import Metrics
from cas.store.backlog import QueueLimits
from cas.store.evict import Watermarks
from cas.store.files import Files
from cas.store.interface import BlobStore
from cas.store.janitor import JanitorOptions
from cas.store.layout import Layout
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.usage import SizeLimits
from cas.store.verifying import VerifyingStore

if TYPE_CHECKING:
    from cas.upstream.draining import Drain
    from cas.upstream.nodes import Nodes
    from cas.upstream.objects import Aging, Objects
    from cas.upstream.store import TieredStore
    from cas.upstream.sweep import Sweep
    from cas.upstream.trying import Patience

log = logging.getLogger("cas.server")


def open_for_serving(config: Config, metrics: Metrics) -> LocalStore:
    """The store, for a process that answers calls."""
    return open_store(
        config.dir,
        StoreOptions(
            durability=config.durability,
            inline_threshold=config.inline_threshold,
            direct_threshold=config.direct_threshold,
            compression=config.compression,
            max_open_uploads=config.max_open_uploads,
            limits=size_limits(config),
            queue=queue_limits(config),
        ),
        kind=VerifyingStore if config.verify_reads else LocalStore,
        metrics=metrics,
    )


def nodes_of(config: Config, name: str) -> Nodes | None:
    """What tells whether this node, `name`, is its own upstream; None where it cannot be."""
    if not is_server(config.upstream):
        return None
    from cas.upstream.nodes import Nodes

    return Nodes(name)


def open_tiered(
    local: LocalStore, config: Config, metrics: Metrics, nodes: Nodes | None
) -> BlobStore:
    """The store that services are given: `local` itself, or where there is an upstream, one in
    front of it, to be closed before `local`; `nodes` is `nodes_of`'s."""
    if not config.upstream:
        return local
    return _tiered(local, config, metrics, nodes, back=queue_limits(config) is not None)


def open_drain(
    layout: Layout,
    index: Index,
    files: Files,
    config: Config,
    metrics: Metrics,
    nodes: Nodes | None = None,
) -> tuple[Drain, Callable[[], None]] | None:
    """What sends upstream what was acknowledged before, and what closes it before `index`; None
    where nothing is to be sent."""
    waits = unsent.waiting(index).entries
    if not config.upstream:
        if waits:
            log.warning(
                "there is no upstream for what waits to be sent; it stays here, and is not evicted",
                extra={"entries": waits},
            )
        return None
    if not waits and queue_limits(config) is None:
        return None
    from cas.upstream.draining import Drain

    # It reads, and checks what it sends: this was written a while ago.
    options = StoreOptions(durability=config.durability)
    local = VerifyingStore(layout, index, files, options)
    store = _tiered(local, config, metrics, nodes, back=False)

    def close() -> None:
        store.close()
        local.close()

    return Drain(index, store.beyond, width=config.upstream_concurrency, metrics=metrics), close


def _tiered(
    local: LocalStore, config: Config, metrics: Metrics, nodes: Nodes | None, *, back: bool
) -> TieredStore:
    # Imported here: a node of its own has no use for any of it.
    from cas.upstream.memory import MemoryOptions, SharedOptions
    from cas.upstream.opening import TierOptions, open_before, open_tier

    shared = None
    if config.upstream_index:
        where = f"{config.upstream_endpoint} {config.upstream}"
        shared = SharedOptions(config.upstream_index, where, config.upstream_index_age)
    options = TierOptions(
        patience(config),
        MemoryOptions(
            config.upstream_remembered, config.upstream_remember, config.upstream_remember_absent
        ),
        shared,
        sends=config.upstream_writes != "none",
        back=back,
    )
    if not is_server(config.upstream):
        return open_tier(local, renewing(config), options, metrics)
    from cas.upstream.identity import Files
    from cas.upstream.serverholder import connect

    files = Files(
        ca=config.upstream_ca,
        certificate=config.upstream_cert,
        key=config.upstream_key,
        token=config.upstream_token,
        login=config.upstream_login,
        headers=config.upstream_headers,
        helper=config.upstream_helper,
    )
    one = config.upstream_instance
    make = connect(config.upstream, files, one.strip("/") if one else None, nodes)
    return open_before(local, make, options, metrics)


def open_sweep(config: Config, index: Index, files: Files, metrics: Metrics) -> Sweep | None:
    """What tells upstream of what is used here; None where nobody is to be told."""
    if not config.upstream or is_server(config.upstream) or not config.upstream_renew:
        return None
    from cas.upstream.asking import Asking
    from cas.upstream.counts import Counts
    from cas.upstream.sweep import Sweep

    asking = Asking(renewing(config), patience(config), Counts(metrics))
    return Sweep(Layout(config.dir), index, files, asking, config.upstream_renew)


def patience(config: Config) -> Patience:
    """How long upstream is waited for."""
    from cas.upstream.trying import Patience

    return Patience(config.upstream_timeout, config.upstream_concurrency)


def renewing(config: Config) -> Objects:
    """The object store, where what is asked for is kept young if that is wanted."""
    from cas.upstream.renewing import Renewing

    objects = objects_of(config)
    return Renewing(objects, config.upstream_renew) if config.upstream_renew else objects


def objects_of(config: Config) -> Aging:
    """The object store that `upstream` names.  Raises ConfigError."""
    from cas.upstream.obstores import connect

    given = {"endpoint": config.upstream_endpoint, "region": config.upstream_region}
    settings = {name: value for name, value in given.items() if value}
    return connect(config.upstream, settings, connect_timeout=config.upstream_timeout)


def queue_limits(config: Config) -> QueueLimits | None:
    """How much may wait to be sent upstream; None where writes do not wait."""
    if not config.upstream or config.upstream_writes != "back":
        return None
    return QueueLimits(config.upstream_queue, config.upstream_queue_size)


def size_limits(config: Config) -> SizeLimits:
    """What the store may take on disk."""
    return SizeLimits(config.max_size or None, config.disk_reserve)


def janitor_options(config: Config) -> JanitorOptions:
    """What goes when."""
    return JanitorOptions(
        marks=Watermarks(config.high_watermark, config.low_watermark),
        min_age=config.min_age,
        upload_expiry=config.upload_expiry,
    )
