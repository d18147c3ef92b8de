"""Nodes that share an index of what upstream has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cas import digest as digests
from cas.errors import ConfigError, DataLoss
from cas.metrics.instruments import Metrics
from cas.upstream.counts import Counts
from cas.upstream.memory import MemoryOptions, SharedOptions
from cas.upstream.opening import TierOptions
from cas.upstream.patience import COOL_SECONDS, FAILURES, Breaker
from cas.upstream.shared import Shared
from tests.upstream.bucket import Bucket
from tests.upstream.conftest import OPTIONS, Node
from tests.upstream.redis_server import RedisServer, redis_server
from tests.upstream.test_tier import fetched, name_of, present, put, some_bytes, until

CONTENTS = [some_bytes(30, seed) for seed in range(50)]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def options(redis: RedisServer) -> TierOptions:
    shared = SharedOptions(redis.url, "s3://bucket", timeout=20.0)
    return TierOptions(OPTIONS.patience, MemoryOptions(absent_seconds=0.0), shared)


def test_a_whole_request_is_one_round_trip(
    node: Node, bucket: Bucket, redis: RedisServer, options: TierOptions
) -> None:
    found = put(node("a", options), *CONTENTS)
    until(lambda: len(redis.keys) == len(found))
    absent = [digests.of(b"absent%d" % number) for number in range(50)]
    store = node("b", options)
    bucket.asked.clear()
    redis.asked.clear()
    assert present(store, [*found, *absent]) == {digest.key for digest in found}
    assert redis.count(b"MGET") == 1
    assert bucket.asked == []
    assert present(store, found) == {digest.key for digest in found}
    assert redis.count(b"MGET") == 1, "what is there is remembered here too"


def test_what_it_lost_is_no_miss_for_action_results_and_learnt_again(
    node: Node, bucket: Bucket, redis: RedisServer, options: TierOptions
) -> None:
    found = put(node("a", options), *CONTENTS)
    until(lambda: len(redis.keys) == len(found))
    redis.keys.clear()
    store = node("b", options)
    assert present(store, found) == set()
    assert present(store, found, sure=True) == {digest.key for digest in found}
    until(lambda: len(redis.keys) == len(found))


def test_what_it_lost_is_not_sent_again(
    node: Node, bucket: Bucket, redis: RedisServer, options: TierOptions
) -> None:
    put(node("a", options), CONTENTS[0])
    until(lambda: redis.keys)
    redis.keys.clear()
    store = node("b", options)
    assert present(store, [digests.of(CONTENTS[0])]) == set()
    put(store, CONTENTS[0])
    assert bucket.count("put") == 1


def test_without_it_the_object_store_is_asked(
    node: Node,
    bucket: Bucket,
    redis: RedisServer,
    options: TierOptions,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = put(node("a", options), *CONTENTS)
    until(lambda: len(redis.keys) == len(found))
    store = node("b", options)
    assert store.beyond._existence._shared is not None
    now = [0.0]
    store.beyond._existence._shared._breaker = Breaker(lambda: now[0])
    redis.asked.clear()
    redis.fails = True
    for digest in found[:20]:
        assert present(store, [digest]) == {digest.key}
    lines = [r for r in caplog.records if r.getMessage().startswith("the shared index fails")]
    assert len(lines) == 1
    # What was found is entered meanwhile, and fails as well.
    assert 1 <= redis.count(b"MGET") <= FAILURES, "nobody asks while it is down"
    redis.fails = False
    now[0] += COOL_SECONDS
    until(
        lambda: (
            present(store, [digests.of(b"absent")]) == set()
            and "the shared index answers again" in caplog.text
        )
    )


def test_nothing_listens(node: Node, bucket: Bucket) -> None:
    # Nothing listens on port 1 of this machine.
    shared = SharedOptions("redis://127.0.0.1:1/0", "s3://bucket")
    store = node("a", TierOptions(OPTIONS.patience, shared=shared))
    [digest] = put(store, b"x")
    assert present(store, [digest]) == {digest.key}


def test_a_damaged_object_is_forgotten(
    node: Node, bucket: Bucket, redis: RedisServer, options: TierOptions
) -> None:
    [digest] = put(node("a", options), b"some content")
    until(lambda: redis.keys)
    bucket.objects[name_of(digest)] = b"other content"
    store = node("b", options)
    assert present(store, [digest]) == {digest.key}
    with pytest.raises(DataLoss):
        fetched(store, digest)
    assert redis.keys == {}


def test_two_object_stores_share_nothing(
    node: Node, redis: RedisServer, options: TierOptions
) -> None:
    [digest] = put(node("a", options), b"x")
    until(lambda: redis.keys)
    other = SharedOptions(redis.url, "s3://another", timeout=20.0)
    assert present(node("b", TierOptions(OPTIONS.patience, shared=other)), [digest]) == set()


def test_what_is_no_url_of_redis_is_refused_without_telling_it() -> None:
    with pytest.raises(ConfigError, match="upstream_index") as failure:
        Shared(SharedOptions("http://:secret@host", "s3://bucket"), Counts(Metrics()))
    assert "secret" not in str(failure.value)
