"""What Prometheus and people read, and when the server says that it can write."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from cas.metrics import exposition, families, readiness
from cas.metrics.board import Board, new_board
from cas.metrics.families import Family
from cas.metrics.instruments import Metrics
from cas.upstream.counts import Counts

NOW = 1_800_000_000.0


@pytest.fixture
def board() -> Iterator[Board]:
    board = new_board()
    yield board
    board.close()


def process(board: Board, index: int, role: str, number: int = 0) -> Metrics:
    sheet = board.sheet(index)
    sheet.belongs_to(role, number)
    return Metrics(sheet)


def serving(board: Board) -> tuple[Metrics, Metrics]:
    """A supervisor that has one worker up, and the worker."""
    supervisor = process(board, 0, "supervisor")
    supervisor.gauge(families.WORKERS, "grpc").set(1)
    supervisor.gauge(families.STARTED_AT).set(NOW - 100)
    return supervisor, process(board, 1, "grpc")


def scraped(board: Board) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = exposition.render(board, clock=NOW).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def value(board: Board, name: str, **labels: str) -> float:
    return scraped(board)[name, tuple(sorted(labels.items()))]


def test_every_family_is_described_before_anything_was_counted(board: Board) -> None:
    text = exposition.render(board).decode()
    for family in families.ALL:
        assert f"# HELP {family.name} {family.help}\n" in text
        assert f"# TYPE {family.name} {family.kind}\n" in text


def test_processes_are_summed_and_of_states_the_latest_counts(board: Board) -> None:
    for index, (hits, uploads, free) in enumerate([(2, 3, 50), (5, 4, 40)]):
        metrics = process(board, index, "grpc", index)
        metrics.counter(families.ACTION_LOOKUPS, "hit").add(hits)
        metrics.gauge(families.UPLOADS_OPEN).set(uploads)
        metrics.gauge(families.COMMIT_DONE_AT).set(free)
        metrics.histogram(families.READ_SIZES).observe(10 * (index + 1))
        metrics.histogram(families.READ_SIZES).observe(5000)
    assert value(board, "cas_action_cache_lookups_total", result="hit") == 7
    assert value(board, "cas_uploads_open") == 7
    assert value(board, "cas_commit_last_success_timestamp_seconds") == 50
    assert value(board, "cas_blob_read_bytes_bucket", le="1024.0") == 2
    assert value(board, "cas_blob_read_bytes_bucket", le="16384.0") == 4
    assert value(board, "cas_blob_read_bytes_bucket", le="+Inf") == 4
    assert value(board, "cas_blob_read_bytes_count") == 4
    assert value(board, "cas_blob_read_bytes_sum") == 10_030


def test_label_values_come_back_as_they_were(board: Board) -> None:
    metrics = process(board, 0, "grpc")
    name = 'a"b\\c\nü'
    metrics.requests("grpc", "S/M").ended(None, name, 0, 0, 0)
    labels = {"protocol": "grpc", "method": "S/M", "code": "OK", "instance_name": name}
    assert value(board, "cas_requests_total", **labels) == 1


def test_processes_are_looked_at_while_they_live(board: Board) -> None:
    process(board, 0, "grpc", 3)
    labels = {"role": "grpc", "worker": "3"}
    assert value(board, "cas_process_resident_memory_bytes", **labels) > 1 << 20
    assert value(board, "cas_process_cpu_seconds_total", **labels) > 0
    assert value(board, "cas_process_open_fds", **labels) >= 3
    board.sheet(0).abandoned()
    assert not [name for name, _ in scraped(board) if name.startswith("cas_process_")]


def test_another_releases_series_are_left_out(board: Board) -> None:
    sheet = board.sheet(0)
    Metrics(sheet).counter(families.ACTION_LOOKUPS, "hit").add(2)
    later = Metrics(board.sheet(1)).sheet
    later.numbers[later.slot(Family("cas_unknown_total", "counter", ""), ())] += 1
    wider = Family(families.READ_SIZES.name, "histogram", "", (), (1.0,))
    later.numbers[later.slot(wider, ())] += 1
    names = {name for name, _ in scraped(board)}
    assert "cas_unknown_total" not in names
    assert "cas_blob_read_bytes_count" not in names
    assert value(board, "cas_action_cache_lookups_total", result="hit") == 2


def test_build_names_the_versions(board: Board) -> None:
    ((_, labels),) = [key for key in scraped(board) if key[0] == "cas_build_info"]
    found = dict(labels)
    assert set(found) == {"version", "python", "grpcio", "lmdb"}
    assert "unknown" not in found.values()


# --- readiness


def ready(board: Board, at: float = NOW) -> tuple[bool, Any]:
    told = exposition.status(board, clock=at)
    if told["reason"] != "no worker serves":
        assert readiness.Watch(board).writable(at) == told["ready"], "two ways to one answer"
    return told["ready"], told["reason"]


def test_not_ready_until_a_worker_serves(board: Board) -> None:
    assert ready(board) == (False, "no worker serves")
    assert value(board, "cas_ready") == 0
    serving(board)
    assert ready(board) == (True, None)
    assert value(board, "cas_ready") == 1


def test_not_ready_without_room(board: Board) -> None:
    serving(board)
    full = process(board, 2, "janitor").gauge(families.STORE_FULL)
    full.set(1)
    assert ready(board) == (False, "the store has no room")
    full.set(0)
    assert ready(board) == (True, None)


def test_a_failed_commit_counts_until_one_succeeds_or_time_has_passed(board: Board) -> None:
    _, worker = serving(board)
    failed = worker.gauge(families.COMMIT_FAILED_AT)
    done = worker.gauge(families.COMMIT_DONE_AT)
    done.set(NOW - 60)
    failed.set(NOW)
    assert ready(board, NOW + 1) == (False, "the last write could not be committed")
    assert ready(board, NOW + 31) == (True, None)
    done.set(NOW + 2)
    assert ready(board, NOW + 3) == (True, None)


def test_who_watches_sees_processes_and_series_that_come_later(board: Board) -> None:
    watch = readiness.Watch(board)
    serving(board)
    assert watch.writable(NOW)
    full = process(board, 2, "janitor").gauge(families.STORE_FULL)
    assert watch.writable(NOW)
    full.set(1)
    assert not watch.writable(NOW)
    process(board, 3, "grpc", 1).gauge(families.COMMIT_FAILED_AT).set(NOW)
    full.set(0)
    assert not watch.writable(NOW + 29)
    assert watch.writable(NOW + 30)


def test_status_sums_up(board: Board) -> None:
    _, worker = serving(board)
    worker.counter(families.ACTION_LOOKUPS, "hit").add(3)
    worker.counter(families.ACTION_LOOKUPS, "miss").add(1)
    worker.counter(families.UPLOADS, "resumed").add(2)
    method = worker.requests("grpc", "S/M")
    method.ended(None, "a", 0, 0, 0)
    method.ended(None, "b", 0, 0, 0)
    method.ended("NOT_FOUND", "b", 0, 0, 0)
    janitor = process(board, 2, "janitor")
    janitor.gauge(families.STORE_USED_BYTES).set(10)
    janitor.counter(families.EVICTED, "blob").add(4)
    janitor.counter(families.EVICTED, "action").add(5)
    worker.counter(families.UPSTREAM_REQUESTS, "get", "ok").add(6)
    worker.counter(families.UPSTREAM_ACTIONS).add(2)
    Counts(worker).down.set(1.0)
    told = json.loads(json.dumps(exposition.status(board, upstream="s3://b", clock=NOW)))
    upstream = told["upstream"]
    assert (upstream["url"], upstream["down"]) == ("s3://b", True)
    assert abs(upstream["down_since"] - time.time()) < 60
    assert (upstream["requests"], upstream["action_hits"]) == (6, 2)
    Counts(worker).down.set(0.0)
    assert exposition.status(board)["upstream"]["down_since"] is None
    assert told["uptime"] == 100
    assert told["requests"] == {"S/M": {"OK": 2, "NOT_FOUND": 1}}
    assert told["action_cache"] == {"hits": 3, "misses": 1, "hit_ratio": 0.75}
    assert told["uploads"] == {"open": 0, "resumed": 2, "expired": 0}
    assert (told["store"]["used_bytes"], told["store"]["evicted_entries"]) == (10, 9)
    assert [(at["role"], at["pid"]) for at in told["processes"]] == [
        ("supervisor", os.getpid()),
        ("grpc", os.getpid()),
        ("janitor", os.getpid()),
    ]
