"""Writes that are acknowledged here and sent upstream later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cas import digest as digests
from cas.digest import Digest
from cas.errors import NoSpace, NotFound
from cas.index import unsent
from cas.index.lmdb import Index
from cas.index.records import pack_record
from cas.metrics.instruments import Metrics
from cas.store import admission, fsck
from cas.store.backlog import QueueLimits
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.interface import NewAction
from cas.store.janitor import Janitor, JanitorOptions
from cas.store.layout import Layout
from cas.store.local import StoreOptions, open_store
from cas.store.reindex import reindex
from cas.store.space import Space
from cas.store.stat import Amount, take
from cas.store.usage import Meter, SizeLimits
from cas.store.verifying import VerifyingStore
from cas.upstream.draining import NEW_SECONDS, Drain
from cas.upstream.objects import Refused
from cas.upstream.opening import TierOptions, open_tier
from cas.upstream.patience import Breaker
from cas.upstream.sending import SENT_WHOLE
from cas.upstream.trying import Patience
from tests.store.conftest import gathering
from tests.upstream.bucket import Bucket
from tests.upstream.test_tier import PATIENCE, name_of, put, read, some_bytes, until

OPTIONS = TierOptions(Patience(timeout=20.0, concurrency=8), back=True)
ACTION = digests.of(b"action")


class Node:
    """One whose processes are all this one, and whose janitor's steps a test makes."""

    def __init__(self, directory: Path, bucket: Bucket, limits: QueueLimits | None = None) -> None:
        self.directory = directory
        self.bucket = bucket
        self._opened = ExitStack()
        self._opened.callback(prepare(directory).close)
        options = StoreOptions(inline_threshold=16 << 10, queue=limits or QueueLimits())
        self.local = open_store(directory, options)
        self._opened.callback(self.local.close)
        self.store = open_tier(self.local, bucket, OPTIONS, Metrics())
        self._opened.callback(self.store.close)
        self.now = [time.time()]
        self.drain = self.new_drain()

    @property
    def index(self) -> Index:
        return self.local._index

    def new_drain(self, width: int = 8) -> Drain:
        """As the janitor's process has it after a start."""
        layout = Layout(self.directory)
        local = VerifyingStore(layout, self.index, Files(), StoreOptions())
        tiered = open_tier(local, self.bucket, TierOptions(OPTIONS.patience), Metrics())
        self._opened.callback(local._space.close)
        self._opened.callback(local._committer.close)
        self._opened.callback(tiered.close)
        self.tier = tiered.beyond
        clock = self.now
        return Drain(self.index, tiered.beyond, width=width, clock=lambda: clock[0])

    @property
    def waiting(self) -> int:
        return unsent.waiting(self.index).entries

    def step(self) -> bool:
        time.sleep(min(0.01, self.drain.step()))
        return False

    def drained(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.waiting:
            assert time.monotonic() < deadline
            self.step()

    def act(self, result: bytes, *blobs: Digest) -> None:
        new = NewAction(result, [digest.key for digest in blobs], expanded=True)
        self.store.put_action("main", ACTION, new).wait(PATIENCE)

    def close(self) -> None:
        self._opened.close()


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def node(tmp_path: Path, bucket: Bucket) -> Iterator[Node]:
    with closing(Node(tmp_path / "a", bucket)) as opened:
        yield opened


def action_name() -> str:
    return f"v1/ac/main/sha256/{ACTION.hex[:2]}/{ACTION.hex}"


class TestWrites:
    @pytest.mark.parametrize("size", [10, 300_000, 9_000_000])
    def test_a_write_is_acknowledged_before_upstream_is_asked(
        self, node: Node, bucket: Bucket, size: int
    ) -> None:
        data = some_bytes(size)
        [digest] = put(node.store, data)
        assert not bucket.asked
        assert unsent.waiting(node.index) == (1, size)
        node.drained()
        assert bucket.objects[name_of(digest)] == data
        assert unsent.waiting(node.index) == (0, 0)

    def test_uploads_and_spools_wait_too(self, node: Node, bucket: Bucket) -> None:
        data = some_bytes(400_000)
        upload = node.store.upload("name", digests.of(data), 0, data[:100_000])
        if upload.append(data[100_000:]):
            upload.flush()
        upload.finish().wait(PATIENCE)
        small = gathering(node.store, "other", digests.of(b"small"))
        small.append(b"small")
        small.finish().wait(PATIENCE)
        for content in (b"spooled", some_bytes(300_000, 1)):
            spool = node.store.spool(digests.SHA256, None)
            if spool.append(content):
                spool.flush()
            spool.finish()[1].wait(PATIENCE)
        assert node.waiting == 4
        node.drained()
        assert len(bucket.objects) == 4

    def test_what_came_from_upstream_does_not_wait(self, node: Node, bucket: Bucket) -> None:
        contents = [b"small", some_bytes(200_000), some_bytes(3 << 20)]
        for data in contents:
            digest = digests.of(data)
            bucket.objects[name_of(digest)] = data
            assert read(node.store.beyond.open(digest).wait(PATIENCE)) == data
            until(lambda: node.store.contains(digest))  # noqa: B023
        new = NewAction(b"result", [digests.of(b"small").key], expanded=True)
        node.store.beyond.keep_action("main", ACTION, new).wait(PATIENCE)
        assert node.waiting == 0

    def test_values_and_the_empty_blob_do_not_wait(self, node: Node) -> None:
        node.store.drop_value("x", "y").wait(PATIENCE)
        put(node.store, b"")
        assert node.waiting == 0

    def test_what_was_here_before_waits_once_it_is_written_again(
        self, tmp_path: Path, bucket: Bucket
    ) -> None:
        digest = _kept_alone(tmp_path / "b", b"old")
        with closing(Node(tmp_path / "b", bucket)) as node:
            assert node.waiting == 0
            node.store.beyond.keep([digest.key]).wait(PATIENCE)
            assert node.waiting == 1
            node.drained()
            assert bucket.objects[name_of(digest)] == b"old"
            node.store.beyond.keep([digest.key]).wait(PATIENCE)
            assert node.waiting == 0, "it was queued a moment ago"
            with pytest.raises(NotFound):
                node.store.beyond.keep([digests.of(b"never").key]).wait(PATIENCE)

    def test_what_an_action_result_names_waits_with_it(
        self, tmp_path: Path, bucket: Bucket
    ) -> None:
        digest = _kept_alone(tmp_path / "b", b"old")
        with closing(Node(tmp_path / "b", bucket)) as node:
            node.act(b"result", digest)
            assert node.waiting == 2
            node.act(b"result", digest)
            node.drained()
            assert bucket.objects == {name_of(digest): b"old", action_name(): b"result"}
            node.act(b"result", digest)
            assert node.waiting == 0, "the same again"

    def test_both_of_one_commit_are_there_after_a_restart(
        self, tmp_path: Path, bucket: Bucket
    ) -> None:
        with closing(Node(tmp_path / "b", bucket)) as node:
            [digest] = put(node.store, b"stays")
            node.act(b"result", digest)
        assert bucket.objects == {}
        with closing(Node(tmp_path / "b", bucket)) as node:
            assert node.waiting == 2
            node.drained()
        assert set(bucket.objects) == {name_of(digest), action_name()}


class TestDraining:
    def test_an_action_result_follows_all_that_it_names(self, node: Node, bucket: Bucket) -> None:
        found = put(node.store, *[some_bytes(1000, seed) for seed in range(20)])
        node.act(b"result", *found)
        node.drained()
        puts = [key for operation, key in bucket.asked if operation == "put"]
        assert set(puts[:-1]) == {name_of(digest) for digest in found}
        assert puts[-1] == action_name()

    def test_of_several_results_the_last_is_upstream(self, node: Node, bucket: Bucket) -> None:
        [digest] = put(node.store, b"x")
        for result in (b"first", b"second", b"first"):
            node.act(result, digest)
            for _ in range(5):
                node.step()
        node.drained()
        assert bucket.objects[action_name()] == b"first"

    def test_what_is_upstream_already_is_not_sent_again(self, node: Node, bucket: Bucket) -> None:
        bucket.objects[name_of(digests.of(b"x"))] = b"x"
        put(node.store, b"x")
        node.now[0] = time.time() + NEW_SECONDS
        node.drained()
        assert bucket.count("put") == 0

    def test_what_has_just_come_is_not_looked_for(self, node: Node, bucket: Bucket) -> None:
        found = put(node.store, b"small", some_bytes(300_000))
        node.act(b"result", *found)
        node.drained()
        assert bucket.count("put") == 3
        assert bucket.count("head") == 0

    def test_what_is_sent_in_parts_is_looked_for(self, node: Node, bucket: Bucket) -> None:
        put(node.store, some_bytes(SENT_WHOLE + 1))
        node.drained()
        assert (bucket.count("head"), bucket.count("put")) == (1, 1)

    def test_what_was_here_before_is_looked_for(self, node: Node, bucket: Bucket) -> None:
        [digest] = put(node.store, b"x")
        node.drained()
        [record] = [record for _, record in node.index.keys(b"", 1000) if record.stored]
        with node.index.writing() as tables:
            old = record._replace(written=record.written - 10)
            tables.txn.put(digest.key, pack_record(old), db=tables.meta)
        node.local.send_later([digest.key]).wait(PATIENCE)
        node.drained()
        assert (bucket.count("head"), bucket.count("put")) == (1, 1)

    def test_what_was_damaged_upstream_since_is_sent_again(
        self, node: Node, bucket: Bucket
    ) -> None:
        [digest] = put(node.store, b"x")
        node.drained()
        del bucket.objects[name_of(digest)]
        node.local.send_later([digest.key]).wait(PATIENCE)
        node.drained()
        assert bucket.objects[name_of(digest)] == b"x"

    def test_at_most_so_many_are_under_way(self, node: Node, bucket: Bucket) -> None:
        put(node.store, *[some_bytes(100, seed) for seed in range(50)])
        bucket.gate.shut()
        for _ in range(10):
            node.step()
        bucket.gate.open()
        node.drained()
        assert bucket.most_under_way <= 8
        assert len(bucket.objects) == 50

    def test_an_outage_and_its_end(
        self, node: Node, bucket: Bucket, caplog: pytest.LogCaptureFixture
    ) -> None:
        now = [0.0]
        node.tier._holder.trying.breaker = Breaker(lambda: now[0])
        bucket.error = Refused("wrong credentials")
        found = put(node.store, *[some_bytes(100, seed) for seed in range(30)])
        until(lambda: node.step() or node.tier._holder.trying.breaker.state == "open")
        asked = len(bucket.asked)
        for _ in range(50):
            node.step()
        assert len(bucket.asked) == asked, "nobody asks while it is down"
        assert put(node.store, b"more")
        assert node.waiting == 31
        lines = [r for r in caplog.records if r.getMessage().startswith("what is written waits")]
        assert len(lines) == 1
        bucket.error = None
        now[0] += 100.0
        node.drained()
        assert {name_of(digest) for digest in found} <= set(bucket.objects)

    def test_one_that_cannot_be_sent_holds_up_no_other(self, node: Node, bucket: Bucket) -> None:
        refused = digests.of(b"refused")
        bucket.refused = {name_of(refused)}
        found = put(node.store, b"refused", *[some_bytes(100, seed) for seed in range(20)])
        until(lambda: node.step() or node.waiting == 1)
        assert set(bucket.objects) == {name_of(digest) for digest in found[1:]}
        bucket.refused = set()
        node.drained()
        assert bucket.objects[name_of(refused)] == b"refused"

    def test_what_is_damaged_here_is_not_sent(
        self, node: Node, bucket: Bucket, caplog: pytest.LogCaptureFixture
    ) -> None:
        [digest] = put(node.store, some_bytes(100_000))
        [path] = Path(Layout(node.directory).shard(digest)).iterdir()
        path.write_bytes(b"x" * 100_000)
        node.act(b"result", digest)
        node.drained()
        assert bucket.objects == {}
        lines = [r for r in caplog.records if r.getMessage().startswith("what was to be sent")]
        assert len(lines) == 2

    def test_what_was_removed_by_hand_is_not_sent(self, node: Node, bucket: Bucket) -> None:
        [digest] = put(node.store, b"secret")
        node.act(b"result", digest)
        node.local.administration().delete_blob(digest)
        node.local.administration().delete_action("main", ACTION)
        assert unsent.waiting(node.index) == (0, 0)
        node.drained()
        assert bucket.objects == {}

    def test_a_janitor_that_is_killed_leaves_the_queue(self, node: Node, bucket: Bucket) -> None:
        put(node.store, *[some_bytes(100, seed) for seed in range(10)])
        bucket.gate.shut()
        node.step()
        assert node.waiting == 10
        node.drain = node.new_drain()
        bucket.gate.open()
        node.drained()
        assert len(bucket.objects) == 10

    def test_what_it_tells(self, node: Node, bucket: Bucket) -> None:
        put(node.store, b"one", b"three")
        node.now[0] += 100.0
        told: dict[str, Any] = {}
        node.drain._counts.waits = lambda *found: told.update(found=found)  # type: ignore[method-assign]
        bucket.gate.shut()
        node.step()
        entries, size, age = told["found"]
        assert (entries, size) == (2, 8)
        assert age >= 99.0
        bucket.gate.open()
        node.drained()


class TestTheLimit:
    def test_writes_wait_and_are_refused(
        self, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admission, "WAIT_SECONDS", 0.2)
        with closing(Node(tmp_path / "b", bucket, QueueLimits(entries=3))) as node:
            put(node.store, b"1", b"2", b"3")
            [refused] = node.store.put([(digests.of(b"4"), b"4")])
            with pytest.raises(NoSpace, match=r"3 entries .* wait to be sent.*upstream_queue"):
                refused.wait(PATIENCE)
            assert not node.store.contains(digests.of(b"4"))
            node.drained()
            put(node.store, b"4")

    def test_a_write_that_waits_goes_on_once_there_is_room(
        self, tmp_path: Path, bucket: Bucket
    ) -> None:
        with closing(Node(tmp_path / "b", bucket, QueueLimits(bytes=1000))) as node:
            put(node.store, some_bytes(2000))
            [waits] = node.store.put([(digests.of(b"4"), b"4")])
            time.sleep(0.05)
            assert not waits.done
            until(lambda: node.step() or waits.done)
            waits.result()

    def test_reads_of_what_comes_from_upstream_do_not_wait(
        self, tmp_path: Path, bucket: Bucket
    ) -> None:
        with closing(Node(tmp_path / "b", bucket, QueueLimits(entries=1))) as node:
            put(node.store, b"full")
            digest = digests.of(b"there")
            bucket.objects[name_of(digest)] = b"there"
            assert read(node.store.beyond.open(digest).wait(PATIENCE)) == b"there"
            until(lambda: node.store.contains(digest))


class TestPins:
    def test_what_waits_is_not_evicted(self, node: Node) -> None:
        kept = put(node.store, *[some_bytes(20_000, seed) for seed in range(20)])
        node.drained()
        pinned = put(node.store, *[some_bytes(20_000, 100 + seed) for seed in range(20)])
        evict_all(node)
        assert not node.store.present([digest.key for digest in kept])
        assert len(node.store.present([digest.key for digest in pinned])) == 20
        node.drained()
        evict_all(node)
        assert not node.store.present([digest.key for digest in pinned])

    def test_an_action_result_that_waits_is_not_dropped_for_what_it_lacks_here(
        self, node: Node, bucket: Bucket
    ) -> None:
        [digest] = put(node.store, some_bytes(20_000))
        node.drained()
        node.act(b"result", digest)
        # Sent again, and evicted, while the action result waits still.
        node.index.sent([e.serial for e in unsent.page(node.index) if e.key == digest.key])
        record = node.index.record(digest.key)
        assert record is not None
        assert node.index.evict([(digest.key, record)], 2**32 - 1)
        found = node.store.action("main", ACTION)
        assert found is not None
        assert not found.complete
        node.local._clock = lambda: time.time() + 3600
        node.store.drop_action("main", ACTION, found)
        put(node.store, b"a commit later")
        assert node.store.action("main", ACTION) is not None
        node.drained()
        assert bucket.objects[action_name()] == b"result"


class TestUpkeep:
    def test_fsck_removes_rows_of_no_entry_and_counts_anew(self, node: Node) -> None:
        put(node.store, b"one", b"three")
        with node.index.writing() as tables:
            tables.txn.put((10_000).to_bytes(8, "little"), bytes(16), db=tables.unsent)
        layout = Layout(node.directory)
        told: list[fsck.Finding] = []
        for repair, found in ((True, 1), (False, 0)):
            report = fsck.check(
                layout, node.index, Files(), repair=repair, now=time.time(), tell=told.append
            )
            assert report.found.total() == found
        assert told[0].what == "unsent 10000"
        assert unsent.waiting(node.index) == (2, 8)

    def test_fsck_drops_the_row_of_what_it_drops(self, node: Node) -> None:
        [digest, _] = put(node.store, some_bytes(100_000), b"stays")
        [path] = Path(Layout(node.directory).shard(digest)).iterdir()
        path.unlink()
        fsck.check(Layout(node.directory), node.index, Files(), repair=True, now=time.time())
        assert unsent.waiting(node.index) == (1, 5)

    def test_reindex_queues_what_it_finds(self, tmp_path: Path, bucket: Bucket) -> None:
        with closing(Node(tmp_path / "b", bucket)) as node:
            [digest, _] = put(node.store, some_bytes(100_000), b"inline: lost")
        reindex(Layout(tmp_path / "b"), Files(), now=time.time(), unsent=True)
        with closing(Node(tmp_path / "b", bucket)) as node:
            assert unsent.waiting(node.index) == (1, 100_000)
            node.drained()
        assert list(bucket.objects) == [name_of(digest)]

    def test_stat_counts_it(self, node: Node) -> None:
        put(node.store, b"one", b"three")
        assert take(Layout(node.directory), node.index, now=time.time()).unsent == Amount(2, 8)

    def test_a_store_without_a_queue_has_no_table(self, tmp_path: Path) -> None:
        with closing(prepare(tmp_path / "b")), closing(open_store(tmp_path / "b")) as alone:
            put_alone = alone.put([(digests.of(b"x"), b"x")])
            put_alone[0].wait(PATIENCE)
            with alone._index.reading() as tables:
                assert tables.unsent is None
            assert unsent.waiting(alone._index) == (0, 0)
            assert unsent.page(alone._index) == []


def _kept_alone(directory: Path, data: bytes) -> Digest:
    """Written by a server without an upstream."""
    digest = digests.of(data)
    with closing(prepare(directory)), closing(open_store(directory)) as alone:
        alone.put([(digest, data)])[0].wait(PATIENCE)
    return digest


def evict_all(node: Node) -> None:
    """The janitor, a week later, in a store with no room at all."""
    layout = Layout(node.directory)
    later = time.time() + 7 * 86_400
    node.local._committer.write_touches()
    with closing(Space(layout.space, Files(), takes=False)) as space:
        meter = Meter(layout, node.index, space, SizeLimits(max_size=1))
        janitor = Janitor(
            layout, node.index, Files(), space, meter, JanitorOptions(), clock=lambda: later
        )
        for _ in range(200):
            time.sleep(min(0.005, janitor.step()))
