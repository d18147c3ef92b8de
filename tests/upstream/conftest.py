"""Nodes over one bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cas.metrics.instruments import Metrics
from cas.store.directory import prepare
from cas.store.local import LocalStore, open_store
from cas.upstream.opening import TierOptions, open_tier
from cas.upstream.store import TieredStore
from cas.upstream.trying import Patience
from tests.shelves import Shelves
from tests.upstream.bucket import Bucket

Node = Callable[..., TieredStore]

OPTIONS = TierOptions(Patience(timeout=20.0, concurrency=8))


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def node(tmp_path: Path, bucket: Bucket, shelves: Shelves) -> Iterator[Node]:
    """A process of the node of that name, whose disk is empty at first."""
    with ExitStack() as stack:
        # What processes share is the store; one process cannot open its index twice.
        stores: dict[str, LocalStore] = {}

        def start(
            name: str = "a", options: TierOptions = OPTIONS, metrics: Metrics | None = None
        ) -> TieredStore:
            if name not in stores:
                stack.enter_context(shelves.lent(tmp_path / name))
                stack.callback(prepare(tmp_path / name).close)
                stores[name] = open_store(tmp_path / name)
                stack.callback(stores[name].close)
            store = open_tier(stores[name], bucket, options, metrics or Metrics())
            stack.callback(store.close)
            return store

        yield start
