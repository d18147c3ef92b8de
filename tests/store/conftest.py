"""Every store that the contract is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cas.digest import Digest
from cas.metrics.instruments import Metrics
from cas.store.directory import prepare
from cas.store.interface import Action, BlobStore, Durability, Upload
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.memory import MemoryStore
from cas.upstream.obstores import connect
from cas.upstream.opening import TierOptions, open_tier
from tests.shelves import Shelves

Opener = Callable[..., LocalStore]


class Clock:
    """A time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def begin(store: BlobStore, name: str, digest: Digest) -> Upload:
    """Begins the upload, or resumes it where it is."""
    return store.upload(name, digest, store.committed_size(name) or 0, b"")


def gathering(store: BlobStore, name: str, digest: Digest) -> Upload:
    """Begins the upload in memory."""
    upload = store.gather(name, digest)
    assert upload is not None
    return upload


def found(store: BlobStore, instance: str, digest: Digest) -> Action:
    """The action result that is kept there."""
    action = store.action(instance, digest)
    assert action is not None
    return action


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opener(tmp_path: Path, clock: Clock, shelves: Shelves) -> Iterator[Opener]:
    """Opens the one store of this test; again and again, also side by side."""
    with ExitStack() as stack:
        stack.enter_context(shelves.lent(tmp_path / "store"))
        stack.callback(prepare(tmp_path / "store").close)
        opened: list[LocalStore] = []

        def open_again(durability: Durability = "strict", **options: object) -> LocalStore:
            seams = {
                name: options.pop(name) for name in ("files_seam", "index_seam") if name in options
            }
            store = open_store(
                tmp_path / "store",
                StoreOptions(durability=durability, **options),  # type: ignore[arg-type]
                clock=clock,
                **seams,  # type: ignore[arg-type]
            )
            opened.append(store)
            return store

        yield open_again
        for store in opened:
            store.close()


@pytest.fixture(params=["memory", "strict", "batch", "none", "zstd", "tiered"])
def store(request: pytest.FixtureRequest, opener: Opener, clock: Clock) -> Iterator[BlobStore]:
    """Each implementation, the one on disk in each durability mode, and with compression."""
    if request.param == "memory":
        memory = MemoryStore(max_open_uploads=8, clock=clock)
        yield memory
        memory.close()
    elif request.param == "zstd":
        yield opener("strict", compression="zstd", max_open_uploads=8)
    elif request.param == "tiered":
        upstream = connect("memory:///", {}, connect_timeout=5)
        local = opener("strict", max_open_uploads=8)
        tiered = open_tier(local, upstream, TierOptions(), Metrics())
        yield tiered
        tiered.close()
    else:
        yield opener(request.param, max_open_uploads=8)
