"""What a child does while it is stopped: one function for each row group of DESIGN.md's table.

Rule: `prepare` brings a directory to where the scenario begins, in a process of its own; `run`
passes the seams and says what was acknowledged, at once and in order.  Everything is made from
fixed bytes, so that the parent knows what must be there.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from cas import digest as digests
from cas.digest import SHA256, Digest
from cas.errors import CasError, NotFound
from cas.index import unsent
from cas.index.records import FILE
from cas.reapi.instances import is_namespace_of
from cas.store import directory, fsck, opening, scrub
from cas.store.backlog import QueueLimits
from cas.store.files import Files
from cas.store.interface import Compression, Durability, NewAction
from cas.store.janitor import Janitor, JanitorOptions
from cas.store.layout import Layout
from cas.store.local import LocalStore, StoreOptions, open_store
from cas.store.pending import Pending, resolved
from cas.store.reindex import reindex
from cas.store.space import Space
from cas.store.usage import Meter, SizeLimits
from cas.upstream.draining import Drain


def data(name: str, size: int) -> bytes:
    """The bytes of that name."""
    return random.Random(name).randbytes(size)


SMALL = data("small", 500)
LARGE = data("large", 300_001)
OLD = data("old", 100_000)
TEXT = data("text", 150_001).hex().encode()
"""Two frames of zstd."""
BLOBS = {"small": SMALL, "large": LARGE, "old": OLD, "text": TEXT}
UPLOAD = "uploads/1/blobs"
ACTION = digests.of(b"action")
NOW = 1_900_000_000.0
STEPS = 300
"""More than the janitor needs for what it finds here."""


@dataclass(slots=True)
class Child:
    """The child's side of a run."""

    directory: Path
    file_seam: Callable[[str, str], None]
    index_seam: Callable[[str], None]
    acknowledge: Callable[..., None]
    """Tells the parent, before anything else happens: ("blob", name), ("action", result),
    ("size", bytes of UPLOAD that are committed), ("queued", name or result)."""

    @property
    def layout(self) -> Layout:
        return Layout(self.directory)

    @property
    def files(self) -> Files:
        return Files(self.file_seam)

    def open(
        self,
        durability: Durability = "strict",
        compression: Compression = "none",
        queue: QueueLimits | None = None,
    ) -> closing[LocalStore]:
        """The store; what opening it passes is a scenario of its own."""
        opened = False

        def file_seam(operation: str, path: str) -> None:
            if opened:
                self.file_seam(operation, path)

        def index_seam(phase: str) -> None:
            if opened:
                self.index_seam(phase)

        store = open_store(
            self.directory,
            StoreOptions(
                durability=durability,
                inline_threshold=16 << 10,
                compression=compression,
                queue=queue,
            ),
            files_seam=file_seam,
            index_seam=index_seam,
        )
        opened = True
        return closing(store)

    def put(self, store: LocalStore, name: str) -> None:
        blob = BLOBS[name]
        store.put([(digests.of(blob), blob)])[0].wait(30)
        self.acknowledge("blob", name)


def nothing(child: Child) -> None:
    """A prepared, empty store."""


def some(child: Child) -> None:
    """A store that holds OLD, SMALL and an action result."""
    with child.open() as store:
        child.put(store, "old")
        child.put(store, "small")
        act(child, store, b"first")


def act(child: Child, store: LocalStore, result: bytes) -> None:
    action = NewAction(result, [digests.of(OLD).key], True)
    store.put_action("main", ACTION, action).wait(30)
    child.acknowledge("action", result.decode())


# --- writes ------------------------------------------------------------------------------


def write_small(child: Child) -> None:
    with child.open() as store:
        child.put(store, "small")


def write_large(child: Child) -> None:
    with child.open() as store:
        child.put(store, "large")


def _upload(child: Child, store: LocalStore, name: str) -> None:
    blob = BLOBS[name]
    digest = digests.of(blob)
    if store.contains(digest):
        return
    start = _resumed(child)
    half = max(start, len(blob) // 2)
    upload = store.upload(UPLOAD, digest, start, blob[start:half])
    upload.flush()
    # Nobody is told of it unless it was synced: the query does that.
    child.acknowledge("size", store.committed_size(UPLOAD))
    upload.append(blob[half:])
    upload.finish().wait(30)
    child.acknowledge("blob", name)


def _resumed(child: Child, name: str = UPLOAD) -> int:
    """Where an upload goes on that an earlier run began."""
    path = Path(child.layout.upload(name))
    return path.stat().st_size if path.exists() else 0


def upload_small(child: Child) -> None:
    with child.open() as store:
        _upload(child, store, "small")


def upload_large(child: Child) -> None:
    with child.open() as store:
        _upload(child, store, "large")


def upload_batch(child: Child) -> None:
    with child.open("batch") as store:
        _upload(child, store, "large")


def write_packed(child: Child) -> None:
    with child.open(compression="zstd") as store:
        child.put(store, "text")


def upload_packed(child: Child) -> None:
    with child.open(compression="zstd") as store:
        _upload(child, store, "text")


def pause_packed(child: Child) -> None:
    with child.open() as store:
        upload = store.upload(UPLOAD, digests.of(TEXT), 0, TEXT[:200_000])
        child.acknowledge("size", upload.suspend(durable=True))


def upload_what_is_there(child: Child) -> None:
    """Two uploads of one blob: the second finds it entered."""
    with child.open() as store:
        digest = digests.of(LARGE)
        if store.contains(digest):
            return
        start = _resumed(child, "uploads/2/blobs")
        second = store.upload("uploads/2/blobs", digest, start, LARGE[start:])
        child.put(store, "large")
        second.finish().wait(30)


def suspend(child: Child) -> None:
    with child.open() as store:
        start = _resumed(child)
        upload = store.upload(UPLOAD, digests.of(LARGE), start, LARGE[start : start + 1000])
        child.acknowledge("size", upload.suspend(durable=True))


def take_over(child: Child) -> None:
    with child.open() as store:
        digest = digests.of(LARGE)
        if store.contains(digest):
            return
        start = _resumed(child)
        middle = max(start, 150_000)
        first = store.upload(UPLOAD, digest, start, LARGE[start:middle])
        first.flush()
        child.acknowledge("size", store.committed_size(UPLOAD))
        end = max(middle, 250_000)
        second = store.upload(UPLOAD, digest, middle, LARGE[middle:end])
        child.acknowledge("size", store.committed_size(UPLOAD))
        with suppress(CasError):
            first.suspend()
        second.append(LARGE[end:])
        second.finish().wait(30)
        child.acknowledge("blob", "large")


def replace_action(child: Child) -> None:
    with child.open() as store:
        act(child, store, b"second")


# --- upstream ----------------------------------------------------------------------------


def queue(child: Child) -> None:
    """A blob and an action result, acknowledged before they are upstream."""
    with child.open(queue=QueueLimits()) as store:
        child.put(store, "old")
        child.acknowledge("queued", "old")
        act(child, store, b"second")
        child.acknowledge("queued", "second")


def queue_some(child: Child) -> None:
    with child.open(queue=QueueLimits()) as store:
        for name in ("old", "small"):
            child.put(store, name)
            child.acknowledge("queued", name)
        act(child, store, b"second")
        child.acknowledge("queued", "second")


@dataclass(slots=True)
class Shelf:
    """What is upstream: files that outlive whoever wrote them.  See `draining.Target`."""

    directory: Path
    store: LocalStore

    def send(self, keys: list[bytes], /, *, sure: bool = False, new: bool = False) -> Pending[None]:
        for key in keys:
            with closing(self.store.open(digests.from_key(key))) as blob:
                content = bytearray(blob.size)
                blob.read_into(memoryview(content), 0)
            shelved(self.directory, key).write_bytes(content)
        return resolved(None)

    def send_action(
        self, instance: str, digest: Digest, references: list[bytes], result: bytes, /
    ) -> Pending[None]:
        self.send(references)
        shelved(self.directory, result).write_bytes(result)
        return resolved(None)


def shelved(directory: Path, name: bytes) -> Path:
    """Where on the shelf a blob lies by its key, an action result by itself."""
    (directory / "upstream").mkdir(exist_ok=True)
    return directory / "upstream" / name.hex()


def send(child: Child) -> None:
    """The janitor's process sends what waits."""
    with child.open() as store:
        drain = Drain(store._index, Shelf(child.directory, store))
        while unsent.waiting(store._index).entries:
            time.sleep(min(0.001, drain.step()))


# --- upkeep ------------------------------------------------------------------------------


def break_old(child: Child) -> None:
    some(child)
    digest = digests.of(OLD)
    path = next(Path(child.layout.shard(digest)).iterdir())
    with path.open("r+b") as file:
        file.write(b"bad")


def scrub_file(child: Child) -> None:
    with closing(opening.open_index(child.layout, Files(), seam=child.index_seam)) as index:
        for _ in scrub.walk(child.layout, index, child.files):
            pass


def break_small(child: Child) -> None:
    some(child)
    with closing(opening.open_index(child.layout, Files())) as index:
        record = index.record(digests.of(SMALL).key)
        assert record is not None
        with index.writing() as tables:
            tables.txn.put(record.serial.to_bytes(8, "little"), bytes(500), db=tables.data)


def break_much(child: Child) -> None:
    """One of each thing that fsck mends by more than a removal."""
    some(child)
    layout = child.layout
    digest = digests.of(OLD)
    with closing(opening.open_index(layout, Files())) as index:
        record = index.record(digest.key)
        assert record is not None
        assert record.where == FILE
        os.truncate(layout.blob(digest, record.generation), 10)
        with index.writing() as tables:
            tables.txn.delete(digests.of(SMALL).key, db=tables.meta)
    Path(layout.blob(digests.of(LARGE), 7)).write_bytes(LARGE)
    Path(layout.upload("u") + "." + "0" * 16).write_bytes(b"half")
    (layout.staging / "notes").write_text("of mine")


def fill(child: Child) -> None:
    """More than the limit of the janitor to come."""
    some(child)
    with child.open() as store:
        child.put(store, "large")
        _begin(child, store)


def _begin(child: Child, store: LocalStore) -> None:
    store.upload("uploads/3/blobs", digests.of(LARGE), 0, LARGE[:1000]).suspend()


def evict(child: Child) -> None:
    """The janitor, a day later: everything may go."""
    later = time.time() + 86_400 * 2
    with ExitStack() as opened:
        index = opening.open_index(child.layout, Files(), seam=child.index_seam)
        opened.callback(index.close)
        space = Space(child.layout.space, Files(), takes=False)
        opened.callback(space.close)
        limits = SizeLimits(max_size=index.totals().disk_bytes + index.totals().beside_bytes)
        meter = Meter(child.layout, index, space, limits)
        janitor = Janitor(
            child.layout, index, child.files, space, meter, JanitorOptions(), clock=lambda: later
        )
        for _ in range(STEPS):
            time.sleep(min(0.01, janitor.step()))
            shards = (Path(child.layout.shard(digests.of(blob))) for blob in (OLD, LARGE))
            if index.totals().entries == 1 and not any(any(shard.iterdir()) for shard in shards):
                break


def remove(child: Child) -> None:
    """An operator removes a blob, and an instance."""
    with child.open() as store:
        administration = store.administration()
        with suppress(NotFound):
            administration.delete_blob(digests.of(OLD))
        for _ in administration.drop_instance("main", is_namespace_of):
            pass


def repair(child: Child) -> None:
    with closing(opening.open_index(child.layout, Files(), seam=child.index_seam)) as index:
        fsck.check(child.layout, index, child.files, repair=True, now=NOW)


def rebuild(child: Child) -> None:
    reindex(child.layout, child.files, now=NOW, seam=child.index_seam)


# --- starts ------------------------------------------------------------------------------


def unmade(child: Child) -> None:
    """No directory at all."""


def first_start(child: Child) -> None:
    directory.prepare(child.directory, (SHA256,), files=child.files).close()
    opening.open_index(child.layout, child.files, seam=child.index_seam).close()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row group."""

    prepare: Callable[[Child], None]
    run: Callable[[Child], None]
    spoilt: frozenset[str] = frozenset()
    """Acknowledged before, but spoilt by `prepare`: not there, or not whole, any more."""


SCENARIOS = {
    "a small blob": Scenario(nothing, write_small),
    "a large blob in one message": Scenario(nothing, write_large),
    "a small blob's upload": Scenario(nothing, upload_small),
    "a large blob's upload": Scenario(nothing, upload_large),
    "the same in `batch`": Scenario(nothing, upload_batch),
    "a blob as zstd in one message": Scenario(nothing, write_packed),
    "a blob's upload as zstd": Scenario(nothing, upload_packed),
    "one that goes on": Scenario(pause_packed, upload_packed),
    "an upload of what is there": Scenario(nothing, upload_what_is_there),
    "an upload that pauses": Scenario(nothing, suspend),
    "a take-over": Scenario(nothing, take_over),
    "an action result": Scenario(some, replace_action),
    "a write that is sent later": Scenario(nothing, queue),
    "the sending of it": Scenario(queue_some, send),
    "scrub, of a file": Scenario(break_old, scrub_file, frozenset({"old"})),
    "scrub, of an inline blob": Scenario(break_small, scrub_file, frozenset({"small"})),
    "the janitor": Scenario(fill, evict, frozenset({"old", "small", "large", "action"})),
    "a removal by hand": Scenario(some, remove, frozenset({"old", "action"})),
    "`fsck --repair`": Scenario(break_much, repair, frozenset({"old", "small"})),
    "`reindex`": Scenario(some, rebuild, frozenset({"small", "action"})),
    "a first start": Scenario(unmade, first_start),
}


def digest_of(name: str) -> Digest:
    return digests.of(BLOBS[name])
