"""What is here and what is upstream: nodes over one bucket."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from cas import digest as digests
from cas.digest import Digest
from cas.errors import DataLoss, NoSpace, NotFound, Unavailable
from cas.index.lmdb import Index
from cas.store import later
from cas.store.coming import Coming
from cas.store.interface import Blob, NewAction
from cas.store.pending import Pending
from cas.store.uploads import LocalUpload
from cas.upstream.fetching import BROUGHT
from cas.upstream.landing import UNSTAGED
from cas.upstream.memory import MemoryOptions
from cas.upstream.objects import Broken, Refused
from cas.upstream.opening import TierOptions
from cas.upstream.patience import COOL_SECONDS, MAX_COOL_SECONDS, Breaker
from cas.upstream.store import TieredStore
from cas.upstream.trying import Patience
from tests.store.conftest import gathering
from tests.upstream.bucket import Bucket
from tests.upstream.conftest import OPTIONS, Node

PATIENCE = 40.0
SIZES = [1, 40_000, 300_000, (1 << 20) + 1, 3_500_000, 9_000_000]
BIG = 6 << 20


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def put(store: TieredStore, *contents: bytes) -> list[Digest]:
    blobs = [(digests.of(data), data) for data in contents]
    for pending in store.put(blobs):
        pending.wait(PATIENCE)
    return [digest for digest, _ in blobs]


def read(blob: Blob, offset: int = 0) -> bytes:
    """The rest of it, as servicers read; closes it."""
    out = bytearray(blob.size - offset)
    view = memoryview(out)
    done = 0
    try:
        while done < len(out):
            if isinstance(blob, Coming) and (coming := blob.ready(offset + done)) is not None:
                coming.wait(PATIENCE)
            count = blob.read_into(view[done : done + 1_000_000], offset + done, wait=False)
            if count < 0:
                count = blob.read_into(view[done : done + 1_000_000], offset + done)
            assert count > 0
            done += count
    finally:
        blob.close()
    return bytes(out)


def opened(store: TieredStore, digest: Digest) -> Blob:
    return store.beyond.open(digest).wait(PATIENCE)


def fetched(store: TieredStore, digest: Digest) -> bytes:
    return read(opened(store, digest))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def name_of(digest: Digest) -> str:
    return f"v1/cas/sha256/{digest.hex[:2]}/{digest.hex}"


def present(store: TieredStore, keys: Sequence[Digest], *, sure: bool = False) -> set[bytes]:
    return store.beyond.present([digest.key for digest in keys], sure=sure).wait(PATIENCE)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set the disk takes nothing of what is staged."""
    event = threading.Event()
    flush = LocalUpload.flush

    def stuck(upload: LocalUpload) -> None:
        assert event.wait(PATIENCE)
        flush(upload)

    monkeypatch.setattr(LocalUpload, "flush", stuck)
    return event


class TestReads:
    @pytest.mark.parametrize("size", SIZES)
    def test_what_one_node_takes_another_gives(self, node: Node, bucket: Bucket, size: int) -> None:
        data = some_bytes(size)
        [digest] = put(node("a"), data)
        assert bucket.objects[name_of(digest)] == data
        other = node("b")
        assert not other.contains(digest)
        assert present(other, [digest]) == {digest.key}
        assert fetched(other, digest) == data
        until(lambda: other.contains(digest))
        before = len(bucket.asked)
        assert fetched(other, digest) == data
        assert len(bucket.asked) == before, "it is here"

    def test_what_nobody_has_is_not_found(self, node: Node) -> None:
        with pytest.raises(NotFound):
            opened(node(), digests.of(b"nobody's"))
        assert node("b").beyond.find(digests.of(b"nobody's").key[:33]).wait(PATIENCE) is None

    def test_a_blob_is_found_by_its_hash(self, node: Node) -> None:
        [digest] = put(node("a"), b"by its hash")
        assert node("b").beyond.find(digest.key[:33]).wait(PATIENCE) == digest

    @pytest.mark.parametrize("size", [70_000, BIG], ids=["whole", "staged"])
    def test_it_is_fetched_once_however_many_ask(
        self, node: Node, bucket: Bucket, size: int
    ) -> None:
        data = some_bytes(size)
        [digest] = put(node("a"), data)
        processes = [node("b"), node("b")]
        bucket.gate.shut()
        bucket.bodies.shut()
        pendings = [process.beyond.open(digest) for process in processes for _ in range(10)]
        until(lambda: bucket.count("get"))
        time.sleep(0.1)
        bucket.gate.open()
        bucket.bodies.open()
        assert all(read(pending.wait(PATIENCE)) == data for pending in pendings)
        assert bucket.count("get") == 1

    def test_another_process_goes_on_when_the_one_that_fetched_ends(
        self, node: Node, bucket: Bucket
    ) -> None:
        data = some_bytes(BIG)
        [digest] = put(node("a"), data)
        one, two = node("b"), node("b")
        bucket.bodies.shut()
        begun = opened(one, digest)
        follows = opened(two, digest)
        one.close()
        with pytest.raises(Unavailable):
            read(begun)
        bucket.bodies.open()
        assert read(follows) == data
        assert bucket.count("get") == 2

    def test_small_ones_that_an_action_result_names_are_brought(
        self, node: Node, bucket: Bucket
    ) -> None:
        small, large = some_bytes(BROUGHT), some_bytes(BROUGHT + 1)
        found = put(node("a"), small, large)
        nobodys = digests.of(b"nobody's")
        bad = digests.of(some_bytes(500))
        bucket.objects[name_of(bad)] = b"x" * 500
        bucket.asked.clear()
        store = node("b")
        keys = [digest.key for digest in (*found, nobodys, bad)]
        there = store.beyond.present(keys, sure=True).wait(PATIENCE)
        assert there == {digest.key for digest in found}
        assert (bucket.count("head", found[0].hex), bucket.count("get", found[0].hex)) == (0, 1)
        assert (bucket.count("head", found[1].hex), bucket.count("get", found[1].hex)) == (1, 0)
        assert fetched(store, found[0]) == small
        assert bucket.count("get", found[0].hex) == 1

    @pytest.mark.parametrize("size", [1000, 300_000, BIG])
    def test_what_has_come_is_read_before_it_is_committed(
        self, node: Node, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setattr(later, "SECONDS", 3600.0)
        data = some_bytes(size)
        [digest] = put(node("a"), data)
        store = node("b")
        assert fetched(store, digest) == data
        bucket.asked.clear()
        assert not store.contains(digest)
        assert fetched(store, digest) == data
        assert store.beyond.find(digest.prefix).wait(PATIENCE) == digest
        assert bucket.asked == []
        until(lambda: put(store, b"company") and store.contains(digest))

    def test_an_action_result_is_given_before_it_is_committed(
        self, node: Node, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(later, "SECONDS", 3600.0)
        action, store = digests.of(b"action"), node()
        pending = store.beyond.keep_action("main", action, NewAction(b"came", [], True))
        assert store.action("main", action) is None
        assert store.beyond.action("main", action).wait(PATIENCE) == b"came"
        assert store.beyond.action("other", action).wait(PATIENCE) is None
        put(store, b"company")
        assert pending.done
        here = store.action("main", action)
        assert here is not None
        assert here.result == b"came"
        bucket.asked.clear()
        assert store.beyond.action("main", action).wait(PATIENCE) is None
        assert len(bucket.asked) == 1, "it is no more kept twice"

    def test_an_action_result_that_cannot_be_kept_is_told_of(
        self, node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise NoSpace("the disk is full")

        store = node()
        with monkeypatch.context() as broken:
            broken.setattr(Index, "apply", fails)
            pending = store.beyond.keep_action(
                "main", digests.of(b"action"), NewAction(b"came", [], True)
            )
            with pytest.raises(NoSpace):
                pending.wait(PATIENCE)
        until(lambda: "could not be kept" in caplog.text)

    def test_readers_do_not_wait_for_the_disk(self, node: Node, moves: threading.Event) -> None:
        data = some_bytes(BIG)
        [digest] = put(node("a"), data)
        store = node("b")
        try:
            blob = opened(store, digest)
            piece = blob.piece(0) if isinstance(blob, Coming) else None
            assert read(blob) == data
            assert not store.contains(digest)
        finally:
            moves.set()
        until(lambda: store.contains(digest))
        assert piece is None or piece == data[: len(piece)]
        assert fetched(store, digest) == data

    def test_what_a_slow_disk_holds_up_is_bounded(
        self, node: Node, bucket: Bucket, moves: threading.Event
    ) -> None:
        data = some_bytes(4 * UNSTAGED)
        [digest] = put(node("a"), data)
        blob = opened(node("b"), digest)
        assert isinstance(blob, Coming)
        try:
            until(lambda: blob.ready(UNSTAGED - 1) is None)
            time.sleep(0.1)
            assert blob.ready(UNSTAGED + 2 * bucket.piece) is not None
        finally:
            moves.set()
        assert read(blob) == data

    def test_one_that_cannot_be_staged_is_not_kept(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = some_bytes(4 * UNSTAGED)
        [digest] = put(node("a"), data)

        def fails(upload: LocalUpload) -> None:
            raise NoSpace("the disk is full")

        store = node("b")
        with monkeypatch.context() as broken:
            broken.setattr(LocalUpload, "flush", fails)
            with pytest.raises(NoSpace):
                read(opened(store, digest))
            until(lambda: store.committed_size(f"\0upstream/{digest}") is None)
        assert not store.contains(digest)
        assert fetched(store, digest) == data

    def test_a_store_that_closes_lets_one_be_finished(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = some_bytes(BIG)
        [digest] = put(node("a"), data)
        finishes, goes_on, discards = threading.Event(), threading.Event(), threading.Event()
        finish, discard = LocalUpload.finish, LocalUpload.discard

        def stuck(upload: LocalUpload) -> Pending[None]:
            finishes.set()
            assert goes_on.wait(PATIENCE)
            return finish(upload)

        def watched(upload: LocalUpload) -> None:
            discards.set()
            discard(upload)

        monkeypatch.setattr(LocalUpload, "finish", stuck)
        monkeypatch.setattr(LocalUpload, "discard", watched)
        store = node("b")
        assert fetched(store, digest) == data
        assert finishes.wait(PATIENCE)
        closes = threading.Thread(target=store.close)
        closes.start()
        discards.wait(0.3)
        goes_on.set()
        closes.join()
        until(lambda: store.contains(digest))

    def test_bytes_are_given_out_while_more_come_but_for_the_last(
        self, node: Node, bucket: Bucket
    ) -> None:
        data = some_bytes(3 << 20)
        [digest] = put(node("a"), data)
        bucket.bodies.shut()
        store = node("b")
        blob = opened(store, digest)
        assert isinstance(blob, Coming)
        first = blob.ready(0)
        if first is not None:
            first.wait(PATIENCE)
        view = memoryview(bytearray(1000))
        assert blob.read_into(view, 0, wait=False) == 1000
        assert view == data[:1000]
        assert not store.contains(digest), "nothing names it before all of it was checked"
        last = blob.ready((2 << 20) + 5)
        assert last is not None
        assert not last.done
        assert blob.read_into(view, (2 << 20) + 5, wait=False) == -1
        bucket.bodies.open()
        last.wait(PATIENCE)
        assert read(blob) == data

    def test_slow_readers_read_what_is_staged(self, node: Node, bucket: Bucket) -> None:
        data = some_bytes(9 << 20)
        [digest] = put(node("a"), data)
        store = node("b")
        blob = opened(store, digest)
        until(lambda: store.contains(digest))
        assert read(blob) == data

    def test_who_reads_far_ahead_asks_for_himself(self, node: Node, bucket: Bucket) -> None:
        data = some_bytes(12 << 20)
        [digest] = put(node("a"), data)
        bucket.bodies.shut()
        store = node("b")
        assert read(opened(store, digest), 11 << 20) == data[11 << 20 :]
        assert bucket.count("part") == 1
        bucket.bodies.open()
        until(lambda: store.contains(digest))

    def test_what_breaks_off_goes_on_from_there(self, node: Node, bucket: Bucket) -> None:
        data = some_bytes(5 << 20)
        [digest] = put(node("a"), data)
        bucket.breaks_at = [100, (2 << 20) + 1, (4 << 20) + 7]
        assert fetched(node("b"), digest) == data
        assert bucket.count("get") == 4

    def test_what_is_asked_for_presently_comes_together(self, node: Node, bucket: Bucket) -> None:
        contents = [some_bytes(100, seed) for seed in range(20)]
        found = put(node("a"), *contents)
        store = node("b")
        store.beyond.bring(found)
        until(lambda: len(store.present([digest.key for digest in found])) == 20)
        assert bucket.count("get") == 20


class TestDamage:
    @pytest.mark.parametrize("size", [500, 3 << 20], ids=["whole", "staged"])
    @pytest.mark.parametrize("cut", [0, 100], ids=["changed", "cut"])
    def test_a_bad_object_is_told_moved_away_and_not_kept(
        self, node: Node, bucket: Bucket, size: int, cut: int
    ) -> None:
        data = some_bytes(size)
        [digest] = put(node("a"), data)
        name = name_of(digest)
        bad = bytes([data[0] ^ 1]) + data[1 : len(data) - cut]
        bucket.objects[name] = bad
        store = node("b")
        with pytest.raises(DataLoss, match=digest.hex):
            fetched(store, digest)
        assert not store.contains(digest)
        assert name not in bucket.objects
        [moved] = [key for key in bucket.objects if key.startswith("v1/quarantine/")]
        assert digest.hex in moved
        assert bucket.objects[moved] == bad
        # Who has it sends it again.
        assert present(store, [digest]) == set()
        put(store, data)
        assert bucket.objects[name] == data

    @pytest.mark.parametrize("size", [500, 3 << 20], ids=["whole", "staged"])
    def test_a_digest_with_a_wrong_size_condemns_nothing(
        self, node: Node, bucket: Bucket, size: int
    ) -> None:
        data = some_bytes(size)
        [digest] = put(node("a"), data)
        wrong = digests.make(digest.function, digest.hash, size + 1)
        store = node("b")
        assert present(store, [wrong]) == set()
        with pytest.raises(NotFound):
            fetched(store, wrong)
        assert fetched(store, digest) == data
        assert bucket.count("delete") == 0

    def test_leftovers_of_a_fetch_that_died_harm_nothing(self, node: Node, bucket: Bucket) -> None:
        data = some_bytes(BIG)
        [digest] = put(node("a"), data)
        bucket.bodies.shut()
        dies = node("b")
        opened(dies, digest).close()
        until(lambda: bucket.count("get"))
        dies.close()
        bucket.bodies.open()
        assert fetched(node("b"), digest) == data


class TestWrites:
    @pytest.mark.parametrize("size", [10, 300_000, 9_000_000])
    def test_a_write_is_acknowledged_once_upstream_has_it(
        self, node: Node, bucket: Bucket, size: int
    ) -> None:
        data = some_bytes(size)
        digest = digests.of(data)
        bucket.gate.shut()
        store = node()
        [pending] = store.put([(digest, data)])
        until(lambda: bucket.asked)
        assert not pending.done
        bucket.gate.open()
        pending.wait(PATIENCE)
        assert bucket.objects[name_of(digest)] == data

    def test_uploads_and_spools_go_upstream_too(self, node: Node, bucket: Bucket) -> None:
        store = node()
        data = some_bytes(400_000)
        digest = digests.of(data)
        upload = store.upload("name", digest, 0, data[:100_000])
        assert upload.offset == 100_000
        if upload.append(data[100_000:]):
            upload.flush()
        upload.finish().wait(PATIENCE)
        small = gathering(store, "other", digests.of(b"small"))
        small.append(b"small")
        small.finish().wait(PATIENCE)
        spool = store.spool(digests.SHA256, None)
        spool.append(b"spooled")
        assert spool.size == 7
        spooled, pending = spool.finish()
        pending.wait(PATIENCE)
        for found, content in (
            (digest, data),
            (digests.of(b"small"), b"small"),
            (spooled, b"spooled"),
        ):
            assert bucket.objects[name_of(found)] == content

    def test_what_could_not_be_sent_is_sent_when_it_is_written_again(
        self, node: Node, bucket: Bucket
    ) -> None:
        store = node()
        bucket.error = Refused("no")
        digest = digests.of(b"later")
        [pending] = store.put([(digest, b"later")])
        with pytest.raises(Unavailable, match="no"):
            pending.wait(PATIENCE)
        assert store.contains(digest)
        bucket.error = None
        store.beyond.keep([digest.key]).wait(PATIENCE)
        assert bucket.objects[name_of(digest)] == b"later"

    def test_what_is_upstream_already_is_not_sent_again(self, node: Node, bucket: Bucket) -> None:
        put(node("a"), b"once")
        put(node("b"), b"once")
        store = node("c")
        put(store, b"once")
        store.beyond.keep([digests.of(b"once").key, digests.empty(digests.SHA256).key]).wait(
            PATIENCE
        )
        assert bucket.count("put") == 1

    def test_an_action_result_follows_all_that_it_names(self, node: Node, bucket: Bucket) -> None:
        store = node()
        bucket.error = Refused("not now")
        contents = [some_bytes(1000, seed) for seed in range(3)]
        named = [digests.of(data) for data in contents]
        for pending in store.put(list(zip(named, contents, strict=True))):
            with pytest.raises(Unavailable):
                pending.wait(PATIENCE)
        bucket.error = None
        bucket.asked.clear()
        action = digests.of(b"action")
        new = NewAction(b"result", [digest.key for digest in named], expanded=True)
        store.put_action("main/x", action, new).wait(PATIENCE)
        puts = [key for operation, key in bucket.asked if operation == "put"]
        assert set(puts[:-1]) == {name_of(digest) for digest in named}
        assert puts[-1] == f"v1/ac/main=2Fx/sha256/{action.hex[:2]}/{action.hex}"
        assert node("b").beyond.action("main/x", action).wait(PATIENCE) == b"result"
        assert node("b").beyond.action("main", action).wait(PATIENCE) is None
        store.put_action("main/x", action, new).wait(PATIENCE)
        assert bucket.count("put", "v1/ac") == 1, "the same again is not written again"

    def test_an_action_result_that_lacks_a_blob_stays_here(
        self, node: Node, bucket: Bucket
    ) -> None:
        store = node()
        new = NewAction(b"result", [digests.of(b"nowhere").key], expanded=True)
        store.put_action("", digests.of(b"action"), new).wait(PATIENCE)
        assert bucket.objects == {}
        assert store.action("", digests.of(b"action")) is not None


class TestExistence:
    def test_requests_are_bounded_and_remembered(self, node: Node, bucket: Bucket) -> None:
        contents = [some_bytes(20, seed) for seed in range(100)]
        found = put(node("a"), *contents)
        absent = [digests.of(b"absent%d" % number) for number in range(100)]
        store = node("b", TierOptions(OPTIONS.patience, MemoryOptions(absent_seconds=3_600.0)))
        bucket.asked.clear()
        bucket.most_under_way = 0
        keys = {digest.key for digest in found}
        assert present(store, [*found, *absent]) == keys
        assert bucket.count("head") == 200
        assert bucket.most_under_way <= 8
        assert present(store, [*found, *absent]) == keys
        assert bucket.count("head") == 200
        assert present(store, [*found, *absent], sure=True) == keys
        assert (bucket.count("head"), bucket.count("get")) == (200, 100)

    def test_what_was_absent_is_asked_for_again_soon(self, node: Node, bucket: Bucket) -> None:
        options = TierOptions(OPTIONS.patience, MemoryOptions(absent_seconds=0.0))
        store = node("b", options)
        digest = digests.of(b"comes later")
        assert present(store, [digest]) == set()
        put(node("a"), b"comes later")
        assert present(store, [digest]) == {digest.key}


def _complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        vars(record)["error"]
        for record in caplog.records
        if record.name == "cas.upstream" and record.levelname == "ERROR"
    ]


class TestOutages:
    def test_what_is_here_is_served_and_the_rest_fails_at_once(
        self, node: Node, bucket: Bucket, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = node("a")
        [digest] = put(store, b"here")
        now = [0.0]
        store.beyond._holder.trying.breaker = Breaker(lambda: now[0])
        elsewhere = digests.of(b"elsewhere")
        bucket.error = Refused("wrong credentials")
        for _ in range(6):
            with pytest.raises(Unavailable):
                opened(store, elsewhere)
        assert present(store, [elsewhere]) == set()
        asked = len(bucket.asked)
        with pytest.raises(Unavailable, match="lately"):
            opened(store, elsewhere)
        assert len(bucket.asked) == asked, "nobody asks while it is down"
        assert store.read_small(digest) == b"here"
        assert len(_complaints(caplog)) == 1
        assert "wrong credentials" in _complaints(caplog)[0]
        bucket.error = None
        bucket.objects[name_of(elsewhere)] = b"elsewhere"
        assert present(store, [elsewhere], sure=True) == set(), "not yet"
        now[0] += COOL_SECONDS
        assert present(store, [elsewhere], sure=True) == {elsewhere.key}
        assert fetched(store, elsewhere) == b"elsewhere"
        assert any(r.getMessage() == "upstream answers again" for r in caplog.records)

    def test_the_log_says_why_it_fails_now(
        self, node: Node, bucket: Bucket, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = node("a")
        now = [0.0]
        store.beyond._holder.trying.breaker = Breaker(lambda: now[0])
        elsewhere = digests.of(b"elsewhere")
        for error in ["no such host"] * 7 + ["wrong credentials"] * 2:
            bucket.error = Refused(error)
            with pytest.raises(Unavailable):
                opened(store, elsewhere)
            now[0] += MAX_COOL_SECONDS
        assert [line.split(": ")[-1] for line in _complaints(caplog)] == [
            "no such host", "wrong credentials"
        ]  # fmt: skip

    def test_what_fails_for_a_moment_is_asked_again(self, node: Node, bucket: Bucket) -> None:
        store = node()
        bucket.errors = [Broken("503"), Broken("timeout"), Broken("reset")]
        put(store, b"x")
        assert bucket.count("head") == 4
        assert bucket.count("put") == 1

    def test_an_answer_that_does_not_come_is_a_failure(self, node: Node, bucket: Bucket) -> None:
        store = node("a", TierOptions(Patience(timeout=0.05, concurrency=8)))
        bucket.gate.shut()
        with pytest.raises(Unavailable, match=r"no answer within 0\.05 s"):
            opened(store, digests.of(b"x"))
        bucket.gate.open()
