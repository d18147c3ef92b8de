"""What is used is kept young upstream, by whom it is asked for and from whose disk it is served."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas import digest as digests
from cas.digest import BLAKE3, SHA256, Function
from cas.index.records import action_key, value_key
from cas.metrics.instruments import Metrics
from cas.store.directory import prepare
from cas.store.files import Files
from cas.store.interface import NewAction
from cas.store.layout import Layout
from cas.store.local import LocalStore, open_store
from cas.upstream import keys
from cas.upstream.asking import Asking
from cas.upstream.objects import Refused
from cas.upstream.opening import open_tier
from cas.upstream.renewing import Renewing
from cas.upstream.sweep import MOST, Sweep, object_of
from cas.upstream.trying import Patience
from tests.upstream.bucket import Bucket
from tests.upstream.conftest import OPTIONS
from tests.upstream.test_tier import put, some_bytes, until

DAY = 86_400.0
HASHES = st.binary(min_size=32, max_size=32)


def asked_for(bucket: Bucket, ask: Callable[[Renewing], Awaitable[object]]) -> None:
    """Asks, and waits for what comes of it."""

    async def run() -> None:
        await ask(Renewing(bucket, 7 * DAY, pause=0))
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others)

    asyncio.run(run())


@pytest.mark.parametrize("days", [0, 6.9, 7, 30], ids=str)
@pytest.mark.parametrize("operation", ["head", "get"])
def test_what_is_old_is_renewed_when_it_is_asked_for(operation: str, days: float) -> None:
    bucket = Bucket()
    bucket.objects["v1/a"] = b"a"
    bucket.ages["v1/a"] = days * DAY

    async def ask(renewing: Renewing) -> None:
        for _ in range(3):
            if operation == "head":
                assert await renewing.head("v1/a") == 1
            else:
                assert (await renewing.get("v1/a", 0, None)).size == 1

    asked_for(bucket, ask)
    assert bucket.count("copy") == (days >= 7)
    assert bucket.objects == {"v1/a": b"a"}


def test_what_fails_is_told_once_and_in_nobodys_way(caplog: pytest.LogCaptureFixture) -> None:
    class NoCopies(Bucket):
        async def copy(self, source: str, target: str, /) -> None:
            raise Refused("not permitted")

    bucket = NoCopies()
    for key in ("v1/a", "v1/b"):
        bucket.objects[key] = b"a"
        bucket.ages[key] = 8 * DAY

    async def ask(renewing: Renewing) -> None:
        asking = Asking(renewing, Patience())
        for _ in range(10):
            assert [await asking.head(key) for key in bucket.objects] == [1, 1]
            await asyncio.sleep(0)
        assert asking.trying.breaker.state == "closed"

    asked_for(bucket, ask)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_what_has_gone_meanwhile_is_nothing_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    bucket = Bucket()
    bucket.objects["v1/a"] = b"a"
    bucket.ages["v1/a"] = 8 * DAY

    async def ask(renewing: Renewing) -> None:
        await renewing.head("v1/a")
        del bucket.objects["v1/a"]

    asked_for(bucket, ask)
    assert bucket.count("copy") == 1
    assert not caplog.records


@given(HASHES, st.sampled_from([SHA256, BLAKE3]), st.text(st.characters(exclude_characters="\0")))
def test_entries_are_known_by_their_keys(raw: bytes, function: Function, instance: str) -> None:
    prefix = function.prefix + raw
    blob = digests.make(function, raw, 300)
    assert object_of(blob.key) == keys.blob(prefix, function)
    assert object_of(action_key(instance, prefix)) == keys.action(instance, prefix, function)
    assert object_of(value_key("gradle", "key")) is None


class Swept:
    """The sweep of a node, and its clock; each object is old at first."""

    def __init__(self, directory: Path, store: LocalStore, bucket: Bucket) -> None:
        self.now = time.time()
        self._bucket = bucket
        self._layout = Layout(directory)
        self._index = store._index
        self._asking = Asking(Renewing(bucket, 7 * DAY, pause=0), Patience())
        self.sweep = self._started()

    def _started(self) -> Sweep:
        return Sweep(
            self._layout, self._index, Files(), self._asking, 7 * DAY,
            clock=lambda: self.now, timer=lambda: self.now,
        )  # fmt: skip

    def again(self) -> None:
        """As another process."""
        self.sweep.close()
        # What runs on a loop stays there.
        self._asking = Asking(Renewing(self._bucket, 7 * DAY, pause=0), Patience())
        self.sweep = self._started()

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.sweep.step()

    def until_over(self) -> None:
        """It has been over everything since `now`."""
        until(lambda: self.stepped() and self._over())

    def stepped(self) -> bool:
        self.sweep.step()
        return True

    def _over(self) -> bool:
        try:
            position = json.loads(self._layout.renewed.read_bytes())
        except OSError:
            return False
        return bool(position == {"began": self.now, "after": None})


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalStore]:
    directory = prepare(tmp_path / "a")
    store = open_store(tmp_path / "a")
    yield store
    store.close()
    directory.close()


@pytest.fixture
def swept(tmp_path: Path, local: LocalStore, bucket: Bucket) -> Iterator[Swept]:
    """Over blobs and an action result that are upstream, and a blob that is not."""
    store = open_tier(local, bucket, OPTIONS, Metrics())
    blobs = put(store, *(some_bytes(100, seed) for seed in range(2 * MOST)))
    result = NewAction(b"result", [blobs[0].key], expanded=True)
    store.put_action("main", digests.of(b"action"), result).wait(40)
    store.close()
    local.put([(digests.of(b"here"), b"here")])[0].wait(40)
    bucket.asked.clear()
    bucket.ages = dict.fromkeys(bucket.objects, 8 * DAY)
    found = Swept(tmp_path / "a", local, bucket)
    yield found
    found.sweep.close()


def test_what_was_used_here_is_renewed_once(swept: Swept, bucket: Bucket) -> None:
    swept.later(60)
    assert not bucket.asked, "it leaves a start alone"
    swept.later(3_600)
    swept.until_over()
    until(lambda: not bucket.ages)
    assert bucket.count("copy") == len(bucket.objects) == 2 * MOST + 1
    assert bucket.count("copy", "v1/ac/main/sha256/") == 1
    swept.later(6 * DAY)
    swept.later(1)
    assert bucket.count("head") == len(bucket.objects) + 1, "the one that was never sent, too"
    swept.later(DAY)
    swept.until_over()
    assert bucket.count("copy") == len(bucket.objects), "all are young"


def test_what_was_not_used_for_long_is_let_be(swept: Swept, bucket: Bucket) -> None:
    swept.later(11 * DAY)
    swept.until_over()
    assert not bucket.asked


def test_the_next_process_goes_on(swept: Swept, bucket: Bucket) -> None:
    swept.later(3_600)
    swept.until_over()
    asked = bucket.count("head")
    swept.again()
    swept.later(3_600)
    swept.later(1)
    assert bucket.count("head") == asked


def test_an_outage_is_waited_for(swept: Swept, bucket: Bucket) -> None:
    bucket.error = Refused("not now")
    swept.later(3_600)
    until(lambda: swept.stepped() and bucket.asked)
    bucket.error = None
    swept.until_over()
    until(lambda: not bucket.ages)
