"""A configuration's store, as every process that opens one does it.

Rule: from options to the values that the store's layers are handed; imported by the modules of
roles only.
"""

from __future__ import annotations

from cas.config import Config
from cas.metrics.instruments import Metrics
from cas.store.evict import Watermarks
from cas.store.janitor import JanitorOptions
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.usage import SizeLimits
from cas.store.verifying import VerifyingStore


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
        ),
        kind=VerifyingStore if config.verify_reads else LocalStore,
        metrics=metrics,
    )


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
